//! The gradient to the input of a strided convolution with few input channels, a network's first as a rule.
//!
//! A transposed convolution with three output channels leaves most of a vector register empty. Pixel `s·a + r` of the
//! input gets its gradient from the same neighbours of `a` whatever `a` is, so the `s × s` phases `r` are channels of
//! one convolution with stride 1, and shuffling them back into place gives the gradient.

use tch::Tensor;

use crate::torch::{Call, OperatorError, Value, unite_phases};

use super::super::fastest::bytes;
use super::Activation;
use super::geometry::Geometry;
use super::operators::{INPUT, Operators};

/// Input channels up to which this can be faster than a transposed convolution.
const MOST_CHANNELS: i64 = 4;

/// A convolution's weights, arranged by phase and laid out.
#[derive(Debug)]
pub(super) struct Phases {
    weight: Tensor,
    stride: i64,
    axes: [Axis; 2],
}

/// One axis of the arranged kernel.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// The first neighbour that counts, relative to the pixel's own place.
    first: i64,
    /// How many neighbours count.
    count: i64,
}

impl Axis {
    fn of(kernel: i64, stride: i64, padding: i64) -> Self {
        let first = -(kernel - 1 - padding).div_euclid(stride);
        let last = (stride - 1 + padding).div_euclid(stride);
        Axis { first, count: last - first + 1 }
    }

    /// How much the gradient, of size `given`, is padded so that the first `wanted` places are complete.
    fn padding(self, given: i64, wanted: i64) -> i64 {
        (-self.first).max(wanted + self.first + self.count - 1 - given).max(0)
    }
}

impl Phases {
    /// Whether this form suits a convolution with such weights, `[outputs, inputs, height, width]`.
    pub(super) fn suit(weight: &[i64], geometry: &Geometry) -> bool {
        let [stride, across] = geometry.stride;
        let [_, inputs, height, width] = *weight else { return false };
        stride > 1
            && stride == across
            && geometry.groups == 1
            && geometry.dilation == [1, 1]
            && inputs <= MOST_CHANNELS
            && height.min(width) >= stride
    }

    /// Arranges and lays out the weights of a convolution that they [suit](Phases::suit); `given` is the shape of a
    /// gradient that will come.
    pub(super) fn new(
        weight: &Tensor,
        geometry: &Geometry,
        given: &[i64],
        operators: &Operators,
    ) -> Result<Self, OperatorError> {
        let size = weight.size();
        let (outputs, inputs, stride) = (size[0], size[1], geometry.stride[0]);
        let axes = [0, 1].map(|axis| Axis::of(size[axis + 2], stride, geometry.padding[axis]));
        let [rows, columns] = axes;
        let arranged = Tensor::f_zeros(
            [inputs, stride, stride, outputs, rows.count, columns.count],
            (weight.f_kind()?, weight.device()),
        )?;
        // Each tap of the kernel serves one phase from one neighbour.
        let place = |tap: i64, axis: usize| {
            let shifted = tap - geometry.padding[axis];
            let phase = shifted.rem_euclid(stride);
            (phase, -(shifted.div_euclid(stride)) - axes[axis].first)
        };
        for y in 0..size[2] {
            let (phase_y, at_y) = place(y, 0);
            for x in 0..size[3] {
                let (phase_x, at_x) = place(x, 1);
                let tap = weight.f_select(3, x)?.f_select(2, y)?.f_transpose(0, 1)?;
                let mut to =
                    arranged.f_select(1, phase_y)?.f_select(1, phase_x)?.f_select(2, at_y)?.f_select(2, at_x)?;
                to.f_copy_(&tap)?;
            }
        }
        let arranged = arranged.f_reshape([inputs * stride * stride, outputs, rows.count, columns.count])?;
        let near = [-rows.first, -columns.first].map(|padding| padding.max(0));
        let weight = operators.lay_out(&arranged, &moving_by_one(near), given)?;
        Ok(Phases { weight, stride, axes })
    }

    /// How many bytes the weights take.
    pub(super) fn size(&self) -> usize {
        bytes(&self.weight)
    }

    /// How the gradient to an input of `size`, `[N, C, H, W]`, comes from one of shape `given`.
    pub(super) fn call(&self, given: &[i64], size: &[i64], operators: &Operators) -> Result<PhasesCall, OperatorError> {
        let wanted = [0, 1].map(|axis| (size[axis + 2] + self.stride - 1) / self.stride);
        let padding = [0, 1].map(|axis| self.axes[axis].padding(given[axis + 2], wanted[axis]));
        Ok(PhasesCall {
            convolution: operators.convolution(
                &self.weight,
                &Value::None,
                &moving_by_one(padding),
                Activation::None,
            )?,
            stride: self.stride,
            start: [0, 1].map(|axis| self.axes[axis].first + padding[axis]),
            size: [size[2], size[3]],
        })
    }
}

fn moving_by_one(padding: [i64; 2]) -> Geometry {
    Geometry { padding, stride: [1, 1], dilation: [1, 1], groups: 1 }
}

/// [`Phases`] for one size of input.
#[derive(Debug)]
pub(super) struct PhasesCall {
    convolution: Call,
    stride: i64,
    /// Where the first complete phase lies in the convolution's result.
    start: [i64; 2],
    size: [i64; 2],
}

impl PhasesCall {
    pub(super) fn input_gradient(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let united = unite_phases(&self.convolution.call([(INPUT, given)])?, self.stride, self.start, self.size)?;
        Ok(united.f_to_kind(given.f_kind()?)?)
    }
}
