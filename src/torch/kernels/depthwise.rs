//! Convolutions that treat each channel alone (depthwise convolutions, as in MobileNet, EfficientNet and ConvNeXt), in
//! float32, and in bfloat16 with sums in float32.
//!
//! Such a convolution has few products for each element that it reads, so its time is that of reading, writing and of
//! all that happens around it. The sums of several neighbouring pixels stay in registers while their taps are added,
//! and the epilogue is applied before they leave them. The gradient of a convolution with a stride is computed in as
//! many phases as the stride has positions, each through its own taps: nothing is multiplied with zeros between them.

use std::ptr;

use tch::{Device, Kind, Tensor};

use super::call::run;
use super::convolution::check_gradient;
use super::element::ElementType;
use super::gates::closing;
use super::panels::Bias;
use super::tensor::{View, channels_last, data_mut, empty_channels_last, expect, multiplied_type, refused};
use super::{Bounds, ConvolutionParameters, Gates, ffi};
use crate::torch::OperatorError;

/// The weight `[channels, 1, h, w]` of a convolution, as [`depthwise`] and [`depthwise_input_gradient`] read it: `[h,
/// w, channels]`, float32. The dtype is one that [`has_gemm_kernels`](super::has_gemm_kernels).
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn depthwise_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    let shape = view.dimensions::<4>().filter(|size| size[1] == 1 && view.elements() > 0);
    shape.ok_or_else(|| {
        refused("depthwise_weight", format!("a weight [channels, 1, h, w] is expected, not {:?}", view.size()))
    })?;
    multiplied_type("depthwise_weight", &view)?;
    let _guard = tch::no_grad_guard();
    Ok(weight.f_squeeze_dim(1)?.f_permute([1, 2, 0])?.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// The convolution of `[N, channels, H, W]`, float32 or bfloat16, with a [weight](depthwise_weight), within `bounds`;
/// with `has_gates`, the gates of these bounds too. The result is channels-last.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the kernel,
/// out of memory.
pub fn depthwise(
    input: &Tensor,
    weight: &Tensor,
    parameters: &ConvolutionParameters,
    bias: Option<&Tensor>,
    bounds: Option<Bounds>,
    has_gates: bool,
) -> Result<(Tensor, Option<Gates>), OperatorError> {
    let name = "depthwise";
    let given = View::of(input);
    let shape = given.dimensions::<4>();
    let [batch, channels, height, width] =
        shape.ok_or_else(|| refused(name, format!("an input [N, C, H, W] is expected, not {:?}", given.size())))?;
    let (element, _) = multiplied_type(name, &given)?;
    let packed = View::of(weight);
    let kernel = kernel_of(name, &packed, channels)?;
    let [result_height, result_width] = parameters.result_size(name, [height, width], kernel)?;
    expect(result_height > 0 && result_width > 0, name, || {
        format!("the input is smaller than the kernel: {:?}", given.size())
    })?;
    let bias = Bias::exact(name, bias, channels)?;
    let mut result = empty_channels_last([batch, channels, result_height, result_width], element.kind(), Device::Cpu)?;
    let mut gates = if has_gates && bounds.is_some() { Some(Gates::empty(&View::of(&result))?) } else { None };
    if batch == 0 {
        return Ok((result, gates.map(Gates::of_bits)));
    }
    let input = channels_last(input)?;
    let [low, high] = bounds.map_or([f64::NAN; 2], closing).map(|limit| limit as f32);
    let call = ffi::DepthwiseConvolution {
        element: element as i32,
        is_gradient: false,
        source: View::of(&input).data(),
        batch,
        source_height: height,
        source_width: width,
        channels,
        weight: packed.data(),
        kernel,
        parameters: *parameters,
        bias: bias.data(),
        low,
        high,
        target: data_mut(&mut result),
        target_height: result_height,
        target_width: result_width,
        gates: gates.as_mut().map_or(ptr::null_mut(), data_mut),
        gate_low: element.rounded(low),
        gate_high: element.rounded(high),
    };
    run(name, |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result and the
        // gates are fresh.
        unsafe { ffi::camlens_depthwise(&raw const call, error) }
    })?;
    Ok((result, gates.map(Gates::of_bits)))
}

