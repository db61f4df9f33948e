//! Convolutions whose input has many zeros, and input gradients whose gradient has, with the zeros skipped.
//!
//! Half of a rectifier's results are zero. The gradient that comes back through it is zero in the same elements, and
//! with guided backpropagation wherever it would be negative too: about seven in ten elements of a ResNet's gradients,
//! nine in ten above a max pooling. A mask of bits tells which elements of a pixel are nonzero, and only these are
//! multiplied, with rows of weights that stay in a core's first-level cache while pixels pass by. A 1 × 1 convolution
//! of float32 with few zeros is an ordinary product, unless a mask is [pending](PendingMask). Weights are finite: a
//! zero may be multiplied or not.

use std::ptr;

use tch::{Device, Tensor};

use super::call::run;
use super::convolution::check_gradient;
use super::panels::{Bias, pack_sparse};
use super::tensor::{View, channels_last, data_mut, empty_channels_last, expect, multiplied_type, refused};
use super::{Bounds, ConvolutionParameters, PendingMask, ffi};
use crate::torch::OperatorError;

/// Packs the weight `[outputs, inputs, h, w]` of a convolution for [`sparse_convolution`]. The dtype is one that
/// [`has_gemm_kernels`](super::has_gemm_kernels).
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn sparse_forward_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    packed(weight, [2, 3, 1, 0])
}

/// Packs the same weight for [`sparse_input_gradient`].
///
/// # Errors
/// Those of [`sparse_forward_weight`].
pub fn sparse_backward_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    packed(weight, [2, 3, 0, 1])
}

fn packed(weight: &Tensor, order: [i64; 4]) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    expect(view.size().len() == 4 && view.elements() > 0, "sparse_weight", || {
        format!("a weight [outputs, inputs, h, w] is expected, not {:?}", view.size())
    })?;
    let _guard = tch::no_grad_guard();
    pack_sparse("sparse_weight", &weight.f_permute(order)?)
}

/// A convolution of `input`, `[N, inputs, H, W]`, with a [packed weight](sparse_forward_weight) of its dtype, plus a
/// bias (float32), within `bounds`. Sums are float32. The result is channels-last.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the
/// kernel, out of memory.
pub fn sparse_convolution(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    parameters: &ConvolutionParameters,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let given = View::of(input);
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type("sparse_convolution", &packed)?;
    let shape = given.dimensions::<4>().filter(|_| given.element_type() == Some(element));
    let [batch, inputs, height, width] = shape.ok_or_else(|| {
        refused(
            "sparse_convolution",
            format!("an input [N, inputs, H, W] of {} on the CPU is expected", element.name()),
        )
    })?;
    let kernel = kernel_of("sparse_convolution", &packed, panel_width, outputs, inputs)?;
    let [result_height, result_width] = parameters.result_size("sparse_convolution", [height, width], kernel)?;
    expect(result_height > 0 && result_width > 0, "sparse_convolution", || {
        format!("the input is smaller than the kernel: {:?}", given.size())
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
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_sparse_convolution(&raw const call, error) }
    })?;
    Ok(result)
}

/// The gradient to a convolution's input of `size`, `[N, inputs, H, W]`, from the gradient of its result, of the
/// weight's dtype, which may still have to pass a [pending](PendingMask) mask. `is_forward`: the weight is [packed for
/// the forward convolution](sparse_forward_weight), in float32, and is transposed as it is read, which takes longer
/// where there are few pixels and saves the memory of a second packed weight. Sums are float32. The result is
/// channels-last.
///
/// # Errors
/// Another dtype or device, gates of another shape, a gradient that the convolution does not give, a weight
/// whose panels are not those of the input's channels, out of memory.
pub fn sparse_input_gradient(
    gradient: &Tensor,
    pending: Option<PendingMask<'_>>,
    weight: &Tensor,
    is_forward: bool,
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<Tensor, OperatorError> {
    let name = "sparse_input_gradient";
    let given = View::of(gradient);
    let [_, outputs, _, _] = given
        .dimensions::<4>()
        .ok_or_else(|| refused(name, format!("a gradient [N, outputs, h, w] is expected, not {:?}", given.size())))?;
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type(name, &packed)?;
    let inputs = size[1];
    let [in_panels, in_rows] = if is_forward { [outputs, inputs] } else { [inputs, outputs] };
    let kernel = kernel_of(name, &packed, panel_width, in_panels, in_rows)?;
    expect(!is_forward || ffi::camlens_sparse_can_transpose(element as i32), name, || {
        format!("a weight of {} is not transposed", element.name())
    })?;
    let [batch, _, height, width] = check_gradient(name, &given, element, outputs, kernel, size, parameters)?;
    let (gates, is_guided) = PendingMask::bits(pending, name, &given)?;
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
        is_transposed: is_forward,
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
        // SAFETY: as in `sparse_convolution`; the gates, if any, were checked for the gradient.
        unsafe { ffi::camlens_sparse_convolution(&raw const call, error) }
    })?;
    Ok(result)
}

