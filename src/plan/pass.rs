//! One forward run and the reverse runs over what it saved.

use tch::Tensor;

use crate::model::graph::{Dimension, ValueId};
use crate::torch::Value;

use super::compile::{Plan, Step};
use super::rule::{Gradient, Parts, Saved, Slot};
use super::{Interrupt, PlanError};

/// How far back a reverse run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// To the earliest target.
    Targets,
    /// To the input; targets that lie on the way get their gradients too.
    Input,
}

/// What a reverse run gives. Where no path leads, a gradient is zero.
#[derive(Debug)]
pub struct Gradients {
    /// One a target, of its shape, in the order of the plan's targets.
    pub targets: Vec<Tensor>,
    /// `[N, C, H, W]`, for a run that went to the input.
    pub input: Option<Tensor>,
}

/// A forward run, with what its reverse runs need. It can be taken back as often as wanted.
pub struct Pass<'p> {
    plan: &'p Plan,
    saved: Vec<Option<Box<dyn Saved>>>,
    logits: Tensor,
    activations: Vec<Tensor>,
    input: Tensor,
}

impl Plan {
    /// Runs forward on `input`, `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`PlanError::InputShape`], [`PlanError::Interrupted`], and what an operator says.
    pub fn forward(&self, input: Tensor, interrupt: &dyn Interrupt) -> Result<Pass<'_>, PlanError> {
        self.check_shape(&input.size())?;
        let input = input.f_to_device(self.spec.device)?.f_to_kind(self.input_kind)?.f_contiguous()?;
        let _guard = tch::no_grad_guard();
        let mut values: Vec<Option<Value>> = vec![None; self.value_count];
        values[self.input.index()] = Some(Value::Tensor(input.shallow_clone()));
        let mut saved = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            if interrupt.stop() {
                return Err(PlanError::Interrupted);
            }
            saved.push(self.step_forward(step, &mut values)?);
        }
        let keep = |id: ValueId| -> Result<Tensor, PlanError> {
            let tensor = self.read(id, &values).and_then(|value| value.tensor().map(Tensor::shallow_clone));
            tensor.ok_or_else(|| PlanError::Inconsistent("the score or a target is not computed".into()))
        };
        let logits = keep(self.spec.score)?;
        let activations = self.spec.targets.iter().map(|&target| keep(target)).collect::<Result<_, _>>()?;
        Ok(Pass { plan: self, saved, logits, activations, input })
    }

    fn read(&self, id: ValueId, values: &[Option<Value>]) -> Option<Value> {
        match self.constants.get(&id) {
            Some(constant) => Some(Value::Tensor(constant.shallow_clone())),
            None => values[id.index()].clone(),
        }
    }

    fn step_forward(&self, step: &Step, values: &mut [Option<Value>]) -> Result<Option<Box<dyn Saved>>, PlanError> {
        let arguments = step
            .arguments
            .iter()
            .map(|argument| argument.resolve(|id| self.read(id, values)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| PlanError::Inconsistent(format!("node {} reads a value that is not there", step.name)))?;
        let slots: Vec<Slot> = step.wanted.iter().map(|(slot, _)| *slot).collect();
        let ran = step.rule.forward(&arguments, &slots);
        let (results, saved) = ran.map_err(|source| PlanError::Node { node: step.name.clone(), source })?;
        drop(arguments);
        for (id, result) in step.outputs.iter().zip(results) {
            if let Some(id) = id {
                values[id.index()] = Some(result);
            }
        }
        for id in &step.release {
            values[id.index()] = None;
        }
        Ok(saved)
    }

    fn check_shape(&self, got: &[i64]) -> Result<(), PlanError> {
        let [height, width] = self.spec.input_size;
        let fits = got.len() == 4
            && self.input_shape.iter().zip(got).all(|(dimension, &size)| match dimension {
                Dimension::Fixed(fixed) => *fixed == size,
                Dimension::Dynamic { .. } => size > 0,
            })
            && got[2..] == [height, width];
        if fits {
            return Ok(());
        }
        let show = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => size.to_string(),
            Dimension::Dynamic { .. } => "any".to_owned(),
        };
        let allowed: Vec<String> = self.input_shape.iter().map(show).collect();
        Err(PlanError::InputShape { got: got.to_vec(), allowed: format!("[{}]", allowed.join(", ")) })
    }
}

