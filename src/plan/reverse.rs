//! Reverse runs over the saved state of a forward run, of one gradient or of several.

use tch::Tensor;

use crate::model::node::ValueId;

use super::compile::Step;
use super::rule::{Gradient, Parts};
use super::{Interrupt, Pass, PlanError};

/// While the gradients that reach a step take at most this many bytes together, the step reverses all of them before
/// the next step does: linear layers and late convolutions then read their weights once. Earlier layers have small
/// weights, and the caches hold one of their gradients better than several.
const SIDE_BY_SIDE_BYTES: usize = 8 << 20;

/// How far back a reverse run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// To the earliest target.
    Targets,
    /// To the input; targets on the way get their gradients too.
    Input,
}

/// The result of a reverse run. A gradient that no path reaches is zero.
#[derive(Debug)]
pub struct Gradients {
    /// One for each target, of its shape, in the order of the plan's targets.
    pub targets: Vec<Tensor>,
    /// `[N, C, H, W]`; `None` for a run that stopped at the targets.
    pub input: Option<Tensor>,
}

/// The state of one seed's reverse run.
struct Run {
    /// Indexed by value.
    gradients: Vec<Parts>,
    /// The gradients of the targets reached so far.
    targets: Vec<Option<Tensor>>,
}

/// The arguments of a reverse run that every step reads.
#[derive(Clone, Copy)]
struct Request<'a> {
    gradient: Gradient,
    until: Until,
    interrupt: &'a dyn Interrupt,
}

impl Pass<'_> {
    /// Computes the gradients for `seed`, a gradient of the score's shape.
    ///
    /// Under [`Gradient::Guided`] the gradients of the targets are those of the guided run. They equal the plain ones,
    /// which Grad-CAM needs, only when the plan does not [need a plain run](super::Plan::needs_plain_reverse).
    ///
    /// # Errors
    /// [`PlanError::Interrupted`], [`PlanError::Inconsistent`] for a run that the plan was not compiled for, and what
    /// an operator says.
    pub fn reverse(
        &self,
        seed: &Tensor,
        gradient: Gradient,
        until: Until,
        interrupt: &dyn Interrupt,
    ) -> Result<Gradients, PlanError> {
        let mut found = self.reverse_each(std::slice::from_ref(seed), gradient, until, interrupt)?;
        found.pop().ok_or_else(|| PlanError::Inconsistent("a reverse run returned no gradients".into()))
    }

    /// As [`Pass::reverse`] for several seeds over the same saved state; bit-identical to single runs in exact mode.
    pub fn reverse_each(
        &self,
        seeds: &[Tensor],
        gradient: Gradient,
        until: Until,
        interrupt: &dyn Interrupt,
    ) -> Result<Vec<Gradients>, PlanError> {
        let plan = self.plan;
        let is_prepared = match until {
            Until::Targets => plan.spec.target_gradients,
            Until::Input => plan.spec.input_gradient,
        };
        if !is_prepared {
            return Err(PlanError::Inconsistent(format!("the plan was not compiled for gradients until {until:?}")));
        }
        let _guard = tch::no_grad_guard();
        let request = Request { gradient, until, interrupt };
        let first = if until == Until::Targets { plan.first_below_targets } else { 0 };
        let mut runs = seeds.iter().map(|seed| self.start(seed)).collect::<Result<Vec<_>, _>>()?;
        let mut left = plan.steps.len();
        while runs.len() > 1 && left > first && incoming_bytes(&plan.steps[left - 1], &runs) <= SIDE_BY_SIDE_BYTES {
            left -= 1;
            self.step_back(left, &mut runs, request)?;
        }
        let finish = |mut run: Run| {
            for index in (first..left).rev() {
                self.step_back(index, std::slice::from_mut(&mut run), request)?;
            }
            self.complete(run, until)
        };
        runs.into_iter().map(finish).collect()
    }

    fn start(&self, seed: &Tensor) -> Result<Run, PlanError> {
        let plan = self.plan;
        let mut gradients: Vec<Parts> = std::iter::repeat_with(Parts::default).take(plan.value_count).collect();
        gradients[plan.spec.score.index()].push(seed.shallow_clone())?;
        Ok(Run { gradients, targets: plan.spec.targets.iter().map(|_| None).collect() })
    }

    /// Reverses one step for all runs.
    fn step_back(&self, index: usize, runs: &mut [Run], request: Request<'_>) -> Result<(), PlanError> {
        if request.interrupt.stop() {
            return Err(PlanError::Interrupted);
        }
        let plan = self.plan;
        let step = &plan.steps[index];
        let mut incoming = Vec::with_capacity(runs.len());
        for run in runs.iter_mut() {
            let mut take = |id: ValueId| std::mem::take(&mut run.gradients[id.index()]);
            let mut outputs: Vec<Parts> = step.outputs.iter().map(|id| id.map(&mut take).unwrap_or_default()).collect();
            record_targets(&plan.spec.targets, step, &mut outputs, &mut run.targets)?;
            incoming.push(outputs);
        }
        let Some(saved) = &self.saved[index] else { return Ok(()) };
        let passes = |id: &ValueId| request.until == Until::Input || plan.below_targets.contains(id);
        let is_zero = incoming.iter().flatten().all(|parts| parts.as_slice().is_empty());
        if is_zero || !step.wanted.iter().any(|(_, id)| passes(id)) {
            return Ok(());
        }
        let found = match <[_; 1]>::try_from(incoming) {
            Ok([one]) => saved.reverse_parts(one, request.gradient).map(|found| vec![found]),
            Err(several) => saved.reverse_each(several, request.gradient),
        };
        let found = found.map_err(|source| PlanError::Node { node: step.name.clone(), source })?;
        for (run, found) in runs.iter_mut().zip(found) {
            for ((_, id), new) in step.wanted.iter().zip(found) {
                if let Some(new) = new.filter(|_| passes(id)) {
                    run.gradients[id.index()].push(new)?;
                }
            }
        }
        Ok(())
    }

    fn complete(&self, mut run: Run, until: Until) -> Result<Gradients, PlanError> {
        let plan = self.plan;
        let mut whole = |id: ValueId| run.gradients[id.index()].sum();
        let mut targets = Vec::with_capacity(run.targets.len());
        for ((found, &id), activations) in run.targets.into_iter().zip(&plan.spec.targets).zip(&self.activations) {
            // The run stopped before the step that computes it, or it is the input itself.
            let found = if found.is_some() { found } else { whole(id)? };
            targets.push(found.map_or_else(|| activations.f_zeros_like(), Ok)?);
        }
        let input = match until {
            Until::Targets => None,
            Until::Input => Some(whole(plan.input)?.map_or_else(|| self.input.f_zeros_like(), Ok)?),
        };
        Ok(Gradients { targets, input })
    }
}