/// The height and width of the kernel of a packed weight `[h, w, panels, rows, panel width]`.
///
/// # Errors
/// Panels of other numbers of channels.
fn kernel_of(
    name: &str,
    packed: &View<'_>,
    panel_width: i64,
    in_panels: i64,
    in_rows: i64,
) -> Result<[i64; 2], OperatorError> {
    let panels = (in_panels + panel_width - 1) / panel_width;
    let fits = packed.dimensions::<5>().filter(|&[_, _, n, _, width]| {
        n == panels && width == panel_width && packed.is_contiguous() && packed.elements() > 0
    });
    let [height, width, _, rows, _] = fits.ok_or_else(|| {
        refused(name, format!("a weight in panels for {in_panels} channels is expected, not {:?}", packed.size()))
    })?;
    expect(rows == in_rows, name, || {
        format!("a weight for {in_rows} other channels is expected, not {:?}", packed.size())
    })?;
    Ok([height, width])
}

#[cfg(test)]
pub(super) mod reference {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::{Gates, channels_last};

    #[derive(Debug)]
    pub struct Case {
        pub gradient: Tensor,
        /// `[outputs, inputs, h, w]`.
        pub weight: Tensor,
        pub size: [i64; 4],
        pub parameters: ConvolutionParameters,
    }

    /// Gates for the gradient, about half of them open.
    pub fn gates(case: &Case) -> Gates {
        let result = channels_last(&random(&case.gradient.size())).unwrap();
        Gates::of(&result, Bounds::RELU).unwrap().unwrap()
    }

    /// The case whose gradient has passed the gates.
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

    /// Random numbers; the share `density` is not zero.
    pub fn sparse(shape: &[i64], density: f64) -> Tensor {
        random(shape) * Tensor::rand(shape, (Kind::Float, Device::Cpu)).lt(density)
    }

    fn axis(most_dilation: i64) -> impl Strategy<Value = [i64; 5]> {
        (1..=5i64, 1..=3i64, 0..=4i64, 1..=most_dilation, 0..=19i64).prop_map(
            |(kernel, stride, padding, dilation, more)| {
                let least = (dilation * (kernel - 1) + 1 - 2 * padding).max(1);
                [least + more, kernel, stride, padding, dilation]
            },
        )
    }

    /// With at most `most_inputs` input channels.
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

