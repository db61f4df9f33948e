//! Inputs of which a backward operator reads the shape alone.

use tch::{Device, Kind, Tensor};

use crate::torch::OperatorError;

/// A tensor's shape, strides, dtype and device, without its numbers.
///
/// Many of ATen's backward operators take the forward's input only to know its size, its layout in memory and which
/// kernel was chosen. [`Blank::tensor`] is good enough for them, and costs no memory between forward and reverse.
#[derive(Debug)]
pub(super) struct Blank {
    shape: Vec<i64>,
    strides: Vec<i64>,
    kind: Kind,
    device: Device,
}

impl Blank {
    pub(super) fn of(tensor: &Tensor) -> Result<Self, OperatorError> {
        Ok(Blank { shape: tensor.size(), strides: tensor.stride(), kind: tensor.f_kind()?, device: tensor.device() })
    }

    pub(super) fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// A tensor that lies in memory as the original did, with numbers that mean nothing. The memory is not touched.
    pub(super) fn tensor(&self) -> Result<Tensor, OperatorError> {
        Ok(Tensor::f_empty_strided(&self.shape, &self.strides, (self.kind, self.device))?)
    }

    /// Zeros of the shape.
    pub(super) fn zeros(&self) -> Result<Tensor, OperatorError> {
        Ok(Tensor::f_zeros(&self.shape, (self.kind, self.device))?)
    }

    /// A gradient of a broadcast result, as one of the original: summed over what was broadcast, in its dtype.
    pub(super) fn fit(&self, gradient: Tensor) -> Result<Tensor, OperatorError> {
        let summed = if gradient.size() == self.shape { gradient } else { gradient.f_sum_to_size(&self.shape)? };
        Ok(if summed.f_kind()? == self.kind { summed } else { summed.f_to_kind(self.kind)? })
    }
}