/// The gradient of [`depthwise`] without bounds to its input of `size`, `[N, C, H, W]`. The result is channels-last.
///
/// # Errors
/// Another dtype or device, a gradient that the convolution does not give, other numbers of channels, out of memory.
pub fn depthwise_input_gradient(
    gradient: &Tensor,
    weight: &Tensor,
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<Tensor, OperatorError> {
    let name = "depthwise_input_gradient";
    let given = View::of(gradient);
    let (element, _) = multiplied_type(name, &given)?;
    let packed = View::of(weight);
    let kernel = kernel_of(name, &packed, size[1])?;
    let [batch, channels, source_height, source_width] =
        check_gradient(name, &given, element, size[1], kernel, size, parameters)?;
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    if size.contains(&0) {
        return Ok(result);
    }
    let gradient = channels_last(gradient)?;
    let call = ffi::DepthwiseConvolution {
        element: element as i32,
        is_gradient: true,
        source: View::of(&gradient).data(),
        batch,
        source_height,
        source_width,
        channels,
        weight: packed.data(),
        kernel,
        parameters: *parameters,
        bias: ptr::null(),
        low: f32::NAN,
        high: f32::NAN,
        target: data_mut(&mut result),
        target_height: size[2],
        target_width: size[3],
        gates: ptr::null_mut(),
        gate_low: f32::NAN,
        gate_high: f32::NAN,
    };
    run(name, |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_depthwise(&raw const call, error) }
    })?;
    Ok(result)
}

