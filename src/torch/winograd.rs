//! Convolutions of 3 × 3 kernels by Winograd's algorithm, on the CPU.
//!
//! Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2016 (arXiv 1509.09308). F(2×2, 3×3) takes 16 products
//! where the sum over the kernel takes 36, F(4×4, 3×3) takes 36 instead of 144; weights take 16/9 and 36/9 of their memory. In
//! float32 the relative error is about 0.7 × and 2 × that of the sum over the kernel.

use std::ptr;

use tch::Tensor;

use super::kernels::one_tensor;
use super::{Bounds, OperatorError, ffi};

/// What the numbers of input and output channels are multiples of.
pub const WINOGRAD_CHANNELS: i64 = 16;

/// How many pixels come of one tile, along an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WinogradStep {
    Two = 2,
    Four = 4,
}

/// The weights `[outputs, inputs, 3, 3]` of a convolution, transformed for [`winograd`].
///
/// # Errors
/// No instructions for it ([`has_products`](super::has_products)), another kernel, channels that are not multiples of [`WINOGRAD_CHANNELS`], out of memory.
pub fn winograd_weight(weight: &Tensor, step: WinogradStep) -> Result<Tensor, OperatorError> {
    one_tensor("winograd_weight", |result, error| {
        // SAFETY: the tensor is alive, and the places are ours to write.
        unsafe { ffi::camlens_winograd_weight(weight.as_ptr(), step as i64, result, error) }
    })
}

