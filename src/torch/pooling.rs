//! Pooling of pictures whose channels lie next to each other in memory, on the CPU, where ATen takes one thread or passes over memory
//! more often.

use std::ptr;

use tch::Tensor;

use super::kernels::{one_tensor, two_tensors};
use super::{Moves, OperatorError, ffi};

/// The maxima of `[N, C, H, W]` over windows of that height and width, and their places in their windows for [`max_pool_gradient`]. Float32 or
/// bfloat16. NaN is the largest.
///
/// # Errors
/// Another dtype or device, a dilation, windows of more than 255 places, more than half of them padding, a picture that is smaller, out of
/// memory.
pub fn max_pool(input: &Tensor, kernel: [i64; 2], moves: &Moves) -> Result<(Tensor, Tensor), OperatorError> {
    two_tensors("max_pool", |maxima, places, error| {
        // SAFETY: the tensor is alive, `moves` is laid out as its namesake in moves.h, and the places are ours to write.
        unsafe { ffi::camlens_max_pool(input.as_ptr(), kernel.as_ptr(), ptr::from_ref(moves), maxima, places, error) }
    })
}

/// The gradient to an input of `size` of [`max_pool`], from that of its result.
///
/// # Errors
/// Another dtype or device, a shape that the windows do not give, places of another shape, out of memory.
pub fn max_pool_gradient(
    gradient: &Tensor,
    places: &Tensor,
    kernel: [i64; 2],
    size: [i64; 4],
    moves: &Moves,
) -> Result<Tensor, OperatorError> {
    one_tensor("max_pool_gradient", |result, error| {
        // SAFETY: the tensors are alive, `moves` is laid out as its namesake in moves.h, and the places are ours to write.
        unsafe {
            ffi::camlens_max_pool_gradient(
                gradient.as_ptr(),
                places.as_ptr(),
                kernel.as_ptr(),
                size.as_ptr(),
                ptr::from_ref(moves),
                result,
                error,
            )
        }
    })
}

/// The mean of each channel, `[N, C, 1, 1]`, of float32 or bfloat16.
///
/// # Errors
/// Another dtype or device, no pixels, out of memory.
pub fn mean_of_pixels(input: &Tensor) -> Result<Tensor, OperatorError> {
    one_tensor("mean_of_pixels", |result, error| {
        // SAFETY: the tensor is alive, and the places are ours to write.
        unsafe { ffi::camlens_mean_of_pixels(input.as_ptr(), result, error) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::channels_last;

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        // Few different numbers, so that maxima are found several times.
        channels_last(&(Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 2.0).round().to_kind(kind)).unwrap()
    }

    proptest! {
        #[test]
        fn maxima_and_their_gradient_are_those_of_aten(
            shape in [1..3i64, 1..40i64, 1..12i64, 1..12i64],
            axes in [(1..5i64, 1..4i64, any::<bool>()), (1..5i64, 1..4i64, any::<bool>())],
            is_bfloat16 in any::<bool>(),
            has_nan in any::<bool>(),
        ) {
            let kind = if is_bfloat16 { Kind::BFloat16 } else { Kind::Float };
            let kernel = [axes[0].0.min(shape[2]), axes[1].0.min(shape[3])];
            let padding = [0, 1].map(|axis| if axes[axis].2 { kernel[axis] / 2 } else { 0 });
            let moves = Moves { stride: [axes[0].1, axes[1].1], padding, dilation: [1, 1] };
            let input = random(&shape, kind);
            if has_nan {
                let _ = input.get(0).get(0).get(0).get(0).fill_(f64::NAN);
            }
            let leaf = input.detach().set_requires_grad(true);
            let expected = leaf.max_pool2d(kernel, moves.stride, padding, [1, 1], false);
            let (found, places) = max_pool(&input, kernel, &moves).unwrap();
            let equal = |a: &Tensor, b: &Tensor| a.nan_to_num(7.0, None, None).equal(&b.nan_to_num(7.0, None, None));
            prop_assert!(equal(&found, &expected.detach()));
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
            let gradient = random(&expected.size(), kind);
            let sum = (&expected.nan_to_num(0.0, None, None) * 0.0 + &expected) * &gradient;
            let expected = Tensor::run_backward(&[sum.sum(Kind::Float)], &[&leaf], false, false).remove(0);
            let found = max_pool_gradient(&gradient, &places, kernel, shape, &moves).unwrap();
            // Whole numbers: sums are exact in any order.
            prop_assert!(found.equal(&expected));
        }

        #[test]
        fn means_are_those_of_aten(shape in [1..3i64, 1..600i64, 1..9i64, 1..9i64], is_channels_last in any::<bool>()) {
            let input = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let input = if is_channels_last { channels_last(&input).unwrap() } else { input };
            let found = mean_of_pixels(&input).unwrap();
            prop_assert_eq!(found.size(), [shape[0], shape[1], 1, 1]);
            let mean = |numbers: &Tensor| numbers.mean_dim([2i64, 3].as_slice(), true, Kind::Double);
            // Sums may cancel: errors are relative to what is summed.
            let error = (found.to_kind(Kind::Double) - mean(&input)).abs() / mean(&input.abs());
            prop_assert!(error.max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let text = |result: Result<(Tensor, Tensor), OperatorError>| result.unwrap_err().to_string();
        let moves = Moves { stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
        let input = random(&[1, 4, 8, 8], Kind::Float);
        assert!(text(max_pool(&input.to_kind(Kind::Double), [2, 2], &moves)).contains("float32"));
        assert!(text(max_pool(&input, [16, 16], &moves)).contains("255"));
        assert!(text(max_pool(&input, [9, 2], &moves)).contains("smaller"));
        assert!(text(max_pool(&input, [2, 2], &Moves { dilation: [2, 1], ..moves })).contains("dilation"));
        assert!(text(max_pool(&input, [2, 2], &Moves { padding: [2, 0], ..moves })).contains("padding"));
        assert!(text(max_pool(&input, [2, 2], &Moves { stride: [0, 1], ..moves })).contains("move"));
        let (maxima, places) = max_pool(&input, [2, 2], &moves).unwrap();
        let back = |gradient: &Tensor, places: &Tensor, size| {
            max_pool_gradient(gradient, places, [2, 2], size, &moves).unwrap_err().to_string()
        };
        assert!(back(&maxima, &places, [1, 4, 12, 8]).contains("shape"));
        assert!(back(&maxima, &places.narrow(2, 0, 2), [1, 4, 8, 8]).contains("places"));
        assert!(mean_of_pixels(&input.get(0)).is_err());
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let moves = Moves { stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
        let none = Tensor::zeros([0, 4, 8, 8], (Kind::Float, Device::Cpu));
        let (maxima, places) = max_pool(&none, [2, 2], &moves).unwrap();
        assert_eq!(maxima.size(), [0, 4, 4, 4]);
        assert_eq!(max_pool_gradient(&maxima, &places, [2, 2], [0, 4, 8, 8], &moves).unwrap().size(), [0, 4, 8, 8]);
        assert_eq!(mean_of_pixels(&none).unwrap().size(), [0, 4, 1, 1]);
    }
}
