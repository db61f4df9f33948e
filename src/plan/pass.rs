//! A forward run.

use tch::Tensor;

use crate::model::dimension::{self, Dimension};
use crate::model::node::ValueId;
use crate::torch::{OperatorError, Value};

use super::compile::{Plan, Step};
use super::rule::{Saved, Slot};
use super::{Interrupt, PlanError};

/// A forward run, with what its reverse runs need. It can be reversed any number of times.
pub struct Pass<'p> {
    pub(super) plan: &'p Plan,
    /// The saved state of each step that a gradient passes.
    pub(super) saved: Vec<Option<Box<dyn Saved>>>,
    pub(super) logits: Tensor,
    pub(super) activations: Vec<Tensor>,
    pub(super) input: Tensor,
}

impl Plan {
    /// Runs forward on `input`, `[N, C, H, W]`, of any dtype and layout, on any device.
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
            .ok_or_else(|| PlanError::Inconsistent(format!("node {} reads a value that is not computed", step.name)))?;
        let slots: Vec<Slot> = step.wanted.iter().map(|(slot, _)| *slot).collect();
        let ran = step.rule.forward(&arguments, &slots);
        let (results, saved) = ran.map_err(|source| self.failed(step, source))?;
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

    /// A node that fails with another size than the example's fails because of the size: at load it ran with the
    /// example.
    fn failed(&self, step: &Step, source: OperatorError) -> PlanError {
        let size = self.spec.input_size;
        let [_, _, height, width] = self.input_shape.map(Dimension::example);
        let failure = PlanError::Node { node: step.name.clone(), source };
        if size == [height, width] || failure.is_out_of_memory() {
            return failure;
        }
        PlanError::InputSize { size, example: [height, width], failure: Box::new(failure) }
    }

    fn check_shape(&self, got: &[i64]) -> Result<(), PlanError> {
        let [height, width] = self.spec.input_size;
        let [batch, channels, rows, columns] = self.input_shape;
        let fits = <[i64; 4]>::try_from(got).is_ok_and(|got| {
            // A row's result does not depend on how many run with it.
            got[0] >= 1
                && batch.fixed().is_none_or(|fixed| fixed == got[0])
                && got[1] == channels.example()
                && dimension::takes([rows, columns], [got[2], got[3]])
                && got[2..] == [height, width]
        });
        if fits {
            return Ok(());
        }
        Err(PlanError::InputShape { got: got.to_vec(), allowed: dimension::described_input(self.input_shape) })
    }
}

impl Pass<'_> {
    /// The score: `[N, classes]` for a classifier.
    pub fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// The value of the target with this index in [`PlanSpec::targets`](super::PlanSpec::targets).
    pub fn activations(&self, target: usize) -> &Tensor {
        &self.activations[target]
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{branching, compile, random};
    use crate::plan::{Mode, Never, Until};

    #[test]
    fn the_memory_layout_of_a_frame_changes_nothing() {
        let (graph, targets) = branching();
        let x = random(&[2, 3, 6, 6]);
        let channels_last = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let plan = compile(&graph, &targets, Mode::Exact);
        let run = |x: Tensor| {
            let pass = plan.forward(x, &Never).unwrap();
            pass.reverse(&pass.logits().ones_like(), Gradient::Guided, Until::Input, &Never).unwrap().input.unwrap()
        };
        assert!(run(x).equal(&run(channels_last)));
    }

    #[test]
    fn an_input_of_another_shape_is_refused_with_what_is_allowed() {
        let (graph, _) = branching();
        let plan = compile(&graph, &[], Mode::Exact);
        for wrong in [&[2, 3, 6, 7][..], &[2, 1, 6, 6], &[3, 6, 6], &[0, 3, 6, 6]] {
            let error = plan.forward(Tensor::zeros(wrong, (Kind::Float, Device::Cpu)), &Never).err().unwrap();
            let expected = format!("the input has shape {wrong:?}, and [any batch, 3, 6, 6] is allowed");
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
}
