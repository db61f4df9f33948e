//! The way back that leaves zeros out.

use tch::{Device, Tensor};

use crate::torch::{Moves, OperatorError, can_multiply, sparse_input_gradient, sparse_weight};

use super::super::fastest::bytes;
use super::geometry::Geometry;

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(super) struct Sparse {
    weight: Tensor,
    inputs: i64,
}

impl Sparse {
    /// None where it does not suit. Weights that are infinite or NaN would make NaN of a zero, and here do not.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [outputs, inputs, ..] = *weight.size().as_slice() else { return Ok(None) };
        let suits = geometry.groups == 1 && can_multiply(weight.f_kind()?, outputs) && weight.device() == Device::Cpu;
        if !suits || weight.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(None);
        }
        Ok(Some(Sparse { weight: sparse_weight(weight)?, inputs }))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// To an input of `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> SparseCall {
        let Geometry { padding, stride, dilation, .. } = *geometry;
        SparseCall {
            weight: self.weight.shallow_clone(),
            inputs: self.inputs,
            moves: Moves { stride, padding, dilation },
            size: [size[2], size[3]],
        }
    }
}

/// [`Sparse`] for one size of input.
#[derive(Debug)]
pub(super) struct SparseCall {
    weight: Tensor,
    inputs: i64,
    moves: Moves,
    size: [i64; 2],
}

impl SparseCall {
    pub fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let [height, width] = self.size;
        let rows = given.size()[0];
        sparse_input_gradient(given, &self.weight, [rows, self.inputs, height, width], &self.moves)
    }
}
