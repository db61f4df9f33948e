//! Inputs of which a backward operator reads only the shape.

use tch::{Device, Kind, Tensor};

use crate::torch::OperatorError;

/// A tensor's shape, strides, dtype and device, without its values.
///
/// Many of ATen's backward operators take the forward's input only for its size, its strides and the choice of a
/// kernel. [`MetaTensor::tensor`] stands in for it, so that no memory is held between forward and reverse.
#[derive(Debug)]
pub(in crate::plan) struct MetaTensor {
    shape: Vec<i64>,
    strides: Vec<i64>,
    kind: Kind,
    device: Device,
}

impl MetaTensor {
    pub(in crate::plan) fn of(tensor: &Tensor) -> Result<Self, OperatorError> {
        Ok(MetaTensor {
            shape: tensor.size(),
            strides: tensor.stride(),
            kind: tensor.f_kind()?,
            device: tensor.device(),
        })
    }

    pub(in crate::plan) fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// A tensor with the original's strides and uninitialised values.
    pub(in crate::plan) fn tensor(&self) -> Result<Tensor, OperatorError> {
        Ok(Tensor::f_empty_strided(&self.shape, &self.strides, (self.kind, self.device))?)
    }

    /// Zeros of the shape.
    pub(in crate::plan) fn zeros(&self) -> Result<Tensor, OperatorError> {
        Ok(Tensor::f_zeros(&self.shape, (self.kind, self.device))?)
    }

    /// Turns the gradient of a broadcast result into the original's: summed over broadcast axes, in the original's
    /// dtype.
    pub(in crate::plan) fn fit(&self, gradient: Tensor) -> Result<Tensor, OperatorError> {
        let summed = if gradient.size() == self.shape { gradient } else { gradient.f_sum_to_size(&self.shape)? };
        Ok(if summed.f_kind()? == self.kind { summed } else { summed.f_to_kind(self.kind)? })
    }
}
