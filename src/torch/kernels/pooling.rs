//! Pooling, where ATen takes one thread or more passes over memory. Images are channels-last.

use tch::{Device, Kind, Tensor};

use super::call::run;
use super::convolution::check_gradient;
use super::element::ElementType;
use super::tensor::{View, channels_last, data_mut, empty, empty_channels_last, expect, refused};
use super::{ConvolutionParameters, ffi};
use crate::torch::OperatorError;

/// The largest number of pixels in a window: an index into a window is one byte.
const MOST_PIXELS: i64 = 255;

/// The maxima of `[N, C, H, W]` over windows of this height and width, and for [`max_pool_gradient`] the index of each
/// maximum in its window. Float32 or bfloat16. NaN counts as greatest.
///
/// # Errors
/// Another dtype or device, a dilation, windows of more than 255 pixels or of which more than half is padding,
/// an image smaller than a window, out of memory.
pub fn max_pool(
    input: &Tensor,
    kernel: [i64; 2],
    parameters: &ConvolutionParameters,
) -> Result<(Tensor, Tensor), OperatorError> {
    let (element, size) = images("max_pool", &View::of(input))?;
    let windows = windows("max_pool", element, size, kernel, parameters)?;
    let input = channels_last(input)?;
    let result_size = [size[0], size[1], windows.result_height, windows.result_width];
    let mut maxima = empty_channels_last(result_size, element.kind(), Device::Cpu)?;
    let mut indices = empty_channels_last(result_size, Kind::Uint8, Device::Cpu)?;
    if result_size.contains(&0) {
        return Ok((maxima, indices));
    }
    let (data, to, indices_to) = (View::of(&input).data(), data_mut(&mut maxima), data_mut(&mut indices));
    run("max_pool", |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `windows`; the results are fresh.
        unsafe { ffi::camlens_max_pool(&raw const windows, data, to, indices_to, error) }
    })?;
    Ok((maxima, indices))
}