/// The height and width of the kernel.
fn kernel_of(name: &str, weight: &View<'_>, channels: i64) -> Result<[i64; 2], OperatorError> {
    let fits = weight.dimensions::<3>().filter(|size| {
        size[2] == channels
            && weight.is_contiguous()
            && weight.element_type() == Some(ElementType::Float32)
            && weight.elements() > 0
    });
    let [height, width, _] = fits.ok_or_else(|| {
        refused(name, format!("a weight [h, w, {channels}] of float32 is expected, not {:?}", weight.size()))
    })?;
    Ok([height, width])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::torch::kernels::gates::MASK_BITS;
    use crate::torch::{has_gemm_kernels, relative_error};

    const BY_ONE: ConvolutionParameters = ConvolutionParameters { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn double(tensor: &Tensor) -> Tensor {
        tensor.to_kind(Kind::Double)
    }

    #[derive(Debug, Clone)]
    struct Case {
        size: [i64; 4],
        kernel: [i64; 2],
        parameters: ConvolutionParameters,
    }

    impl Case {
        fn weight(&self) -> Tensor {
            random(&[self.size[1], 1, self.kernel[0], self.kernel[1]])
        }

        /// What ATen gives in float64.
        fn sums(&self, input: &Tensor, weight: &Tensor) -> Tensor {
            let ConvolutionParameters { stride, padding, dilation } = self.parameters;
            double(input).conv2d(&double(weight), None::<Tensor>, stride, padding, dilation, self.size[1])
        }

        fn gradient(&self, gradient: &Tensor, weight: &Tensor) -> Tensor {
            let input = double(&Tensor::zeros(self.size, (Kind::Float, Device::Cpu))).set_requires_grad(true);
            let sums = (self.sums(&input, weight) * double(gradient)).sum(Kind::Double);
            Tensor::run_backward(&[sums], &[input], false, false).remove(0)
        }
    }

    prop_compose! {
        /// Kernels that reach beyond the input on all sides; channels that fill whole vectors and words, and others.
        fn case()(
            batch in 1..3i64,
            channels in prop_oneof![1..20i64, 60..70i64, Just(128), Just(144), Just(200)],
            size in [1..18i64, 1..24i64],
            kernel in [1..6i64, 1..6i64],
            stride in [1..4i64, 1..4i64],
            dilation in [1..3i64, 1..3i64],
            padding in [0..5i64, 0..5i64],
        ) -> Case {
            let least = [0, 1].map(|axis| dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis]);
            let size = [batch, channels, size[0].max(least[0]), size[1].max(least[1])];
            Case { size, kernel, parameters: ConvolutionParameters { stride, padding, dilation } }
        }
    }

    proptest! {
        #[test]
        fn it_is_the_sum_over_the_kernel(
            case in case(),
            has_bias in any::<bool>(),
            high in prop::option::of(0.5..1.5f64),
            is_channels_last in any::<bool>(),
        ) {
            let input = random(&case.size);
            let input = if is_channels_last { crate::torch::channels_last(&input).unwrap() } else { input };
            let (weight, bias) = (case.weight(), has_bias.then(|| random(&[case.size[1]])));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let sums = case.sums(&input, &weight);
            let sums = bias.as_ref().map_or(sums.shallow_clone(), |bias| &sums + double(bias).view([1, -1, 1, 1]));
            let expected = bounds.map_or(sums.shallow_clone(), |b| sums.clamp(b.low, b.high.unwrap()));
            let packed = depthwise_weight(&weight).unwrap();
            let (found, gates) =
                depthwise(&input, &packed, &case.parameters, bias.as_ref(), bounds, true).unwrap();
            prop_assert_eq!(found.size(), expected.size());
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
            let error = (double(&found) - &expected).abs().max().double_value(&[]);
            prop_assert!(error < 3e-5, "{}", error);
            prop_assert_eq!(gates.is_some(), bounds.is_some());
            if let (Some(gates), Some(bounds)) = (gates, bounds) {
                let gradient = crate::torch::channels_last(&random(&found.size())).unwrap();
                let one = Gates::of(&found, bounds).unwrap().unwrap();
                let passed = |gates: &Gates| gates.pass(&[gradient.shallow_clone()], false).unwrap();
                prop_assert!(passed(&gates).equal(&passed(&one)));
            }
        }

        #[test]
        fn its_gradient_is_that_of_the_sum(case in case()) {
            let weight = case.weight();
            let gradient = random(&case.sums(&Tensor::zeros(case.size, (Kind::Float, Device::Cpu)), &weight).size());
            let expected = case.gradient(&gradient, &weight);
            let packed = depthwise_weight(&weight).unwrap();
            let found = depthwise_input_gradient(&gradient, &packed, case.size, &case.parameters).unwrap();
            prop_assert_eq!(found.size(), expected.size());
            let error = (double(&found) - &expected).abs().max().double_value(&[]);
            prop_assert!(error < 3e-5, "{}", error);
        }
    }

    /// 3 × 3 with stride 2 and 7 × 7, as networks have them: large enough for whole blocks of pixels and channels.
    fn of_networks() -> [Case; 3] {
        let same = |kernel: i64, stride: i64| ConvolutionParameters {
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1, 1],
        };
        [
            Case { size: [2, 96, 57, 56], kernel: [3, 3], parameters: same(3, 2) },
            Case { size: [1, 144, 28, 29], kernel: [5, 5], parameters: same(5, 1) },
            Case { size: [1, 320, 14, 14], kernel: [7, 7], parameters: same(7, 1) },
        ]
    }

    #[test]
    fn any_number_of_threads_gives_the_same() {
        let before = tch::get_num_threads();
        for case in of_networks() {
            let (input, weight) = (random(&case.size), case.weight());
            let packed = depthwise_weight(&weight).unwrap();
            let expected = case.sums(&input, &weight);
            let gradient = random(&expected.size());
            let expected_gradient = case.gradient(&gradient, &weight);
            let found = [1, 3, 16].map(|threads| {
                tch::set_num_threads(threads);
                let (forward, _) = depthwise(&input, &packed, &case.parameters, None, None, false).unwrap();
                (forward, depthwise_input_gradient(&gradient, &packed, case.size, &case.parameters).unwrap())
            });
            assert!(relative_error(&found[0].0, &expected) < 3e-7);
            assert!(relative_error(&found[0].1, &expected_gradient) < 3e-7);
            for other in &found[1..] {
                assert!(other.0.equal(&found[0].0) && other.1.equal(&found[0].1));
            }
        }
        tch::set_num_threads(before);
    }

    #[test]
    fn bfloat16_is_summed_in_float32() {
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        let case = Case {
            size: [1, 72, 13, 14],
            kernel: [3, 3],
            parameters: ConvolutionParameters { stride: [2, 2], padding: [1, 1], dilation: [1, 1] },
        };
        let weight = half(case.weight());
        if !has_gemm_kernels(Kind::BFloat16) {
            let refused = depthwise_weight(&weight).unwrap_err().to_string();
            assert!(refused.contains("instructions"), "{refused}");
            return;
        }
        let (input, packed) = (half(random(&case.size)), depthwise_weight(&weight).unwrap());
        let expected = case.sums(&input, &weight);
        let (found, _) = depthwise(&input, &packed, &case.parameters, None, None, false).unwrap();
        let gradient = half(random(&found.size()));
        let expected_gradient = case.gradient(&gradient, &weight);
        let of_input = depthwise_input_gradient(&gradient, &packed, case.size, &case.parameters).unwrap();
        for (found, expected) in [(found, expected), (of_input, expected_gradient)] {
            assert_eq!(found.kind(), Kind::BFloat16);
            // As exact as bfloat16 rounding.
            assert!(relative_error(&found, &half(expected.shallow_clone()).to_kind(Kind::Double)) < 1e-3);
        }
    }

    #[test]
    fn nan_stays_where_it_is_read_and_nowhere_else() {
        let input = random(&[1, MASK_BITS, 5, 5]);
        let _ = input.get(0).get(3).get(0).get(0).fill_(f64::NAN);
        let weight = depthwise_weight(&random(&[MASK_BITS, 1, 3, 3])).unwrap();
        let parameters = ConvolutionParameters { padding: [1, 1], ..BY_ONE };
        let bounds = Some(Bounds { low: 0.0, high: Some(6.0) });
        let (found, _) = depthwise(&input, &weight, &parameters, None, bounds, false).unwrap();
        let found = found.isnan();
        assert_eq!(found.sum(Kind::Int64).int64_value(&[]), 4);
        assert_eq!(found.get(0).get(3).narrow(0, 0, 2).narrow(1, 0, 2).sum(Kind::Int64).int64_value(&[]), 4);
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let error = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(error(depthwise_weight(&random(&[8, 2, 3, 3]))).contains("[channels, 1, h, w]"));
        assert!(error(depthwise_weight(&random(&[8, 1, 3, 3]).to_kind(Kind::Double))).contains("instructions"));
        let weight = depthwise_weight(&random(&[8, 1, 3, 3])).unwrap();
        let with = |input: &Tensor, weight: &Tensor, parameters: &ConvolutionParameters| {
            error(depthwise(input, weight, parameters, None, None, false).map(|(result, _)| result))
        };
        assert!(with(&random(&[1, 9, 4, 4]), &weight, &BY_ONE).contains("[h, w, 9]"));
        assert!(with(&random(&[1, 8, 4]), &weight, &BY_ONE).contains("[N, C, H, W]"));
        assert!(with(&random(&[1, 8, 2, 4]), &weight, &BY_ONE).contains("smaller"));
        assert!(with(&random(&[1, 8, 4, 4]).to_kind(Kind::Double), &weight, &BY_ONE).contains("instructions"));
        let turned = weight.transpose(0, 2);
        assert!(with(&random(&[1, 3, 9, 9]), &turned, &BY_ONE).contains("expected"));
        let still = ConvolutionParameters { stride: [0, 1], ..BY_ONE };
        assert!(with(&random(&[1, 8, 4, 4]), &weight, &still).contains("move"));
        let bias = random(&[9]);
        let given = random(&[1, 8, 4, 4]);
        let found = depthwise(&given, &weight, &BY_ONE, Some(&bias), None, false).map(|(result, _)| result);
        assert!(error(found).contains("bias"));
        let of = |size| error(depthwise_input_gradient(&given, &weight, size, &BY_ONE));
        assert!(of([1, 8, 9, 6]).contains("shape"));
        assert!(of([1, 7, 6, 6]).contains("[h, w, 7]"));
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let weight = depthwise_weight(&random(&[8, 1, 3, 3])).unwrap();
        let bounds = Some(Bounds::RELU);
        let (found, gates) = depthwise(&random(&[0, 8, 4, 4]), &weight, &BY_ONE, None, bounds, true).unwrap();
        assert_eq!(found.size(), [0, 8, 2, 2]);
        assert!(gates.is_some());
        let gradient = random(&[0, 8, 2, 2]);
        assert_eq!(depthwise_input_gradient(&gradient, &weight, [0, 8, 4, 4], &BY_ONE).unwrap().size(), [0, 8, 4, 4]);
    }
}
