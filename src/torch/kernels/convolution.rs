//! The sizes of the results of convolutions and pooling windows.

use super::element::ElementType;
use super::parameters::ConvolutionParameters;
use super::tensor::{View, expect, refused};
use crate::torch::OperatorError;

impl ConvolutionParameters {
    /// The height and width of the result for an input and a kernel of these heights and widths; 0 along an axis where
    /// the kernel is larger than the padded input.
    ///
    /// # Errors
    /// A stride, dilation or kernel below 1, a negative padding, numbers beyond 64 bits.
    pub(super) fn result_size(
        &self,
        caller: &str,
        input: [i64; 2],
        kernel: [i64; 2],
    ) -> Result<[i64; 2], OperatorError> {
        let mut size = [0; 2];
        for axis in 0..2 {
            size[axis] = self
                .steps(axis, input[axis], kernel[axis])
                .ok_or_else(|| refused(caller, format!("no convolution moves so: {self:?}, kernel {kernel:?}")))?;
        }
        Ok(size)
    }

    fn steps(&self, axis: usize, input: i64, kernel: i64) -> Option<i64> {
        let (stride, padding, dilation) = (self.stride[axis], self.padding[axis], self.dilation[axis]);
        if kernel < 1 || stride < 1 || padding < 0 || dilation < 1 {
            return None;
        }
        let padded = padding.checked_mul(2)?.checked_add(input)?;
        let last = padded.checked_sub(dilation.checked_mul(kernel - 1)?)? - 1;
        Some(if last < 0 { 0 } else { last / stride + 1 })
    }
}

/// Checks a gradient `[N, outputs, h, w]` of the result of a convolution with this kernel of an input of `size`, `[N,
/// C, H, W]`.
///
/// # Errors
/// Another dtype or device, a shape that the convolution does not give.
pub(super) fn check_gradient(
    caller: &str,
    gradient: &View<'_>,
    element: ElementType,
    outputs: i64,
    kernel: [i64; 2],
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<[i64; 4], OperatorError> {
    let shape = gradient.dimensions::<4>().filter(|_| gradient.element_type() == Some(element));
    let [n, channels, height, width] = shape.ok_or_else(|| {
        refused(caller, format!("a gradient [N, outputs, h, w] of {} on the CPU is expected", element.name()))
    })?;
    expect(channels == outputs, caller, || {
        format!("the gradient has {channels} channels, the weight {outputs} outputs")
    })?;
    let [batch, _, input_height, input_width] = size;
    let steps = parameters.result_size(caller, [input_height, input_width], kernel)?;
    let fits = n == batch && steps == [height, width] && steps.iter().all(|steps| *steps > 0);
    expect(fits, caller, || format!("the gradient has shape {:?}, the input {size:?}", gradient.size()))?;
    Ok([n, channels, height, width])
}
