//! A convolution's weight, packed for its forward and backward kernels.

use tch::Tensor;

use crate::plan::constant::{Constant, Identity};
use crate::plan::{KernelChoice, Timing};
use crate::torch::OperatorError;

use super::backward::InputGradientKernel;
use super::epilogue::Epilogue;
use super::forward::ForwardKernel;
use super::onednn::Operators;
use crate::plan::autotune::Chosen;
use crate::plan::convolution::Geometry;

/// A convolution's weight, packed at its first use and shared by the plans of one model.
///
/// It is packed for the first input size seen and correct for any other. A derived weight (folded batch normalisation)
/// exists only while it is packed; the model's own weight is then released, unless another plan reads it unpacked.
pub(in crate::plan) struct PackedConvolution {
    /// The unpacked weight, `[outputs, inputs / groups, height, width]`.
    weight: Constant,
    geometry: Geometry,
    choice: KernelChoice,
    forward: Option<Chosen<ForwardKernel>>,
    backward: Option<Chosen<InputGradientKernel>>,
}

impl PackedConvolution {
    pub fn new(weight: Constant, geometry: Geometry, choice: KernelChoice) -> Self {
        PackedConvolution { weight, geometry, choice, forward: None, backward: None }
    }

    /// Whether this is the packed form of that constant, for that geometry.
    pub fn are_of(&self, weight: &Identity, geometry: &Geometry) -> bool {
        self.geometry == *geometry && self.weight.identity() == *weight
    }

    /// The weight's shape.
    pub(in crate::plan) fn size(&self) -> Vec<i64> {
        self.weight.size()
    }

    /// When its kernels are timed.
    pub(in crate::plan) fn timing(&self) -> Timing {
        self.choice.timing
    }

    /// The forward kernel, chosen on the first `input` with its epilogue and kept for all others, unless it
    /// [is due](Chosen::is_due).
    pub(in crate::plan) fn forward(
        &mut self,
        input: &Tensor,
        epilogue: &Epilogue<'_>,
        operators: &Operators,
    ) -> Result<&Chosen<ForwardKernel>, OperatorError> {
        let kernel = match self.forward.take() {
            Some(kernel) if !kernel.is_due() => kernel,
            before => {
                let (weight, choice) = (self.weight.tensor()?, &self.choice);
                ForwardKernel::choose(&weight, &self.geometry, input, epilogue, operators, choice, before)?
            }
        };
        self.weight.release();
        Ok(self.forward.insert(kernel))
    }

    /// The input gradient's kernel for `grad_output`, the gradient of the result for an input of shape `size`. It is
    /// kept while it suits and is not due.
    pub(in crate::plan) fn backward(
        &mut self,
        grad_output: &Tensor,
        size: &[i64],
        operators: &Operators,
    ) -> Result<&Chosen<InputGradientKernel>, OperatorError> {
        let suits = |kernel: &Chosen<InputGradientKernel>| {
            kernel.kernel().suits(&self.weight.size(), &self.geometry, &grad_output.size())
        };
        let kernel = match self.backward.take().filter(suits) {
            Some(kernel) if !kernel.is_due() => kernel,
            before => {
                let forward = self.forward.as_ref().map_or(Ok(None), |forward| forward.kernel().panels())?;
                InputGradientKernel::choose(
                    &self.weight.tensor()?,
                    forward.as_ref(),
                    &self.geometry,
                    grad_output,
                    size,
                    operators,
                    &self.choice,
                    before,
                )?
            }
        };
        self.weight.release();
        Ok(self.backward.insert(kernel))
    }
}
