//! Convolutions that skip the zeros of their input, and input gradients that skip the zeros of the result's gradient.
//!
//! About half of a rectifier's results are zero. The gradient that passes back through the rectifier is zero in the
//! same elements, and, with guided backpropagation, where it was negative: about seven in ten elements of a ResNet's
//! gradients are zero, nine in ten above a max pooling.
//!
//! A bit mask marks the nonzero elements of each pixel, and only these are multiplied. The pixels are processed in
//! blocks, so that the weights in use stay in a core's L1 cache. A 1 × 1 convolution of float32 with few zeros runs as
//! a dense matrix product, unless a mask is [pending](PendingMask). Weights must be finite: whether a zero is skipped
//! or multiplied is not specified, and 0 · ∞ is NaN.

use std::ptr;

use tch::{Device, Tensor};

use super::call::run;
use super::convolution::check_gradient;
use super::panels::{Bias, pack_sparse};
use super::tensor::{View, channels_last, data_mut, empty_channels_last, expect, multiplied_type, refused};
use super::{Bounds, ConvolutionParameters, PendingMask, ffi};
use crate::torch::OperatorError;

/// Packs the weight `[outputs, inputs, h, w]` of a convolution for [`sparse_convolution`]. The packed weight is
/// `[h, w, panels of outputs, inputs, panel width]`. [`has_gemm_kernels`](super::has_gemm_kernels) must hold for the
/// dtype.
///
/// # Errors
/// Another shape or dtype, a dtype that the processor has no instructions for, out of memory.
pub fn sparse_forward_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    pack(weight, [2, 3, 1, 0])
}

/// Packs the weight `[outputs, inputs, h, w]` of a convolution for [`sparse_input_gradient`]. The packed weight is
/// `[h, w, panels of inputs, outputs, panel width]`.
///
/// # Errors
/// Those of [`sparse_forward_weight`].
pub fn sparse_backward_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    pack(weight, [2, 3, 0, 1])
}

/// Packs the weight with its axes in the order `order`; the last axis is split into panels.
fn pack(weight: &Tensor, order: [i64; 4]) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    expect(view.size().len() == 4 && view.elements() > 0, "sparse_weight", || {
        format!("a weight [outputs, inputs, h, w] is expected, not {:?}", view.size())
    })?;
    let _guard = tch::no_grad_guard();
    pack_sparse("sparse_weight", &weight.f_permute(order)?)
}

/// Convolves `input`, `[N, inputs, H, W]`, with a [packed weight](sparse_forward_weight) of the same dtype, adds
/// `bias`, `[outputs]` of float32, and clamps to `bounds`. Accumulates in float32. The result, `[N, outputs, h, w]`, is
/// channels-last.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, numbers of channels that do not match the weight, an input
/// smaller than the kernel, out of memory.
pub fn sparse_convolution(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    parameters: &ConvolutionParameters,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let view = View::of(input);
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type("sparse_convolution", &packed)?;
    let shape = view.dimensions::<4>().filter(|_| view.element_type() == Some(element));
    let [batch, inputs, height, width] = shape.ok_or_else(|| {
        refused(
            "sparse_convolution",
            format!("an input [N, inputs, H, W] of {} on the CPU is expected", element.name()),
        )
    })?;
    let kernel = kernel_of("sparse_convolution", &packed, panel_width, outputs, inputs)?;
    let [result_height, result_width] = parameters.result_size("sparse_convolution", [height, width], kernel)?;
    expect(result_height > 0 && result_width > 0, "sparse_convolution", || {
        format!("the input is smaller than the kernel: {:?}", view.size())
    })?;
    let size = [batch, outputs, result_height, result_width];
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    if size.contains(&0) {
        return Ok(result);
    }
    let bias = Bias::padded("sparse_convolution", bias, outputs, panel_width)?;
    let input = channels_last(input)?;
    let [low, high] = Bounds::limits(bounds).map(|limit| limit as f32);
    let call = ffi::SparseConvolution {
        element: element as i32,
        is_gradient: false,
        source: View::of(&input).data(),
        batch,
        source_height: height,
        source_width: width,
        depth: inputs,
        weight: packed.data(),
        is_transposed: false,
        kernel,
        parameters: *parameters,
        bias: bias.data(),
        low,
        high,
        gates: ptr::null(),
        is_guided: false,
        target: data_mut(&mut result),
        target_height: result_height,
        target_width: result_width,
        columns: outputs,
    };
    run("sparse_convolution", |error| {
        // SAFETY: all tensors are live, contiguous in the layouts that sparse.h names, and of the sizes in `call`,
        // which were checked above. The result was allocated here, so nothing else reads it.
        unsafe { ffi::camlens_sparse_convolution(&raw const call, error) }
    })?;
    Ok(result)
}