/// The gradient to the input of [`max_pool`], of `size`, from the gradient of the maxima.
///
/// # Errors
/// Another dtype or device, a shape that the windows do not give, indices of another shape, out of memory.
pub fn max_pool_gradient(
    gradient: &Tensor,
    indices: &Tensor,
    kernel: [i64; 2],
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<Tensor, OperatorError> {
    let given = View::of(gradient);
    let (element, _) = images("max_pool_gradient", &given)?;
    let windows = windows("max_pool_gradient", element, size, kernel, parameters)?;
    check_gradient("max_pool_gradient", &given, element, size[1], kernel, size, parameters)?;
    let found = View::of(indices);
    let fits = found.is_uint8() && found.size() == given.size() && found.is_channels_last();
    expect(fits, "max_pool_gradient", || format!("indices of the gradient's shape {:?} are expected", given.size()))?;
    let gradient = channels_last(gradient)?;
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    if size.contains(&0) {
        return Ok(result);
    }
    let (data, indices, to) = (View::of(&gradient).data(), found.data(), data_mut(&mut result));
    run("max_pool_gradient", |error| {
        // SAFETY: as in `max_pool`; the gradient and the indices have the shape of the windows.
        unsafe { ffi::camlens_max_pool_gradient(&raw const windows, data, indices, to, error) }
    })?;
    Ok(result)
}

/// The mean of each channel, `[N, C, 1, 1]`, of float32 or bfloat16.
///
/// # Errors
/// Another dtype or device, no pixels, out of memory.
pub fn global_average_pool(input: &Tensor) -> Result<Tensor, OperatorError> {
    let (element, [batch, channels, height, width]) = images("global_average_pool", &View::of(input))?;
    expect(height > 0 && width > 0, "global_average_pool", || "images without pixels have no mean".to_owned())?;
    let input = channels_last(input)?;
    let mut result = empty(&[batch, channels, 1, 1], element.kind())?;
    if batch * channels == 0 {
        return Ok(result);
    }
    let (element, data, to) = (element as i32, View::of(&input).data(), data_mut(&mut result));
    run("global_average_pool", |error| {
        // SAFETY: both tensors are live and dense, with these sizes; the result is fresh.
        unsafe { ffi::camlens_global_average_pool(element, data, batch, height * width, channels, to, error) }
    })?;
    Ok(result)
}

fn images(kernel: &str, view: &View<'_>) -> Result<(ElementType, [i64; 4]), OperatorError> {
    let images = view.element_type().zip(view.dimensions());
    images
        .ok_or_else(|| refused(kernel, "images [N, C, H, W] of float32 or bfloat16 on the CPU are expected".to_owned()))
}

fn windows(
    name: &str,
    element: ElementType,
    size: [i64; 4],
    kernel: [i64; 2],
    parameters: &ConvolutionParameters,
) -> Result<ffi::PoolingWindows, OperatorError> {
    expect(parameters.dilation == [1, 1], name, || "no dilation is expected".to_owned())?;
    let is_small = kernel.iter().all(|edge| (1..=MOST_PIXELS).contains(edge)) && kernel[0] * kernel[1] <= MOST_PIXELS;
    let is_covered = (0..2).all(|axis| parameters.padding[axis] <= kernel[axis] / 2);
    expect(is_small && is_covered, name, || {
        format!("a window of at most {MOST_PIXELS} pixels, at most half of it padding, is expected, not {kernel:?}")
    })?;
    let [batch, channels, height, width] = size;
    let [result_height, result_width] = parameters.result_size(name, [height, width], kernel)?;
    expect(result_height > 0 && result_width > 0, name, || format!("the input is smaller than the window: {size:?}"))?;
    Ok(ffi::PoolingWindows {
        element: element as i32,
        batch,
        height,
        width,
        channels,
        kernel,
        parameters: *parameters,
        result_height,
        result_width,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::channels_last;

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        // Few distinct numbers, so that a window has its maximum several times.
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
            let parameters = ConvolutionParameters { stride: [axes[0].1, axes[1].1], padding, dilation: [1, 1] };
            let input = random(&shape, kind);
            if has_nan {
                let _ = input.get(0).get(0).get(0).get(0).fill_(f64::NAN);
            }
            let leaf = input.detach().set_requires_grad(true);
            let expected = leaf.max_pool2d(kernel, parameters.stride, padding, [1, 1], false);
            let (found, indices) = max_pool(&input, kernel, &parameters).unwrap();
            let equal = |a: &Tensor, b: &Tensor| a.nan_to_num(7.0, None, None).equal(&b.nan_to_num(7.0, None, None));
            prop_assert!(equal(&found, &expected.detach()));
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
            let gradient = random(&expected.size(), kind);
            let sum = (&expected.nan_to_num(0.0, None, None) * 0.0 + &expected) * &gradient;
            let expected = Tensor::run_backward(&[sum.sum(Kind::Float)], &[&leaf], false, false).remove(0);
            let found = max_pool_gradient(&gradient, &indices, kernel, shape, &parameters).unwrap();
            // Integers, whose sums are exact in any order.
            prop_assert!(found.equal(&expected));
        }

        #[test]
        fn means_are_those_of_aten(shape in [1..3i64, 1..600i64, 1..9i64, 1..9i64], is_channels_last in any::<bool>()) {
            let input = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let input = if is_channels_last { channels_last(&input).unwrap() } else { input };
            let found = global_average_pool(&input).unwrap();
            prop_assert_eq!(found.size(), [shape[0], shape[1], 1, 1]);
            let mean = |numbers: &Tensor| numbers.mean_dim([2i64, 3].as_slice(), true, Kind::Double);
            // Sums may cancel: errors are relative to the mean of the absolute values.
            let error = (found.to_kind(Kind::Double) - mean(&input)).abs() / mean(&input.abs());
            prop_assert!(error.max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let text = |result: Result<(Tensor, Tensor), OperatorError>| result.unwrap_err().to_string();
        let parameters = ConvolutionParameters { stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
        let input = random(&[1, 4, 8, 8], Kind::Float);
        assert!(text(max_pool(&input.to_kind(Kind::Double), [2, 2], &parameters)).contains("float32"));
        assert!(text(max_pool(&input, [16, 16], &parameters)).contains("255"));
        assert!(text(max_pool(&input, [9, 2], &parameters)).contains("smaller"));
        assert!(
            text(max_pool(&input, [2, 2], &ConvolutionParameters { dilation: [2, 1], ..parameters }))
                .contains("dilation")
        );
        assert!(
            text(max_pool(&input, [2, 2], &ConvolutionParameters { padding: [2, 0], ..parameters }))
                .contains("padding")
        );
        assert!(
            text(max_pool(&input, [2, 2], &ConvolutionParameters { stride: [0, 1], ..parameters })).contains("move")
        );
        let (maxima, indices) = max_pool(&input, [2, 2], &parameters).unwrap();
        let back = |gradient: &Tensor, indices: &Tensor, size| {
            max_pool_gradient(gradient, indices, [2, 2], size, &parameters).unwrap_err().to_string()
        };
        assert!(back(&maxima, &indices, [1, 4, 12, 8]).contains("shape"));
        assert!(back(&maxima, &indices.narrow(2, 0, 2), [1, 4, 8, 8]).contains("indices"));
        assert!(global_average_pool(&input.get(0)).is_err());
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let parameters = ConvolutionParameters { stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
        let none = Tensor::zeros([0, 4, 8, 8], (Kind::Float, Device::Cpu));
        let (maxima, indices) = max_pool(&none, [2, 2], &parameters).unwrap();
        assert_eq!(maxima.size(), [0, 4, 4, 4]);
        assert_eq!(
            max_pool_gradient(&maxima, &indices, [2, 2], [0, 4, 8, 8], &parameters).unwrap().size(),
            [0, 4, 8, 8]
        );
        assert_eq!(global_average_pool(&none).unwrap().size(), [0, 4, 1, 1]);
    }
}