impl Pass<'_> {
    /// The score: for a classifier `[N, classes]`.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// A target's value.
    pub fn activations(&self, target: usize) -> &Tensor {
        &self.activations[target]
    }

    /// Takes `seed`, a gradient of the score's shape, back.
    ///
    /// Under [`Gradient::Guided`] the gradients of the targets are those of the guided run; they are the plain ones, which
    /// Grad-CAM wants, only when the plan does not [need a plain run](Plan::needs_plain_reverse).
    pub fn reverse(
        &self,
        seed: &Tensor,
        gradient: Gradient,
        until: Until,
        interrupt: &dyn Interrupt,
    ) -> Result<Gradients, PlanError> {
        let plan = self.plan;
        let is_prepared = match until {
            Until::Targets => plan.spec.target_gradients,
            Until::Input => plan.spec.input_gradient,
        };
        if !is_prepared {
            return Err(PlanError::Inconsistent(format!("the plan was not compiled for gradients until {until:?}")));
        }
        let _guard = tch::no_grad_guard();
        let mut gradients: Vec<Parts> = std::iter::repeat_with(Parts::default).take(plan.value_count).collect();
        let mut targets: Vec<Option<Tensor>> = plan.spec.targets.iter().map(|_| None).collect();
        gradients[plan.spec.score.index()].push(seed.shallow_clone())?;
        let first = if until == Until::Targets { plan.first_below_targets } else { 0 };
        for (step, saved) in plan.steps.iter().zip(&self.saved).skip(first).rev() {
            if interrupt.stop() {
                return Err(PlanError::Interrupted);
            }
            let mut outputs: Vec<Parts> = Vec::with_capacity(step.outputs.len());
            for id in &step.outputs {
                outputs.push(id.map(|id| std::mem::take(&mut gradients[id.index()])).unwrap_or_default());
            }
            self.note_targets(step, &mut outputs, &mut targets)?;
            let Some(saved) = saved else { continue };
            let passes = |id: &ValueId| until == Until::Input || plan.below_targets.contains(id);
            let is_zero = outputs.iter().all(|parts| parts.as_slice().is_empty());
            if is_zero || !step.wanted.iter().any(|(_, id)| passes(id)) {
                continue;
            }
            let found = saved
                .reverse_parts(outputs, gradient)
                .map_err(|source| PlanError::Node { node: step.name.clone(), source })?;
            for ((_, id), new) in step.wanted.iter().zip(found) {
                if let Some(new) = new.filter(|_| passes(id)) {
                    gradients[id.index()].push(new)?;
                }
            }
        }
        let mut whole = |id: ValueId| gradients[id.index()].sum();
        let mut complete = Vec::with_capacity(targets.len());
        for ((found, &id), activations) in targets.into_iter().zip(&plan.spec.targets).zip(&self.activations) {
            // Not passed on the way: the run ended above it, or it is the input itself.
            let found = if found.is_some() { found } else { whole(id)? };
            complete.push(found.map_or_else(|| activations.f_zeros_like(), Ok)?);
        }
        let input = match until {
            Until::Targets => None,
            Until::Input => Some(whole(plan.input)?.map_or_else(|| self.input.f_zeros_like(), Ok)?),
        };
        Ok(Gradients { targets: complete, input })
    }

    /// A target's gradient is complete when the step that computes it is reached.
    fn note_targets(
        &self,
        step: &Step,
        outputs: &mut [Parts],
        targets: &mut [Option<Tensor>],
    ) -> Result<(), PlanError> {
        for (id, gradient) in step.outputs.iter().zip(outputs) {
            for (target, place) in self.plan.spec.targets.iter().zip(targets.iter_mut()) {
                if Some(*target) == *id {
                    *place = gradient.sum()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::{Device, Kind};

    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::Mode;
    use crate::plan::sketch::{Sketch, autograd, compile, random, spec};
    use crate::plan::{Never, PlanSpec};

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    fn values(numbers: &[f32]) -> Tensor {
        Tensor::from_slice(numbers).view([1, 1, 1, -1])
    }

    /// A residual network of which each value is read up to three times.
    fn branching() -> (Graph, [ValueId; 3]) {
        let mut sketch = Sketch::new(&random(&[2, 3, 6, 6]));
        let a = sketch.convolution(sketch.input(), 4);
        let b = sketch.relu(a);
        let c = sketch.convolution(b, 4);
        let c = sketch.add(c, b);
        let d = sketch.batch_norm(c);
        let d = sketch.add(d, b);
        let e = sketch.relu(d);
        let e = sketch.add(e, c);
        let score = sketch.pooled(e);
        (sketch.finish(score), [b, c, e])
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

    #[test]
    fn the_way_a_frame_lies_in_memory_changes_nothing() {
        let (graph, targets) = branching();
        let x = random(&[2, 3, 6, 6]);
        let turned = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let plan = compile(&graph, &targets, Mode::Exact);
        let run = |x: Tensor| {
            let pass = plan.forward(x, &Never).unwrap();
            pass.reverse(&pass.logits().ones_like(), Gradient::Guided, Until::Input, &Never).unwrap().input.unwrap()
        };
        assert!(run(x).equal(&run(turned)));
    }

    /// score = Σ relu(-2 · relu(x)) … with numbers that can be followed by hand.
    fn two_rectifiers() -> (Graph, ValueId) {
        let mut sketch = Sketch::new(&values(&[1.0, 1.0, 1.0]));
        let weight = sketch.constant(values(&[2.0, -2.0, 2.0]));
        let shift = sketch.constant(values(&[0.0, 5.0, 0.0]));
        let a = sketch.relu(sketch.input());
        let b = sketch.node("mul.Tensor", vec![("self", a.into()), ("other", weight.into())]);
        let b = sketch.add(b, shift);
        let c = sketch.relu(b);
        (sketch.finish(c), a)
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
        let mut sketch = Sketch::new(&values(&[1.0, 1.0]));
        let y = sketch.node("silu", vec![("self", sketch.input().into())]);
        let graph = sketch.finish(y);
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
        // What was interrupted leaves nothing behind.
        assert!(pass.reverse(&seed, Gradient::Guided, Until::Input, &Never).is_ok());
    }

    #[test]
    fn where_no_path_leads_the_gradient_is_zero() {
        let mut sketch = Sketch::new(&random(&[2, 3, 4, 4]));
        let aside = sketch.convolution(sketch.input(), 5);
        let shift = sketch.constant(random(&[2, 3, 4, 4]));
        let fixed = sketch.relu(shift);
        let score = sketch.pooled(fixed);
        let graph = sketch.finish(score);
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
    fn an_input_of_another_shape_is_refused_with_what_is_allowed() {
        let (graph, _) = branching();
        let plan = compile(&graph, &[], Mode::Exact);
        for wrong in [&[2, 3, 6, 7][..], &[2, 1, 6, 6], &[3, 6, 6], &[0, 3, 6, 6]] {
            let error = plan.forward(Tensor::zeros(wrong, (Kind::Float, Device::Cpu)), &Never).err().unwrap();
            let expected = format!("the input has shape {wrong:?}, and [any, 3, 6, 6] is allowed");
            assert_eq!(error.to_string(), expected);
        }
        assert!(plan.forward(random(&[5, 3, 6, 6]), &Never).is_ok(), "any batch is allowed");
    }

    #[test]
    fn a_frame_of_another_dtype_is_converted() {
        let (graph, _) = branching();
        let plan = compile(&graph, &[], Mode::Exact);
        let pass = plan.forward(random(&[1, 3, 6, 6]).to_kind(Kind::Half), &Never).unwrap();
        assert_eq!(pass.logits().kind(), Kind::Float);
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
}