    /// The gradient, and the sum of the absolute products that it consists of, plus 1.
    pub fn expected(case: &Case) -> (Tensor, Tensor) {
        let Case { gradient, weight, size, parameters } = case;
        let by = |gradient: &Tensor, weight: &Tensor| {
            let input = Tensor::zeros(size, (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let result =
                input.conv2d(weight, None::<Tensor>, parameters.stride, parameters.padding, parameters.dilation, 1);
            Tensor::run_backward(&[(result * gradient).sum(Kind::Double)], &[&input], false, false).remove(0)
        };
        let (gradient, weight) = (double(gradient), double(weight));
        (by(&gradient, &weight), by(&gradient.abs(), &weight.abs()) + 1.0)
    }

    /// The largest error, relative to the sum of the absolute products.
    pub fn error(found: &Tensor, (expected, summed): &(Tensor, Tensor)) -> f64 {
        ((found.to_kind(Kind::Double) - expected).abs() / summed).max().double_value(&[])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::reference::{Case, case, error, expected, gates, passed, random, sparse};
    use super::*;
    use crate::torch::{Gates, channels_last, has_gemm_kernels};

    fn gradient_of(case: &Case, pending: Option<PendingMask<'_>>, weight: &Tensor, is_forward: bool) -> Tensor {
        let Case { gradient, size, parameters, .. } = case;
        sparse_input_gradient(gradient, pending, weight, is_forward, *size, parameters).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_gradient(case in case(150, 2)) {
            let weight = sparse_backward_weight(&case.weight).unwrap();
            let found = gradient_of(&case, None, &weight, false);
            prop_assert_eq!(found.size(), case.size);
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn the_forward_weight_serves_too(case in case(150, 2), has_gates in any::<bool>(), guided in any::<bool>()) {
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
        fn it_passes_a_gradient_through_pending_gates(case in case(150, 2), guided in any::<bool>()) {
            let (weight, gates) = (sparse_backward_weight(&case.weight).unwrap(), gates(&case));
            let pending = PendingMask { gates: &gates, guided };
            let found = gradient_of(&case, Some(pending), &weight, false);
            let error = error(&found, &expected(&passed(case, pending)));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn it_is_the_convolution(
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
            let by = |input: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
                let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                let ConvolutionParameters { stride, padding, dilation } = parameters;
                double(input).conv2d(&double(weight), bias.map(double), stride, padding, dilation, 1)
            };
            let sum = by(&input, &weight, bias.as_ref());
            let expected = bounds.map_or(sum.shallow_clone(), |b| sum.clamp(b.low, b.high.unwrap()));
            let error = error(&found, &(expected, by(&input.abs(), &weight.abs(), None) + 1.0));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    const BY_ONE: ConvolutionParameters = ConvolutionParameters { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    /// Without the instructions bfloat16 is refused.
    fn assert_refused(weight: Result<Tensor, OperatorError>) {
        let error = weight.unwrap_err().to_string();
        assert!(error.contains("instructions"), "{error}");
    }

    #[test]
    fn bfloat16_is_summed_in_float32() {
        if !has_gemm_kernels(Kind::BFloat16) {
            return assert_refused(sparse_backward_weight(&random(&[64, 48, 1, 1]).to_kind(Kind::BFloat16)));
        }
        for (outputs, inputs, kernel, density) in
            [(64, 48, 1, 0.3), (131, 200, 3, 0.3), (66, 3, 3, 0.1), (64, 64, 1, 1.0), (1, 5, 1, 1.0)]
        {
            let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let weight = half(random(&[outputs, inputs, kernel, kernel]));
            let gradient = half(sparse(&[2, outputs, 9, 10], density));
            let size = [2, inputs, 8 + kernel, 9 + kernel];
            let found =
                sparse_input_gradient(&gradient, None, &sparse_backward_weight(&weight).unwrap(), false, size, &BY_ONE)
                    .unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let (expected, summed) = expected(&Case { gradient, weight, size, parameters: BY_ONE });
            // The error of rounding the result, relative to the result, and of the sum.
            let error = (found.to_kind(Kind::Double) - &expected).abs() - expected.abs() / 256;
            assert!((error / summed).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn bfloat16_passes_through_pending_gates() {
        if !has_gemm_kernels(Kind::BFloat16) {
            let numbers = channels_last(&random(&[2, 131, 9, 10]).to_kind(Kind::BFloat16)).unwrap();
            assert!(Gates::of(&numbers, Bounds::RELU).unwrap().is_none());
            return;
        }
        let half = |tensor: Tensor| channels_last(&tensor.to_kind(Kind::BFloat16)).unwrap();
        let weight = sparse_backward_weight(&half(random(&[131, 48, 3, 3]))).unwrap();
        let gradient = half(random(&[2, 131, 9, 10]));
        let _ = gradient.select(1, 7).fill_(-f64::NAN);
        let closed = half(random(&[2, 131, 9, 10]));
        let _ = closed.select(1, 7).fill_(0.0);
        let gates = Gates::of(&closed, Bounds::RELU).unwrap().unwrap();
        let open = Gates::of(&half(random(&[2, 131, 9, 10]).abs() + 1.0), Bounds::RELU).unwrap().unwrap();
        let with = |given: &Tensor, pending| {
            sparse_input_gradient(given, pending, &weight, false, [2, 48, 11, 12], &BY_ONE).unwrap()
        };
        for guided in [false, true] {
            let passed = gates.pass(&[gradient.shallow_clone()], guided).unwrap();
            assert!(with(&gradient, Some(PendingMask { gates: &gates, guided })).equal(&with(&passed, None)));
            let all = with(&gradient, Some(PendingMask { gates: &open, guided }));
            assert!(all.isnan().all().int64_value(&[]) != 0, "what is none stays so, whatever its sign");
        }
    }

    #[test]
    fn a_convolution_of_bfloat16_too() {
        if !has_gemm_kernels(Kind::BFloat16) {
            return assert_refused(sparse_forward_weight(&random(&[48, 64, 1, 1]).to_kind(Kind::BFloat16)));
        }
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        for (inputs, outputs, kernel, stride, density) in
            [(64, 48, 1, 1, 0.3), (131, 200, 3, 2, 0.3), (64, 80, 1, 2, 1.0)]
        {
            let parameters = ConvolutionParameters { stride: [stride; 2], ..BY_ONE };
            let (input, bias) = (half(sparse(&[2, inputs, 9, 10], density)), random(&[outputs]));
            let weight = half(random(&[outputs, inputs, kernel, kernel]));
            let packed = sparse_forward_weight(&weight).unwrap();
            let found =
                sparse_convolution(&input, &packed, outputs, Some(&bias), &parameters, Some(Bounds::RELU)).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let by = |input: Tensor, weight: Tensor, bias: Tensor| input.conv2d(&weight, Some(bias), stride, 0, 1, 1);
            let expected = by(double(&input), double(&weight), double(&bias)).relu();
            let summed = by(double(&input).abs(), double(&weight).abs(), double(&bias).abs()) + 1.0;
            let error = (double(&found) - &expected).abs() - expected.abs() / 256;
            assert!((error / summed).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same() {
        let before = tch::get_num_threads();
        for (size, outputs, kernel, stride) in [([2, 300, 7, 7], 130, 1, 1), ([1, 64, 30, 31], 96, 3, 2)] {
            let parameters = ConvolutionParameters { stride: [stride; 2], padding: [kernel / 2; 2], ..BY_ONE };
            let weight = sparse_backward_weight(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let given = sparse(&[size[0], outputs, (size[2] - 1) / stride + 1, (size[3] - 1) / stride + 1], 0.4);
            let forward = sparse_forward_weight(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let input = sparse(&size, 0.5);
            // Some lines dense, some not; and a bias, with which sums begin in either case.
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
                assert!(other.iter().zip(&found[0]).all(|(one, other)| one.equal(other)));
            }
        }
    }

    #[test]
    fn nan_stays_and_the_smallest_numbers_count() {
        let weight = sparse_backward_weight(&random(&[8, 5, 1, 1]).abs()).unwrap();
        let gradient = Tensor::zeros([1, 8, 1, 3], (Kind::Float, Device::Cpu));
        let _ = gradient.select(3, 0).select(1, 3).fill_(f64::NAN);
        let _ = gradient.select(3, 1).select(1, 6).fill_(1e-42);
        let found = sparse_input_gradient(&gradient, None, &weight, false, [1, 5, 1, 3], &BY_ONE).unwrap();
        assert!(found.select(3, 0).isnan().all().int64_value(&[]) != 0);
        assert!(found.select(3, 2).equal(&Tensor::zeros([1, 5, 1], (Kind::Float, Device::Cpu))));
        let tiny = random(&[1, 1, 1, 1]).fill_(1e-30);
        let large = sparse_backward_weight(&random(&[1, 1, 1, 1]).fill_(1e30)).unwrap();
        let found = sparse_input_gradient(&tiny, None, &large, false, [1, 1, 1, 1], &BY_ONE).unwrap();
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
        assert!(with(&random(&[1, 9, 4, 4]), [1, 40, 6, 6], &BY_ONE).contains("channels"));
        assert!(with(&given.to_kind(Kind::Double), [1, 40, 6, 6], &BY_ONE).contains("float32"));
        assert!(with(&given, [1, 400, 6, 6], &BY_ONE).contains("400 channels"));
        assert!(with(&given, [1, 40, 7, 6], &BY_ONE).contains("shape"));
        assert!(with(&given, [2, 40, 6, 6], &BY_ONE).contains("shape"));
        assert!(with(&given, [1, 40, 2, 6], &BY_ONE).contains("shape"));
        let gates = Gates::of(&channels_last(&random(&[1, 8, 4, 5])).unwrap(), Bounds::RELU).unwrap().unwrap();
        let pending = PendingMask { gates: &gates, guided: true };
        assert!(
            text(sparse_input_gradient(&given, Some(pending), &weight, false, [1, 40, 6, 6], &BY_ONE))
                .contains("gates")
        );
        assert!(with(&given, [1, 40, 6, 6], &ConvolutionParameters { stride: [0, 1], ..BY_ONE }).contains("move"));
        let forward = sparse_forward_weight(&random(&[40, 8, 3, 3])).unwrap();
        let with = |input: &Tensor, outputs, bias: Option<&Tensor>| {
            text(sparse_convolution(input, &forward, outputs, bias, &BY_ONE, None))
        };
        assert!(with(&random(&[1, 9, 4, 4]), 40, None).contains("channels"));
        assert!(with(&random(&[1, 8, 2, 4]), 40, None).contains("smaller"));
        assert!(with(&given, 400, None).contains("400 channels"));
        assert!(with(&given, 40, Some(&random(&[8]))).contains("bias"));
        assert!(with(&given.to_kind(Kind::Double), 40, None).contains("float32"));
        assert!(
            text(sparse_input_gradient(&given, None, &random(&[8, 40, 3, 3]), false, [1, 40, 6, 6], &BY_ONE))
                .contains("panels")
        );
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let weight = sparse_backward_weight(&random(&[8, 40, 1, 1])).unwrap();
        let found =
            sparse_input_gradient(&random(&[0, 8, 2, 2]), None, &weight, false, [0, 40, 2, 2], &BY_ONE).unwrap();
        assert_eq!(found.size(), [0, 40, 2, 2]);
    }
}
