//! The way back to the few channels of a network's input.

use tch::Tensor;

use crate::torch::{ConvolutionParameters, OperatorError, PendingMask, col2im_input_gradient, col2im_weight};

use super::geometry::Geometry;
use super::sparse::leaves_out;
use crate::plan::cpu::autotune::bytes;

/// Input channels up to which this can be faster than other ways.
const MOST_CHANNELS: i64 = 4;

/// A convolution's weights, in panels.
#[derive(Debug)]
pub(in crate::plan) struct Folded {
    weight: Tensor,
    inputs: i64,
    kernel: [i64; 2],
}

impl Folded {
    /// None where it does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, height, width] = *weight.size().as_slice() else { return Ok(None) };
        if inputs > MOST_CHANNELS || geometry.dilation != [1, 1] || !leaves_out(weight, geometry)? {
            return Ok(None);
        }
        Ok(Some(Folded { weight: col2im_weight(weight)?, inputs, kernel: [height, width] }))
    }

    /// How many bytes the weights take.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// To an input of `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> FoldedCall {
        FoldedCall {
            weight: self.weight.shallow_clone(),
            kernel: self.kernel,
            moves: geometry.moves(),
            size: [self.inputs, size[2], size[3]],
        }
    }
}

/// [`Folded`] for one size of input.
#[derive(Debug)]
pub(in crate::plan) struct FoldedCall {
    weight: Tensor,
    kernel: [i64; 2],
    moves: ConvolutionParameters,
    size: [i64; 3],
}

impl FoldedCall {
    pub fn input_gradient(&self, given: &Tensor, ahead: Option<PendingMask<'_>>) -> Result<Tensor, OperatorError> {
        let [inputs, height, width] = self.size;
        let size = [given.size()[0], inputs, height, width];
        col2im_input_gradient(given, ahead, &self.weight, self.kernel, size, &self.moves)
    }
}