/// Computes the gradient with respect to a convolution's input of shape `size`, `[N, inputs, H, W]`, from `gradient`,
/// the gradient with respect to its result, `[N, outputs, h, w]` of the weight's dtype. A [pending](PendingMask) mask
/// is applied to `gradient` first. Accumulates in float32. The result is channels-last.
///
/// `weight` comes from [`sparse_backward_weight`], or, with `is_forward_weight`, from [`sparse_forward_weight`]. The
/// forward weight must be float32. It is transposed while it is read: that is slower for few pixels, but saves the
/// memory of a second packed weight.
///
/// # Errors
/// Another dtype or device, gates of another shape, a gradient of a shape that the convolution does not give, a weight
/// packed for other numbers of channels, out of memory.
pub fn sparse_input_gradient(
    gradient: &Tensor,
    pending: Option<PendingMask<'_>>,
    weight: &Tensor,
    is_forward_weight: bool,
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<Tensor, OperatorError> {
    let name = "sparse_input_gradient";
    let view = View::of(gradient);
    let [_, outputs, _, _] = view
        .dimensions::<4>()
        .ok_or_else(|| refused(name, format!("a gradient [N, outputs, h, w] is expected, not {:?}", view.size())))?;
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type(name, &packed)?;
    let inputs = size[1];
    let [panel_channels, row_channels] = if is_forward_weight { [outputs, inputs] } else { [inputs, outputs] };
    let kernel = kernel_of(name, &packed, panel_width, panel_channels, row_channels)?;
    expect(!is_forward_weight || ffi::camlens_sparse_can_transpose(element as i32), name, || {
        format!("a weight of {} is not transposed", element.name())
    })?;
    let [batch, _, height, width] = check_gradient(name, &view, element, outputs, kernel, size, parameters)?;
    let (gates, is_guided) = PendingMask::bits(pending, name, &view)?;
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    if size.contains(&0) {
        return Ok(result);
    }
    let gradient = channels_last(gradient)?;
    let call = ffi::SparseConvolution {
        element: element as i32,
        is_gradient: true,
        source: View::of(&gradient).data(),
        batch,
        source_height: height,
        source_width: width,
        depth: outputs,
        weight: packed.data(),
        is_transposed: is_forward_weight,
        kernel,
        parameters: *parameters,
        bias: ptr::null(),
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        gates,
        is_guided,
        target: data_mut(&mut result),
        target_height: size[2],
        target_width: size[3],
        columns: inputs,
    };
    run(name, |error| {
        // SAFETY: as in `sparse_convolution`. The gates are null, or were checked against the gradient's shape.
        unsafe { ffi::camlens_sparse_convolution(&raw const call, error) }
    })?;
    Ok(result)
}

/// The height and width of the kernel of a packed weight `[h, w, panels, rows, panel width]`, whose panels hold
/// `panel_channels` channels side by side and which has one row per channel of the other side, `row_channels` in all.
///
/// # Errors
/// A weight that is packed otherwise, or for other numbers of channels.
fn kernel_of(
    name: &str,
    packed: &View<'_>,
    panel_width: i64,
    panel_channels: i64,
    row_channels: i64,
) -> Result<[i64; 2], OperatorError> {
    let panels = (panel_channels + panel_width - 1) / panel_width;
    let fits = packed.dimensions::<5>().filter(|&[_, _, n, _, width]| {
        n == panels && width == panel_width && packed.is_contiguous() && packed.elements() > 0
    });
    let [height, width, _, rows, _] = fits.ok_or_else(|| {
        refused(name, format!("a weight in panels for {panel_channels} channels is expected, not {:?}", packed.size()))
    })?;
    expect(rows == row_channels, name, || {
        format!("a weight for {row_channels} other channels is expected, not {:?}", packed.size())
    })?;
    Ok([height, width])
}

/// Random convolutions and their input gradients in float64, for the tests of all kernels.
#[cfg(test)]
pub(super) mod reference {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::{Gates, channels_last};

    /// A convolution, and a gradient with respect to its result.
    #[derive(Debug)]
    pub struct Case {
        /// `[N, outputs, h, w]`.
        pub gradient: Tensor,
        /// `[outputs, inputs, kernel height, kernel width]`.
        pub weight: Tensor,
        /// The input's shape, `[N, inputs, H, W]`.
        pub size: [i64; 4],
        pub parameters: ConvolutionParameters,
    }

    /// Gates of the case's gradient; about half of them are open.
    pub fn gates(case: &Case) -> Gates {
        let result = channels_last(&random(&case.gradient.size())).unwrap();
        Gates::of(&result, Bounds::RELU).unwrap().unwrap()
    }

    /// The case with a gradient that has passed the pending gates.
    pub fn passed(case: Case, pending: PendingMask<'_>) -> Case {
        let gradient = pending.gates.pass(&[case.gradient.shallow_clone()], pending.guided).unwrap();
        Case { gradient, ..case }
    }

    pub fn double(tensor: &Tensor) -> Tensor {
        tensor.to_kind(Kind::Double)
    }

    pub fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Normal random numbers, of which about the share `density` is nonzero.
    pub fn sparse(shape: &[i64], density: f64) -> Tensor {
        random(shape) * Tensor::rand(shape, (Kind::Float, Device::Cpu)).lt(density)
    }

    /// `[input size, kernel size, stride, padding, dilation]` along one axis, with at least one result.
    fn axis(most_dilation: i64) -> impl Strategy<Value = [i64; 5]> {
        (1..=5i64, 1..=3i64, 0..=4i64, 1..=most_dilation, 0..=19i64).prop_map(
            |(kernel, stride, padding, dilation, surplus)| {
                let least = (dilation * (kernel - 1) + 1 - 2 * padding).max(1);
                [least + surplus, kernel, stride, padding, dilation]
            },
        )
    }

    /// Cases with at most `most_inputs` input channels. Half of them are 1 × 1 convolutions of stride 1, which run as
    /// matrix products.
    pub fn case(most_inputs: i64, most_dilation: i64) -> impl Strategy<Value = Case> {
        let density = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
        let axes = [axis(most_dilation), axis(most_dilation)];
        (1..4i64, 1..150i64, 1..=most_inputs, axes, density, any::<[bool; 2]>()).prop_map(
            |(rows, outputs, inputs, axes, density, [is_channels_last, is_product])| {
                let axes = if is_product { axes.map(|axis| [axis[0], 1, 1, 0, 1]) } else { axes };
                let of = |i: usize| axes.map(|axis| axis[i]);
                let parameters = ConvolutionParameters { stride: of(2), padding: of(3), dilation: of(4) };
                let [height, width] = axes.map(|[size, kernel, stride, padding, dilation]| {
                    (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
                });
                let gradient = sparse(&[rows, outputs, height, width], density);
                let gradient = if is_channels_last { channels_last(&gradient).unwrap() } else { gradient };
                let weight = random(&[outputs, inputs, axes[0][1], axes[1][1]]);
                Case { gradient, weight, size: [rows, inputs, axes[0][0], axes[1][0]], parameters }
            },
        )
    }

    /// The input gradient in float64, and its scale for [`error`]: for each element, 1 plus the sum of the absolute
    /// values of the products that the element is the sum of.
    pub fn expected(case: &Case) -> (Tensor, Tensor) {
        let Case { gradient, weight, size, parameters } = case;
        let input_gradient = |gradient: &Tensor, weight: &Tensor| {
            let input = Tensor::zeros(size, (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let result =
                input.conv2d(weight, None::<Tensor>, parameters.stride, parameters.padding, parameters.dilation, 1);
            Tensor::run_backward(&[(result * gradient).sum(Kind::Double)], &[&input], false, false).remove(0)
        };
        let (gradient, weight) = (double(gradient), double(weight));
        (input_gradient(&gradient, &weight), input_gradient(&gradient.abs(), &weight.abs()) + 1.0)
    }

    /// The largest error of an element, relative to the element's scale, as [`expected`] gives both.
    pub fn error(found: &Tensor, (expected, scale): &(Tensor, Tensor)) -> f64 {
        ((found.to_kind(Kind::Double) - expected).abs() / scale).max().double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::reference::{Case, case, error, expected, gates, passed, random, sparse};
    use super::*;
    use crate::torch::{Gates, channels_last, has_gemm_kernels};

    fn gradient_of(case: &Case, pending: Option<PendingMask<'_>>, weight: &Tensor, is_forward_weight: bool) -> Tensor {
        let Case { gradient, size, parameters, .. } = case;
        sparse_input_gradient(gradient, pending, weight, is_forward_weight, *size, parameters).unwrap()
    }

    proptest! {
        #[test]
        fn the_input_gradient_agrees_with_float64(case in case(150, 2)) {
            let weight = sparse_backward_weight(&case.weight).unwrap();
            let found = gradient_of(&case, None, &weight, false);
            prop_assert_eq!(found.size(), case.size);
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn the_input_gradient_from_a_forward_weight_agrees_with_float64(
            case in case(150, 2),
            has_gates in any::<bool>(),
            guided in any::<bool>(),
        ) {
            let weight = sparse_forward_weight(&case.weight).unwrap();
            let gates = gates(&case);
            let pending = has_gates.then_some(PendingMask { gates: &gates, guided });
            let found = gradient_of(&case, pending, &weight, true);
            let case = match pending {
                Some(pending) => passed(case, pending),
                None => case,
            };
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn pending_gates_are_applied_to_the_gradient(case in case(150, 2), guided in any::<bool>()) {
            let (weight, gates) = (sparse_backward_weight(&case.weight).unwrap(), gates(&case));
            let pending = PendingMask { gates: &gates, guided };
            let found = gradient_of(&case, Some(pending), &weight, false);
            let error = error(&found, &expected(&passed(case, pending)));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn the_convolution_agrees_with_float64(
            case in case(150, 2),
            density in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
            has_bias in any::<bool>(),
            high in prop::option::of(0.5..1.5f64),
        ) {
            let Case { gradient, weight, size, parameters } = case;
            let (input, outputs) = (sparse(&size, density), weight.size()[0]);
            let bias = has_bias.then(|| random(&[outputs]));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let packed = sparse_forward_weight(&weight).unwrap();
            let found = sparse_convolution(&input, &packed, outputs, bias.as_ref(), &parameters, bounds).unwrap();
            prop_assert_eq!(found.size(), gradient.size());
            let convolved = |input: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
                let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let ConvolutionParameters { stride, padding, dilation } = parameters;
                double(input).conv2d(&double(weight), bias.map(double), stride, padding, dilation, 1)
            };
            let sum = convolved(&input, &weight, bias.as_ref());
            let expected = bounds.map_or(sum.shallow_clone(), |b| sum.clamp(b.low, b.high.unwrap()));
            let error = error(&found, &(expected, convolved(&input.abs(), &weight.abs(), None) + 1.0));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    const UNIT_STRIDE: ConvolutionParameters =
        ConvolutionParameters { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    /// A processor without instructions for bfloat16 refuses to pack a weight.
    fn assert_refused(weight: Result<Tensor, OperatorError>) {
        let error = weight.unwrap_err().to_string();
        assert!(error.contains("instructions"), "{error}");
    }

    #[test]
    fn input_gradients_of_bfloat16_accumulate_in_float32() {
        if !has_gemm_kernels(Kind::BFloat16) {
            return assert_refused(sparse_backward_weight(&random(&[64, 48, 1, 1]).to_kind(Kind::BFloat16)));
        }
        for (outputs, inputs, kernel, density) in
            [(64, 48, 1, 0.3), (131, 200, 3, 0.3), (66, 3, 3, 0.1), (64, 64, 1, 1.0), (1, 5, 1, 1.0)]
        {
            let bfloat16 = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let weight = bfloat16(random(&[outputs, inputs, kernel, kernel]));
            let gradient = bfloat16(sparse(&[2, outputs, 9, 10], density));
            let size = [2, inputs, 8 + kernel, 9 + kernel];
            let found = sparse_input_gradient(
                &gradient,
                None,
                &sparse_backward_weight(&weight).unwrap(),
                false,
                size,
                &UNIT_STRIDE,
            )
            .unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let (expected, scale) = expected(&Case { gradient, weight, size, parameters: UNIT_STRIDE });
            // Rounding the result to bfloat16 costs up to 1/256 of it; the rest is the sum's error.
            let error = (found.to_kind(Kind::Double) - &expected).abs() - expected.abs() / 256;
            assert!((error / scale).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn pending_gates_are_applied_to_a_gradient_of_bfloat16() {
        if !has_gemm_kernels(Kind::BFloat16) {
            let numbers = channels_last(&random(&[2, 131, 9, 10]).to_kind(Kind::BFloat16)).unwrap();
            assert!(Gates::of(&numbers, Bounds::RELU).unwrap().is_none());
            return;
        }
        let bfloat16 = |tensor: Tensor| channels_last(&tensor.to_kind(Kind::BFloat16)).unwrap();
        let weight = sparse_backward_weight(&bfloat16(random(&[131, 48, 3, 3]))).unwrap();
        let gradient = bfloat16(random(&[2, 131, 9, 10]));
        let _ = gradient.select(1, 7).fill_(-f64::NAN);
        let closed = bfloat16(random(&[2, 131, 9, 10]));
        let _ = closed.select(1, 7).fill_(0.0);
        let gates = Gates::of(&closed, Bounds::RELU).unwrap().unwrap();
        let open = Gates::of(&bfloat16(random(&[2, 131, 9, 10]).abs() + 1.0), Bounds::RELU).unwrap().unwrap();
        let with = |given: &Tensor, pending| {
            sparse_input_gradient(given, pending, &weight, false, [2, 48, 11, 12], &UNIT_STRIDE).unwrap()
        };
        for guided in [false, true] {
            let passed = gates.pass(&[gradient.shallow_clone()], guided).unwrap();
            assert!(with(&gradient, Some(PendingMask { gates: &gates, guided })).equal(&with(&passed, None)));
            let all = with(&gradient, Some(PendingMask { gates: &open, guided }));
            assert!(all.isnan().all().int64_value(&[]) != 0, "NaN stays NaN, whatever its sign");
        }
    }

    #[test]
    fn convolutions_of_bfloat16_accumulate_in_float32() {
        if !has_gemm_kernels(Kind::BFloat16) {
            return assert_refused(sparse_forward_weight(&random(&[48, 64, 1, 1]).to_kind(Kind::BFloat16)));
        }
        let bfloat16 = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        for (inputs, outputs, kernel, stride, density) in
            [(64, 48, 1, 1, 0.3), (131, 200, 3, 2, 0.3), (64, 80, 1, 2, 1.0)]
        {
            let parameters = ConvolutionParameters { stride: [stride; 2], ..UNIT_STRIDE };
            let (input, bias) = (bfloat16(sparse(&[2, inputs, 9, 10], density)), random(&[outputs]));
            let weight = bfloat16(random(&[outputs, inputs, kernel, kernel]));
            let packed = sparse_forward_weight(&weight).unwrap();
            let found =
                sparse_convolution(&input, &packed, outputs, Some(&bias), &parameters, Some(Bounds::RELU)).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let convolved =
                |input: Tensor, weight: Tensor, bias: Tensor| input.conv2d(&weight, Some(bias), stride, 0, 1, 1);
            let expected = convolved(double(&input), double(&weight), double(&bias)).relu();
            let scale = convolved(double(&input).abs(), double(&weight).abs(), double(&bias).abs()) + 1.0;
            let error = (double(&found) - &expected).abs() - expected.abs() / 256;
            assert!((error / scale).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let before = tch::get_num_threads();
        for (size, outputs, kernel, stride) in [([2, 300, 7, 7], 130, 1, 1), ([1, 64, 30, 31], 96, 3, 2)] {
            let parameters = ConvolutionParameters { stride: [stride; 2], padding: [kernel / 2; 2], ..UNIT_STRIDE };
            let weight = sparse_backward_weight(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let given = sparse(&[size[0], outputs, (size[2] - 1) / stride + 1, (size[3] - 1) / stride + 1], 0.4);
            let forward = sparse_forward_weight(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let input = sparse(&size, 0.5);
            // Half of the lines are dense, the others are not. Both kinds of products start from the bias.
            let _ = input.narrow(2, 0, size[2] / 2).fill_(0.5);
            let bias = random(&[outputs]);
            let gates = Gates::of(&channels_last(&random(&given.size())).unwrap(), Bounds::RELU).unwrap().unwrap();
            let pending = Some(PendingMask { gates: &gates, guided: true });
            let found = [1, 3, 16].map(|threads| {
                tch::set_num_threads(threads);
                [
                    sparse_input_gradient(&given, None, &weight, false, size, &parameters).unwrap(),
                    sparse_input_gradient(&given, pending, &forward, true, size, &parameters).unwrap(),
                    sparse_convolution(&input, &forward, outputs, Some(&bias), &parameters, None).unwrap(),
                ]
            });
            tch::set_num_threads(before);
            for other in &found[1..] {
                assert!(other.iter().zip(&found[0]).all(|(tensor, first)| tensor.equal(first)));
            }
        }
    }

    #[test]
    fn nan_stays_nan_and_tiny_numbers_are_multiplied() {
        let weight = sparse_backward_weight(&random(&[8, 5, 1, 1]).abs()).unwrap();
        let gradient = Tensor::zeros([1, 8, 1, 3], (Kind::Float, Device::Cpu));
        let _ = gradient.select(3, 0).select(1, 3).fill_(f64::NAN);
        let _ = gradient.select(3, 1).select(1, 6).fill_(1e-42);
        let found = sparse_input_gradient(&gradient, None, &weight, false, [1, 5, 1, 3], &UNIT_STRIDE).unwrap();
        assert!(found.select(3, 0).isnan().all().int64_value(&[]) != 0);
        assert!(found.select(3, 2).equal(&Tensor::zeros([1, 5, 1], (Kind::Float, Device::Cpu))));
        let tiny = random(&[1, 1, 1, 1]).fill_(1e-30);
        let large = sparse_backward_weight(&random(&[1, 1, 1, 1]).fill_(1e30)).unwrap();
        let found = sparse_input_gradient(&tiny, None, &large, false, [1, 1, 1, 1], &UNIT_STRIDE).unwrap();
        assert!((found.double_value(&[0, 0, 0, 0]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let text = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(text(sparse_backward_weight(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(sparse_backward_weight(&random(&[4, 4, 1, 0]))).contains("[outputs, inputs, h, w]"));
        assert!(text(sparse_backward_weight(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let weight = sparse_backward_weight(&random(&[8, 40, 3, 3])).unwrap();
        let with = |given: &Tensor, size, parameters: &ConvolutionParameters| {
            text(sparse_input_gradient(given, None, &weight, false, size, parameters))
        };
        let given = random(&[1, 8, 4, 4]);
        assert!(with(&random(&[1, 9, 4, 4]), [1, 40, 6, 6], &UNIT_STRIDE).contains("channels"));
        assert!(with(&given.to_kind(Kind::Double), [1, 40, 6, 6], &UNIT_STRIDE).contains("float32"));
        assert!(with(&given, [1, 400, 6, 6], &UNIT_STRIDE).contains("400 channels"));
        assert!(with(&given, [1, 40, 7, 6], &UNIT_STRIDE).contains("shape"));
        assert!(with(&given, [2, 40, 6, 6], &UNIT_STRIDE).contains("shape"));
        assert!(with(&given, [1, 40, 2, 6], &UNIT_STRIDE).contains("shape"));
        let gates = Gates::of(&channels_last(&random(&[1, 8, 4, 5])).unwrap(), Bounds::RELU).unwrap().unwrap();
        let pending = PendingMask { gates: &gates, guided: true };
        assert!(
            text(sparse_input_gradient(&given, Some(pending), &weight, false, [1, 40, 6, 6], &UNIT_STRIDE))
                .contains("gates")
        );
        assert!(with(&given, [1, 40, 6, 6], &ConvolutionParameters { stride: [0, 1], ..UNIT_STRIDE }).contains("move"));
        let forward = sparse_forward_weight(&random(&[40, 8, 3, 3])).unwrap();
        let with = |input: &Tensor, outputs, bias: Option<&Tensor>| {
            text(sparse_convolution(input, &forward, outputs, bias, &UNIT_STRIDE, None))
        };
        assert!(with(&random(&[1, 9, 4, 4]), 40, None).contains("channels"));
        assert!(with(&random(&[1, 8, 2, 4]), 40, None).contains("smaller"));
        assert!(with(&given, 400, None).contains("400 channels"));
        assert!(with(&given, 40, Some(&random(&[8]))).contains("bias"));
        assert!(with(&given.to_kind(Kind::Double), 40, None).contains("float32"));
        assert!(
            text(sparse_input_gradient(&given, None, &random(&[8, 40, 3, 3]), false, [1, 40, 6, 6], &UNIT_STRIDE))
                .contains("panels")
        );
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let weight = sparse_backward_weight(&random(&[8, 40, 1, 1])).unwrap();
        let found =
            sparse_input_gradient(&random(&[0, 8, 2, 2]), None, &weight, false, [0, 40, 2, 2], &UNIT_STRIDE).unwrap();
        assert_eq!(found.size(), [0, 40, 2, 2]);
    }
}
