//! A convolution's weights as the processor likes them.

use tch::Tensor;

use crate::plan::constant::{Constant, Identity};
use crate::torch::OperatorError;

use super::backward::InputGradientKernel;
use super::epilogue::Epilogue;
use super::forward::ForwardKernel;
use super::geometry::Geometry;
use super::onednn::Operators;
use crate::plan::cpu::autotune::releasing_memory;

/// A convolution's weights, laid out at their first use. Plans of one model share them.
///
/// The layouts suit the input size that came first. They stay right for any other. A weight that is made of others (that of a folded
/// normalisation) is there only while it is laid out, and the model's own leaves memory then, unless a plan reads it as it is.
pub(in crate::plan) struct PackedConvolution {
    /// As the model has them, `[outputs, inputs / groups, height, width]`.
    weight: Constant,
    geometry: Geometry,
    forward: Option<ForwardKernel>,
    backward: Option<InputGradientKernel>,
}

impl PackedConvolution {
    pub fn new(weight: Constant, geometry: Geometry) -> Self {
        PackedConvolution { weight, geometry, forward: None, backward: None }
    }

    /// Whether these are that constant's.
    pub fn are_of(&self, weight: &Identity, geometry: &Geometry) -> bool {
        self.geometry == *geometry && self.weight.identity() == *weight
    }

    /// The weight's shape.
    pub(in crate::plan) fn size(&self) -> Vec<i64> {
        self.weight.size()
    }

    /// For `input`, and any other, with what follows there.
    pub(in crate::plan) fn forward(
        &mut self,
        input: &Tensor,
        epilogue: &Epilogue<'_>,
        operators: &Operators,
    ) -> Result<&ForwardKernel, OperatorError> {
        let kernel = match self.forward.take() {
            Some(kernel) => kernel,
            None => releasing_memory(|| {
                ForwardKernel::choose(&self.weight.tensor()?, &self.geometry, input, epilogue, operators)
            })?,
        };
        self.weight.release();
        Ok(self.forward.insert(kernel))
    }

    /// For `given`, the gradient of the result for an input of `size`.
    pub(in crate::plan) fn backward(
        &mut self,
        grad_output: &Tensor,
        size: &[i64],
        operators: &Operators,
    ) -> Result<&InputGradientKernel, OperatorError> {
        let suits =
            |kernel: &InputGradientKernel| kernel.suits(&self.weight.size(), &self.geometry, &grad_output.size());
        let kernel = match self.backward.take().filter(suits) {
            Some(kernel) => kernel,
            None => releasing_memory(|| {
                let forward = self.forward.as_ref().map_or(Ok(None), ForwardKernel::panels)?;
                InputGradientKernel::choose(
                    &self.weight.tensor()?,
                    forward.as_ref(),
                    &self.geometry,
                    grad_output,
                    size,
                    operators,
                )
            })?,
        };
        self.weight.release();
        Ok(self.backward.insert(kernel))
    }
}