/// A convolution with stride 1 and `padding` on all sides, of `[N, inputs, H, W]`, float32 or bfloat16, with the transformed weights for so many
/// `outputs`, whose result is kept within `bounds`, where they are given. The result has its channels next to each other in memory.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the kernel, out of memory.
pub fn winograd(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    padding: i64,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let [low, high] = Bounds::limits(bounds);
    one_tensor("winograd", |result, error| {
        // SAFETY: the tensors are alive, the bias is null or is too, and the places are ours to write.
        unsafe {
            ffi::camlens_winograd(input.as_ptr(), weight.as_ptr(), outputs, bias, padding, low, high, result, error)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::relative_error;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    proptest! {
        #[test]
        fn it_is_the_sum_over_the_kernel(
            rows in 1..4i64,
            inputs in (1..4i64).prop_map(|n| n * WINOGRAD_CHANNELS),
            outputs in (1..4i64).prop_map(|n| n * WINOGRAD_CHANNELS),
            size in [1..20i64, 1..20i64],
            padding in 0..3i64,
            has_bias in any::<bool>(),
            high in prop::option::of(0.5..1.5f64),
            is_channels_last in any::<bool>(),
            step in prop_oneof![Just((WinogradStep::Two, 6e-7)), Just((WinogradStep::Four, 3e-6))],
        ) {
            let size = size.map(|edge| edge.max(3 - 2 * padding));
            let input = random(&[rows, inputs, size[0], size[1]]);
            let input = if is_channels_last { crate::torch::channels_last(&input).unwrap() } else { input };
            let weight = random(&[outputs, inputs, 3, 3]) * (1.0 / inputs as f64).sqrt();
            let bias = has_bias.then(|| random(&[outputs]));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let sum = double(&input).conv2d(&double(&weight), bias.as_ref().map(double), 1, padding, 1, 1);
            let expected = bounds.map_or(sum.shallow_clone(), |b| sum.clamp(b.low, b.high.unwrap()));
            let (step, allowed) = step;
            let weight = winograd_weight(&weight, step).unwrap();
            let found = winograd(&input, &weight, outputs, bias.as_ref(), padding, bounds).unwrap();
            prop_assert_eq!(found.size(), expected.size());
            // Relative to the sum: what the bounds leave of it may be small.
            let error = relative_error(&(&sum + (double(&found) - &expected)), &sum);
            prop_assert!(error < allowed, "{}", error);
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
        }
    }

    #[test]
    fn pictures_of_bfloat16_are_transformed_in_float32() {
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        let (input, weight, bias) = (half(random(&[2, 32, 13, 14])), half(random(&[48, 32, 3, 3])), random(&[48]));
        let double = |t: &Tensor| t.to_kind(Kind::Double);
        let expected = double(&input).conv2d(&double(&weight), Some(double(&bias)), 1, 1, 1, 1);
        for step in [WinogradStep::Two, WinogradStep::Four] {
            let weight = winograd_weight(&weight, step).unwrap();
            let found = winograd(&input, &weight, 48, Some(&bias), 1, None).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            // As near as its own rounding allows: 2⁻⁸ at most, 2⁻⁹·√(1/3) or so at the mean.
            assert!(relative_error(&found, &half(expected.shallow_clone()).to_kind(Kind::Double)) < 1e-3);
            assert!(relative_error(&found, &expected) < 2.5e-3);
        }
        let nan = Tensor::full([1, 32, 4, 4], f64::NAN, (Kind::BFloat16, Device::Cpu));
        let found = winograd(&nan, &winograd_weight(&weight, WinogradStep::Two).unwrap(), 48, None, 1, None).unwrap();
        assert!(found.isnan().all().int64_value(&[]) != 0);
    }

    #[test]
    fn more_tiles_than_are_worked_on_at_once() {
        // Small weights that each thread reads, and large ones of which each reads a part.
        for (size, outputs) in [([2, 16, 130, 131], 32), ([2, 256, 40, 41], 192)] {
            let (input, weight) = (random(&size), random(&[outputs, size[1], 3, 3]));
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let expected = double(&input).conv2d(&double(&weight), None::<Tensor>, 1, 1, 1, 1);
            for step in [WinogradStep::Two, WinogradStep::Four] {
                let found = winograd(&input, &winograd_weight(&weight, step).unwrap(), outputs, None, 1, None).unwrap();
                assert!(relative_error(&found, &expected) < 3e-6);
            }
        }
    }

    #[test]
    fn numbers_that_are_none_stay_so() {
        let input = random(&[1, 16, 4, 4]);
        let _ = input.get(0).get(3).get(1).get(1).fill_(f64::NAN);
        let weight = winograd_weight(&random(&[16, 16, 3, 3]), WinogradStep::Two).unwrap();
        let found = winograd(&input, &weight, 16, None, 1, Some(Bounds { low: 0.0, high: Some(1.0) })).unwrap();
        assert!(found.get(0).get(0).get(1).get(1).double_value(&[]).is_nan());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        let of = |shape: &[i64]| error(winograd_weight(&random(shape), WinogradStep::Two));
        assert!(of(&[16, 16, 5, 5]).contains("3 × 3"));
        assert!(of(&[16, 8, 3, 3]).contains("multiples of 16"));
        let weight = winograd_weight(&random(&[16, 32, 3, 3]), WinogradStep::Four).unwrap();
        let with = |input: &Tensor| error(winograd(input, &weight, 16, None, 0, None));
        assert!(with(&random(&[1, 16, 5, 5])).contains("channels"));
        assert!(with(&random(&[1, 32, 2, 5])).contains("smaller"));
        assert!(with(&random(&[1, 32, 5, 5]).to_kind(Kind::Double)).contains("float32"));
        for outputs in [8, 64] {
            assert!(error(winograd(&random(&[1, 32, 5, 5]), &weight, outputs, None, 0, None)).contains("weights"));
        }
        assert!(of(&[0, 0, 3, 3]).contains("multiples of 16"));
        assert!(
            error(winograd(&random(&[1, 32, 5, 5]), &random(&[36, 1, 32, 8]), 16, None, 0, None)).contains("weights")
        );
        let bias = random(&[8]);
        assert!(error(winograd(&random(&[1, 32, 5, 5]), &weight, 16, Some(&bias), 0, None)).contains("bias"));
    }
}