/// A target's gradient is complete when the step that computes the target is reached.
fn record_targets(
    ids: &[ValueId],
    step: &Step,
    outputs: &mut [Parts],
    targets: &mut [Option<Tensor>],
) -> Result<(), PlanError> {
    for (id, gradient) in step.outputs.iter().zip(outputs) {
        for (target, slot) in ids.iter().zip(targets.iter_mut()) {
            if Some(*target) == *id {
                *slot = gradient.sum()?;
            }
        }
    }
    Ok(())
}

/// Bytes of the gradients of a step's results, of all runs.
fn incoming_bytes(step: &Step, runs: &[Run]) -> usize {
    let bytes = |part: &Tensor| part.f_kind().map_or(0, |kind| part.numel() * kind.elt_size_in_bytes());
    let of = |run: &Run| -> usize {
        step.outputs.iter().flatten().flat_map(|id| run.gradients[id.index()].as_slice()).map(bytes).sum()
    };
    runs.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::{Device, Kind};

    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::test_graphs::{GraphBuilder, autograd, branching, compile, random, spec};
    use crate::plan::{Mode, Never, Plan, PlanSpec};

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    fn values(numbers: &[f32]) -> Tensor {
        Tensor::from_slice(numbers).view([1, 1, 1, -1])
    }

    #[test]
    fn exact_mode_gives_what_autograd_gives_bit_for_bit() {
        let (graph, targets) = branching();
        let x = random(&[2, 3, 6, 6]);
        let seed = random(&[2, 4]);
        let expected = autograd(&graph, &x, &seed, &[targets[0], targets[1], targets[2], graph.input.value]);
        let plan = compile(&graph, &targets, Mode::Exact);
        let pass = plan.forward(x, &Never).unwrap();
        for _ in 0..2 {
            let until_input = pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap();
            let until_targets = pass.reverse(&seed, Gradient::Plain, Until::Targets, &Never).unwrap();
            assert!(until_targets.input.is_none());
            for (expected, found) in expected.iter().zip(until_input.targets.iter().chain(&until_input.input)) {
                assert!(expected.equal(found));
            }
            for (expected, found) in expected.iter().zip(&until_targets.targets) {
                assert!(expected.equal(found));
            }
        }
    }

    /// score = relu(weight · relu(x) + shift), with numbers that can be computed by hand.
    fn two_rectifiers() -> (Graph, ValueId) {
        let mut builder = GraphBuilder::new(&values(&[1.0, 1.0, 1.0]));
        let weight = builder.constant(values(&[2.0, -2.0, 2.0]));
        let shift = builder.constant(values(&[0.0, 5.0, 0.0]));
        let a = builder.relu(builder.input());
        let b = builder.node("mul.Tensor", vec![("self", a.into()), ("other", weight.into())]);
        let b = builder.add(b, shift);
        let c = builder.relu(b);
        (builder.finish(c), a)
    }

    #[test]
    fn a_guided_run_lets_positive_gradients_pass_alone() {
        let (graph, target) = two_rectifiers();
        let plan = compile(&graph, &[target], Mode::Exact);
        assert!(plan.needs_plain_reverse());
        let pass = plan.forward(values(&[1.0, 1.0, -1.0]), &Never).unwrap();
        assert_eq!(floats(pass.logits()), [2.0, 3.0, 0.0]);
        assert_eq!(floats(pass.activations(0)), [1.0, 1.0, 0.0]);
        let seed = values(&[1.0, 1.0, 1.0]);
        let plain = pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap();
        assert_eq!(floats(&plain.targets[0]), [2.0, -2.0, 0.0]);
        assert_eq!(floats(&plain.input.unwrap()), [2.0, -2.0, 0.0]);
        let guided = pass.reverse(&seed, Gradient::Guided, Until::Input, &Never).unwrap();
        assert_eq!(floats(&guided.input.unwrap()), [2.0, 0.0, 0.0]);
        let against = pass.reverse(&-&seed, Gradient::Guided, Until::Input, &Never).unwrap();
        assert_eq!(floats(&against.input.unwrap()), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn smooth_activations_are_guided_when_that_is_asked_for() {
        let mut builder = GraphBuilder::new(&values(&[1.0, 1.0]));
        let y = builder.node("silu", vec![("self", builder.input().into())]);
        let graph = builder.finish(y);
        let run = |guide_smooth| {
            let spec = PlanSpec { guide_smooth, ..spec(&graph, &[graph.input.value], Mode::Exact) };
            let plan = Plan::compile(&graph, &spec).unwrap();
            assert_eq!(plan.needs_plain_reverse(), guide_smooth);
            let pass = plan.forward(values(&[1.0, 1.0]), &Never).unwrap();
            let seed = values(&[1.0, -1.0]);
            floats(&pass.reverse(&seed, Gradient::Guided, Until::Input, &Never).unwrap().input.unwrap())
        };
        let (derivative, guided) = (run(false), run(true));
        assert!(derivative[0] > 0.5 && derivative[1] == -derivative[0]);
        assert_eq!(guided, [derivative[0], 0.0]);
    }

    #[test]
    fn a_run_until_the_targets_takes_no_step_above_them() {
        let (graph, [_, _, last]) = branching();
        let plan = compile(&graph, &[last], Mode::Exact);
        let pass = plan.forward(random(&[2, 3, 6, 6]), &Never).unwrap();
        let steps = |until| {
            let asked = Cell::new(0);
            let count = || {
                asked.set(asked.get() + 1);
                false
            };
            pass.reverse(&pass.logits().ones_like(), Gradient::Plain, until, &count).unwrap();
            asked.get()
        };
        assert_eq!((steps(Until::Targets), steps(Until::Input)), (1, plan.step_count()));
    }

    #[test]
    fn a_run_can_be_stopped_between_any_two_steps() {
        let (graph, targets) = branching();
        let plan = compile(&graph, &targets, Mode::Default);
        let x = random(&[2, 3, 6, 6]);
        let pass = plan.forward(x.shallow_clone(), &Never).unwrap();
        let seed = pass.logits().ones_like();
        for stop_at in 0..plan.step_count() {
            let stop = || {
                let left = Cell::new(stop_at);
                move || left.replace(left.get().wrapping_sub(1)) == 0
            };
            assert!(matches!(plan.forward(x.shallow_clone(), &stop()), Err(PlanError::Interrupted)));
            let reversed = pass.reverse(&seed, Gradient::Guided, Until::Input, &stop());
            assert!(matches!(reversed, Err(PlanError::Interrupted)));
        }
        // An interrupted run changes nothing.
        assert!(pass.reverse(&seed, Gradient::Guided, Until::Input, &Never).is_ok());
    }

    #[test]
    fn where_no_path_leads_the_gradient_is_zero() {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 4, 4]));
        let aside = builder.convolution(builder.input(), 5);
        let shift = builder.constant(random(&[2, 3, 4, 4]));
        let fixed = builder.relu(shift);
        let score = builder.pooled(fixed);
        let graph = builder.finish(score);
        let plan = compile(&graph, &[aside], Mode::Exact);
        let pass = plan.forward(random(&[2, 3, 4, 4]), &Never).unwrap();
        let found = pass.reverse(&pass.logits().ones_like(), Gradient::Plain, Until::Input, &Never).unwrap();
        assert_eq!(found.targets[0].size(), [2, 5, 4, 4]);
        assert_eq!(found.input.as_ref().unwrap().size(), [2, 3, 4, 4]);
        for zero in found.targets.iter().chain(&found.input) {
            assert!(floats(zero).iter().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn the_input_and_the_score_can_be_targets() {
        let (graph, _) = two_rectifiers();
        let score = graph.outputs[0].value.unwrap();
        let plan = compile(&graph, &[graph.input.value, score], Mode::Exact);
        let pass = plan.forward(values(&[1.0, 1.0, 1.0]), &Never).unwrap();
        let seed = values(&[3.0, 1.0, 1.0]);
        for until in [Until::Targets, Until::Input] {
            let found = pass.reverse(&seed, Gradient::Plain, until, &Never).unwrap();
            assert_eq!(floats(&found.targets[0]), [6.0, -2.0, 2.0]);
            assert_eq!(floats(&found.targets[1]), [3.0, 1.0, 1.0]);
        }
    }

    #[test]
    fn a_plan_without_the_inputs_gradient_says_so() {
        let (graph, targets) = branching();
        let spec = PlanSpec { input_gradient: false, ..spec(&graph, &targets, Mode::Exact) };
        let plan = Plan::compile(&graph, &spec).unwrap();
        let pass = plan.forward(random(&[1, 3, 6, 6]), &Never).unwrap();
        let seed = pass.logits().ones_like();
        assert!(pass.reverse(&seed, Gradient::Plain, Until::Targets, &Never).is_ok());
        let error = pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).err().unwrap();
        assert!(error.to_string().contains("not compiled for gradients until Input"), "{error}");
    }

    /// Convolutions of 3 × 3 and 1 × 1, a sum, and linear layers at the end.
    fn classifier() -> (Graph, ValueId) {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 9, 9]));
        let a = builder.convolution(builder.input(), 16);
        let a = builder.batch_norm(a);
        let a = builder.relu(a);
        let b = builder.convolution(a, 16);
        let b = builder.add(b, a);
        let target = builder.relu(b);
        let pooled = builder.pooled(target);
        let c = builder.linear(pooled, 12);
        let c = builder.relu(c);
        let score = builder.linear(c, 5);
        (builder.finish(score), target)
    }

    #[test]
    fn several_gradients_at_once_are_those_one_by_one() {
        let (graph, target) = classifier();
        for (mode, allowed) in [(Mode::Exact, 0.0), (Mode::Default, 1e-5)] {
            let plan = compile(&graph, &[target], mode);
            let pass = plan.forward(random(&[2, 3, 9, 9]), &Never).unwrap();
            let mut seeds: Vec<Tensor> = (0..3).map(|_| random(&[2, 5])).collect();
            // A seed of zeros.
            seeds.push(Tensor::zeros([2, 5], (Kind::Float, Device::Cpu)));
            for gradient in [Gradient::Plain, Gradient::Guided] {
                for until in [Until::Targets, Until::Input] {
                    // Twice: the first run times the kernels.
                    for _ in 0..2 {
                        let each = pass.reverse_each(&seeds, gradient, until, &Never).unwrap();
                        assert_eq!(each.len(), seeds.len());
                        for (seed, found) in seeds.iter().zip(&each) {
                            let one = pass.reverse(seed, gradient, until, &Never).unwrap();
                            assert_eq!(found.input.is_some(), one.input.is_some());
                            let pairs =
                                found.targets.iter().chain(&found.input).zip(one.targets.iter().chain(&one.input));
                            for (found, one) in pairs {
                                let distance = (found - one).norm().double_value(&[]);
                                assert!(distance <= allowed * one.norm().double_value(&[]), "{mode:?} {distance}");
                            }
                        }
                    }
                }
            }
            assert!(pass.reverse_each(&[], Gradient::Plain, Until::Input, &Never).unwrap().is_empty());
        }
    }
}
