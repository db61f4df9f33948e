//! The way back that leaves zeros out.

use tch::{Device, Tensor};

use crate::torch::{Moves, OperatorError, can_multiply, sparse_input_gradient, sparse_weight};

use super::super::fastest::bytes;
use super::geometry::Geometry;

/// Whether zeros can be left out of products with the weights of such a convolution. Those that are infinite or NaN would make NaN of a
/// zero.
pub(super) fn leaves_out(weight: &Tensor, geometry: &Geometry) -> Result<bool, OperatorError> {
    let outputs = weight.size().first().copied().unwrap_or_default();
    Ok(geometry.groups == 1
        && can_multiply(weight.f_kind()?, outputs)
        && weight.device() == Device::Cpu
        && weight.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(super) struct Sparse {
    weight: Tensor,
    inputs: i64,
}

impl Sparse {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        if !leaves_out(weight, geometry)? {
            return Ok(None);
        }
        Ok(Some(Sparse { weight: sparse_weight(weight)?, inputs: weight.size()[1] }))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// To an input of `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> SparseCall {
        SparseCall {
            weight: self.weight.shallow_clone(),
            moves: geometry.moves(),
            size: [self.inputs, size[2], size[3]],
        }
    }
}

/// [`Sparse`] for one size of input.
#[derive(Debug)]
pub(super) struct SparseCall {
    weight: Tensor,
    moves: Moves,
    size: [i64; 3],
}

impl SparseCall {
    pub fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let [inputs, height, width] = self.size;
        sparse_input_gradient(given, &self.weight, [given.size()[0], inputs, height, width], &self.moves)
    }
}
