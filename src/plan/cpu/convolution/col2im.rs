//! The gradient to an input of few channels, as a matrix product followed by col2im.

use tch::Tensor;

use crate::torch::{ConvolutionParameters, OperatorError, PendingMask, col2im_input_gradient, col2im_weight};

use super::sparse::can_skip_zeros;
use crate::plan::autotune::bytes;
use crate::plan::convolution::Geometry;

/// Input channels up to which this kernel can be faster than others.
const MAX_CHANNELS: i64 = 4;

/// A convolution's weight, packed in panels.
#[derive(Debug)]
pub(in crate::plan) struct Col2im {
    weight: Tensor,
    inputs: i64,
    kernel: [i64; 2],
}

impl Col2im {
    /// `None` where the kernel does not suit.
    pub fn new(weight: &Tensor, geometry: &Geometry) -> Result<Option<Self>, OperatorError> {
        let [_, inputs, height, width] = *weight.size().as_slice() else { return Ok(None) };
        if inputs > MAX_CHANNELS || geometry.dilation != [1, 1] || !can_skip_zeros(weight, geometry)? {
            return Ok(None);
        }
        Ok(Some(Col2im { weight: col2im_weight(weight)?, inputs, kernel: [height, width] }))
    }

    /// Bytes of the packed weight.
    pub fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// The kernel for an input of shape `size`, `[N, C, H, W]`.
    pub fn call(&self, geometry: &Geometry, size: &[i64]) -> Col2imCall {
        Col2imCall {
            weight: self.weight.shallow_clone(),
            kernel: self.kernel,
            parameters: geometry.parameters(),
            size: [self.inputs, size[2], size[3]],
        }
    }
}

/// [`Col2im`] prepared for one size of input.
#[derive(Debug)]
pub(in crate::plan) struct Col2imCall {
    weight: Tensor,
    kernel: [i64; 2],
    parameters: ConvolutionParameters,
    size: [i64; 3],
}

impl Col2imCall {
    pub fn input_gradient(&self, grad_output: &Tensor, mask: Option<PendingMask<'_>>) -> Result<Tensor, OperatorError> {
        let [inputs, height, width] = self.size;
        let size = [grad_output.size()[0], inputs, height, width];
        col2im_input_gradient(grad_output, mask, &self.weight, self.kernel, size, &self.parameters)
    }
}
