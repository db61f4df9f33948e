//! The gradient to the input of a strided convolution with few input channels, a network's first as a rule.
//!
//! A transposed convolution with three output channels leaves most of a vector register empty. Pixel `s·a + r` of the
//! input gets its gradient from the same neighbours of `a` whatever `a` is, so the `s × s` phases `r` are channels of
//! one convolution with stride 1, and shuffling them back into place gives the gradient.

use tch::Tensor;

use crate::torch::{Operator, OperatorError, Value};

use super::prepacked::Geometry;

/// Input channels up to which this is faster than a transposed convolution.
const MOST_CHANNELS: i64 = 4;
/// Kernel height and width from which on it is.
const LEAST_KERNEL: i64 = 5;

/// A convolution's weights, arranged by phase and laid out.
#[derive(Debug)]
pub(super) struct Phases {
    weight: Tensor,
    stride: i64,
    axes: [Axis; 2],
}

impl Clone for Phases {
    fn clone(&self) -> Self {
        Phases { weight: self.weight.shallow_clone(), ..*self }
    }
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
            && height.min(width) >= LEAST_KERNEL
    }

    /// Arranges and lays out the weights of a convolution that they [suit](Phases::suit); `given` is the shape of a
    /// gradient that will come.
    pub(super) fn new(
        weight: &Tensor,
        geometry: &Geometry,
        given: &[i64],
        reorder: &Operator,
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
        let one = || Value::Ints(vec![1, 1]);
        let weight = reorder.call_tensor(&[
            Value::Tensor(arranged),
            Value::Ints(vec![-rows.first, -columns.first].into_iter().map(|p| p.max(0)).collect()),
            one(),
            one(),
            Value::Int(1),
            Value::Ints(given.to_vec()),
        ])?;
        Ok(Phases { weight, stride, axes })
    }

    /// The gradient to an input of `size`, `[N, C, H, W]`, from `given`, that of the convolution's result.
    pub(super) fn input_gradient(
        &self,
        given: &Tensor,
        size: &[i64],
        convolution: &Operator,
    ) -> Result<Tensor, OperatorError> {
        let have = given.size();
        let wanted = [0, 1].map(|axis| (size[axis + 2] + self.stride - 1) / self.stride);
        let padding = [0, 1].map(|axis| self.axes[axis].padding(have[axis + 2], wanted[axis]));
        let one = || Value::Ints(vec![1, 1]);
        let phases = convolution.call_tensor(&[
            Value::Tensor(given.shallow_clone()),
            Value::Tensor(self.weight.shallow_clone()),
            Value::None,
            Value::Ints(padding.to_vec()),
            one(),
            one(),
            Value::Int(1),
            Value::String("none".into()),
            Value::Floats(Vec::new()),
            Value::None,
        ])?;
        let start = [0, 1].map(|axis| self.axes[axis].first + padding[axis]);
        let phases = phases.f_narrow(2, start[0], wanted[0])?.f_narrow(3, start[1], wanted[1])?;
        Ok(phases.f_pixel_shuffle(self.stride)?.f_narrow(2, 0, size[2])?.f_narrow(3, 0, size[3])?)
    }
}
