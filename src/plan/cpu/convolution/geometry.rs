//! How a two-dimensional convolution moves over its input.

use crate::torch::{ConvolutionParameters, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Geometry {
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub groups: i64,
}

impl Geometry {
    /// The shape of the result for weights `[outputs, inputs, height, width]`.
    pub(in crate::plan) fn result(&self, input: &[i64], weight: &[i64]) -> [i64; 4] {
        let [height, width] = [0, 1].map(|axis| self.room(axis, input, weight).div_euclid(self.stride[axis]) + 1);
        [input[0], weight[0], height, width]
    }

    /// How much of the input's lower and right edge the kernel never reaches.
    pub(in crate::plan) fn rest(&self, input: &[i64], weight: &[i64]) -> [i64; 2] {
        [0, 1].map(|axis| self.room(axis, input, weight).rem_euclid(self.stride[axis]))
    }

    fn room(&self, axis: usize, input: &[i64], weight: &[i64]) -> i64 {
        let span = self.dilation[axis] * (weight[axis + 2] - 1) + 1;
        input[axis + 2] + 2 * self.padding[axis] - span
    }

    /// As camlens's own ways take it.
    pub(in crate::plan) fn moves(&self) -> ConvolutionParameters {
        ConvolutionParameters { stride: self.stride, padding: self.padding, dilation: self.dilation }
    }

    /// As oneDNN's operators take it.
    pub(in crate::plan) fn values(&self) -> [Value; 4] {
        [
            Value::Ints(self.padding.to_vec()),
            Value::Ints(self.stride.to_vec()),
            Value::Ints(self.dilation.to_vec()),
            Value::Int(self.groups),
        ]
    }
}
