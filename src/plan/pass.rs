//! One forward run and the reverse runs over what it saved.

use tch::Tensor;

use crate::model::graph::{Dimension, ValueId};
use crate::torch::Value;

use super::compile::{Plan, Step};
use super::rule::{Gradient, Saved, Slot};
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
        let input = input.f_to_device(self.spec.device)?.f_to_kind(self.input_kind)?;
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
        let _guard = tch::no_grad_guard();
        let mut gradients: Vec<Option<Tensor>> = std::iter::repeat_with(|| None).take(plan.value_count).collect();
        let mut targets: Vec<Option<Tensor>> = plan.spec.targets.iter().map(|_| None).collect();
        gradients[plan.spec.score.index()] = Some(seed.shallow_clone());
        let first = if until == Until::Targets { plan.first_below_targets } else { 0 };
        for (step, saved) in plan.steps.iter().zip(&self.saved).skip(first).rev() {
            if interrupt.stop() {
                return Err(PlanError::Interrupted);
            }
            let outputs: Vec<Option<Tensor>> =
                step.outputs.iter().map(|id| id.and_then(|id| gradients[id.index()].take())).collect();
            self.note_targets(step, &outputs, &mut targets);
            let Some(saved) = saved else { continue };
            let passes = |id: &ValueId| until == Until::Input || plan.below_targets.contains(id);
            if outputs.iter().all(Option::is_none) || !step.wanted.iter().any(|(_, id)| passes(id)) {
                continue;
            }
            let found = saved
                .reverse(&outputs, gradient)
                .map_err(|source| PlanError::Node { node: step.name.clone(), source })?;
            drop(outputs);
            for ((_, id), new) in step.wanted.iter().zip(found) {
                let Some(new) = new.filter(|_| passes(id)) else { continue };
                let sum = match gradients[id.index()].take() {
                    Some(sum) => sum.f_add(&new)?,
                    None => new,
                };
                gradients[id.index()] = Some(sum);
            }
        }
        let targets = targets
            .into_iter()
            .zip(&plan.spec.targets)
            .zip(&self.activations)
            .map(|((found, id), activations)| {
                // Not passed on the way: the run ended above it, or it is the input itself.
                match found.or_else(|| gradients[id.index()].as_ref().map(Tensor::shallow_clone)) {
                    Some(gradient) => Ok(gradient),
                    None => activations.f_zeros_like(),
                }
            })
            .collect::<Result<_, _>>()?;
        let input = match until {
            Until::Targets => None,
            Until::Input => Some(match gradients[plan.input.index()].take() {
                Some(gradient) => gradient,
                None => self.input.f_zeros_like()?,
            }),
        };
        Ok(Gradients { targets, input })
    }

    /// A target's gradient is complete when the step that computes it is reached.
    fn note_targets(&self, step: &Step, outputs: &[Option<Tensor>], targets: &mut [Option<Tensor>]) {
        for (id, gradient) in step.outputs.iter().zip(outputs) {
            for (target, place) in self.plan.spec.targets.iter().zip(targets.iter_mut()) {
                if Some(*target) == *id {
                    *place = gradient.as_ref().map(Tensor::shallow_clone);
                }
            }
        }
    }
}
