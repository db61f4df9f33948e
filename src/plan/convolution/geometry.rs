//! The parameters of a two-dimensional convolution.

use crate::torch::{ConvolutionParameters, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub groups: i64,
}

impl Geometry {
    /// The result's shape `[N, C, H, W]` for an input `[N, C, H, W]` and a weight `[outputs, inputs / groups, h, w]`.
    pub fn output_shape(&self, input: &[i64], weight: &[i64]) -> [i64; 4] {
        let [height, width] = [0, 1].map(|axis| self.slack(axis, input, weight).div_euclid(self.stride[axis]) + 1);
        [input[0], weight[0], height, width]
    }

    /// Rows and columns at the input's lower and right edge that no window reaches: the `output_padding` of the
    /// transposed convolution that computes the input gradient.
    pub fn output_padding(&self, input: &[i64], weight: &[i64]) -> [i64; 2] {
        [0, 1].map(|axis| self.slack(axis, input, weight).rem_euclid(self.stride[axis]))
    }

    fn slack(&self, axis: usize, input: &[i64], weight: &[i64]) -> i64 {
        let span = self.dilation[axis] * (weight[axis + 2] - 1) + 1;
        input[axis + 2] + 2 * self.padding[axis] - span
    }

    /// As camlens's own kernels take them.
    pub fn parameters(&self) -> ConvolutionParameters {
        ConvolutionParameters { stride: self.stride, padding: self.padding, dilation: self.dilation }
    }

    /// As the arguments `padding, stride, dilation, groups` of oneDNN's operators.
    pub fn values(&self) -> [Value; 4] {
        [
            Value::Ints(self.padding.to_vec()),
            Value::Ints(self.stride.to_vec()),
            Value::Ints(self.dilation.to_vec()),
            Value::Int(self.groups),
        ]
    }
}
