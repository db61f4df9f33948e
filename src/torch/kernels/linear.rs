//! Linear layers: products with a constant weight, in float32, and in bfloat16 with sums in float32.
//!
//! A packed weight is read once, in order, and a product prefetches the next panel while it multiplies with this one.
//! oneDNN's kernels are as fast when the weights are in the caches; in a network they seldom are. For an input of few
//! rows the weight is used as it is.

use std::ptr;

use tch::{Kind, Tensor};

use super::call::run;
use super::element::ElementType;
use super::features::has_gemm_kernels;
use super::panels::{Bias, pack};
use super::tensor::{View, contiguous, data_mut, empty, expect, multiplied_type, refused};
use super::{Bounds, ffi};
use crate::torch::OperatorError;

/// Whether [`linear_weight`] can pack a weight of this dtype with this number of inputs.
pub fn can_pack(kind: Kind, inputs: i64) -> bool {
    has_gemm_kernels(kind) && (kind == Kind::Float || inputs % 2 == 0)
}

/// Packs a weight `[outputs, inputs]` for [`linear`]. bfloat16 takes an even number of inputs.
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn linear_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    expect(view.size().len() == 2 && view.elements() > 0, "linear_weight", || {
        format!("a weight [outputs, inputs] is expected, not {:?}", view.size())
    })?;
    let _guard = tch::no_grad_guard();
    pack("linear_weight", &weight.f_transpose(0, 1)?)
}

/// `[..., inputs]` to `[..., outputs]`: the product with a [packed weight](linear_weight), plus the bias (float32),
/// within `bounds`. The input and the result have the weight's dtype.
///
/// # Errors
/// Another dtype or device, another number of inputs, a weight whose panels are not those of `outputs`, out of memory.
pub fn linear(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type("linear", &packed)?;
    let panels = (outputs + panel_width - 1) / panel_width;
    let steps = match *packed.size() {
        [n, steps, width] if element == ElementType::Float32 => Some((n, steps, width)),
        [n, steps, width, 2] if element == ElementType::BFloat16 => Some((n, steps, width)),
        _ => None,
    };
    let fits = steps.filter(|&(n, _, width)| n == panels && width == panel_width && packed.elements() > 0);
    let (_, steps, _) = fits.filter(|_| packed.is_contiguous()).ok_or_else(|| {
        refused("linear", format!("a weight in panels for {outputs} outputs is expected, not {:?}", packed.size()))
    })?;
    let bias = Bias::padded("linear", bias, outputs, panel_width)?;
    let given = View::of(input);
    expect(!given.size().is_empty(), "linear", || "an input [..., inputs] is expected".to_owned())?;
    expect(given.element_type() == Some(element), "linear", || {
        format!("an input of {} on the CPU is expected", element.name())
    })?;
    let inputs = steps * element.per_step();
    let channels = given.size().last().copied().unwrap_or(0);
    expect(channels == inputs, "linear", || format!("the input has {channels} channels, the weight {inputs}"))?;
    let input = contiguous(input)?;
    let mut result = empty(&with_last(given.size(), outputs), element.kind())?;
    let rows = given.elements() / inputs;
    if rows == 0 {
        return Ok(result);
    }
    let [low, high] = Bounds::limits(bounds).map(|limit| limit as f32);
    let call = ffi::PackedLinear {
        element: element as i32,
        input: View::of(&input).data(),
        rows,
        weight: packed.data(),
        steps,
        outputs,
        bias: bias.data(),
        low,
        high,
        result: data_mut(&mut result),
    };
    run("linear", |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_linear(&raw const call, error) }
    })?;
    Ok(result)
}

/// `[..., inputs]` to `[..., outputs]`: the product with a contiguous weight `[outputs, inputs]` of the same dtype, one
/// that [`has_gemm_kernels`], plus the bias (float32). Sums are float32. For few rows: the weight is read once, as it
/// is.
///
/// # Errors
/// Another dtype or device, another number of inputs, a bias of another size, no instructions for it, out of memory.
pub fn linear_few_rows(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, OperatorError> {
    let (element, [outputs, inputs]) = row_major("linear_few_rows", weight)?;
    let given = View::of(input);
    expect_rows("linear_few_rows", "an input", &given, inputs, element)?;
    let bias = Bias::exact("linear_few_rows", bias, outputs)?;
    let input = contiguous(input)?;
    let mut result = empty(&with_last(given.size(), outputs), element.kind())?;
    let call = ffi::RowMajorLinear {
        element: element as i32,
        input: View::of(&input).data(),
        rows: given.elements() / inputs,
        weight: View::of(weight).data(),
        outputs,
        inputs,
        bias: bias.data(),
        result: data_mut(&mut result),
    };
    run("linear_few_rows", |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_linear_few_rows(&raw const call, error) }
    })?;
    Ok(result)
}

/// The gradient to the input of a linear layer with a contiguous weight `[outputs, inputs]`, from the gradient of its
/// result, `[..., outputs]`, of the same dtype: one that [`has_gemm_kernels`]. Rows of the weight whose gradient is
/// zero are skipped: a zero times anything counts as zero. Sums are float32.
///
/// # Errors
/// Another dtype or device, another number of outputs, no instructions for it, out of memory.
pub fn linear_input_gradient(gradient: &Tensor, weight: &Tensor) -> Result<Tensor, OperatorError> {
    let (element, [outputs, inputs]) = row_major("linear_input_gradient", weight)?;
    let given = View::of(gradient);
    expect_rows("linear_input_gradient", "a gradient", &given, outputs, element)?;
    let mut result = empty(&with_last(given.size(), inputs), element.kind())?;
    let _guard = tch::no_grad_guard();
    let gradient = gradient.f_to_kind(Kind::Float)?.f_contiguous()?;
    let call = ffi::RowMajorLinear {
        element: element as i32,
        input: View::of(&gradient).data(),
        rows: given.elements() / outputs,
        weight: View::of(weight).data(),
        outputs,
        inputs,
        bias: ptr::null(),
        result: data_mut(&mut result),
    };
    run("linear_input_gradient", |error| {
        // SAFETY: as in `linear_few_rows`; the gradient is float32, as the kernel expects.
        unsafe { ffi::camlens_linear_input_gradient(&raw const call, error) }
    })?;
    Ok(result)
}

fn with_last(size: &[i64], last: i64) -> Vec<i64> {
    let mut size = size.to_vec();
    if let Some(slot) = size.last_mut() {
        *slot = last;
    }
    size
}

/// The element type and size of a contiguous weight `[outputs, inputs]`.
fn row_major(kernel: &str, weight: &Tensor) -> Result<(ElementType, [i64; 2]), OperatorError> {
    let view = View::of(weight);
    let (element, _) = multiplied_type(kernel, &view)?;
    let size = view.dimensions::<2>().filter(|_| view.is_contiguous() && view.elements() > 0);
    let size = size.ok_or_else(|| {
        refused(kernel, format!("a contiguous weight [outputs, inputs] is expected, not {:?}", view.size()))
    })?;
    Ok((element, size))
}

fn expect_rows(
    kernel: &str,
    what: &str,
    given: &View<'_>,
    channels: i64,
    element: ElementType,
) -> Result<(), OperatorError> {
    let fits = given.element_type() == Some(element) && given.size().last() == Some(&channels);
    expect(fits, kernel, || {
        format!("{what} [..., {channels}] of {} on the CPU is expected, not {:?}", element.name(), given.size())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::*;
    use crate::torch::kernels::sparse::reference::{double, random};

    /// The largest error, relative to the sum of the absolute products.
    fn error(found: &Tensor, expected: &Tensor, input: &Tensor, weight: &Tensor) -> f64 {
        let summed = double(input).abs().linear(&double(weight).abs(), None::<Tensor>) + 1.0;
        ((double(found) - expected).abs() / summed).max().double_value(&[])
    }

    fn within(tensor: Tensor, bounds: Option<Bounds>) -> Tensor {
        bounds.map_or(tensor.shallow_clone(), |b| tensor.clamp(b.low, b.high.unwrap()))
    }

    proptest! {
        #[test]
        fn it_is_the_product(
            rows in 1..70i64,
            inputs in 1..70i64,
            outputs in 1..140i64,
            has_bias in any::<bool>(),
            high in prop::option::of(0.5..1.5f64),
        ) {
            let (input, weight) = (random(&[rows, inputs]), random(&[outputs, inputs]));
            let bias = has_bias.then(|| random(&[outputs]));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let expected = within(double(&input).linear(&double(&weight), bias.as_ref().map(double)), bounds);
            let panels = linear_weight(&weight).unwrap();
            let found = linear(&input, &panels, outputs, bias.as_ref(), bounds).unwrap();
            prop_assert_eq!(found.size(), [rows, outputs]);
            let error = error(&found, &expected, &input, &weight);
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn bfloat16_is_summed_in_float32(
            rows in 1..40i64,
            inputs in (1..40i64).prop_map(|n| 2 * n),
            outputs in 1..80i64,
        ) {
            let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let (input, weight) = (half(random(&[rows, inputs])), half(random(&[outputs, inputs])));
            let bias = random(&[outputs]);
            if has_gemm_kernels(Kind::BFloat16) {
                let found = linear(&input, &linear_weight(&weight).unwrap(), outputs, Some(&bias), None).unwrap();
                prop_assert_eq!(found.kind(), Kind::BFloat16);
                let expected = double(&input).linear(&double(&weight), Some(double(&bias)));
                // The error of rounding the result, relative to the result, and of the sum.
                let error = (double(&found) - &expected).abs() - expected.abs() / 256;
                let summed = double(&input).abs().linear(&double(&weight).abs(), None::<Tensor>) + 1.0;
                prop_assert!((error / summed).max().double_value(&[]) < 1e-6);
            } else {
                prop_assert!(linear_weight(&weight).unwrap_err().to_string().contains("instructions"));
            }
        }
    }

    proptest! {
        #[test]
        fn a_row_major_weight_is_used_as_it_is(
            rows in 0..5i64,
            inputs in 1..300i64,
            outputs in 1..90i64,
            has_bias in any::<bool>(),
            is_bfloat16 in any::<bool>(),
        ) {
            let kind = if is_bfloat16 && has_gemm_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let (input, weight) = (random(&[rows, inputs]).to_kind(kind), random(&[outputs, inputs]).to_kind(kind));
            let bias = has_bias.then(|| random(&[outputs]));
            let found = linear_few_rows(&input, &weight, bias.as_ref()).unwrap();
            prop_assert_eq!((found.size(), found.kind()), (vec![rows, outputs], kind));
            let expected = double(&input).linear(&double(&weight), bias.as_ref().map(double));
            let rounding = if kind == Kind::Float { 0.0 } else { 1.0 / 256.0 };
            let off = (double(&found) - &expected).abs() - expected.abs() * rounding;
            let magnitude = |tensor: &Tensor| double(tensor).abs();
            let summed = magnitude(&input).linear(&magnitude(&weight), bias.as_ref().map(magnitude)) + 1.0;
            prop_assert!(rows == 0 || (off / summed).max().double_value(&[]) < 1e-6);
            if rows > 0 {
                let alone = linear_few_rows(&input.narrow(0, rows - 1, 1), &weight, bias.as_ref()).unwrap();
                prop_assert!(alone.equal(&found.narrow(0, rows - 1, 1)), "whatever the other rows are");
            }
        }
    }

    proptest! {
        #[test]
        fn the_input_gradient_is_that_of_autograd(
            rows in 0..4i64,
            inputs in 1..300i64,
            outputs in 1..90i64,
            density in 0.0..1.0f64,
            is_bfloat16 in any::<bool>(),
        ) {
            let kind = if is_bfloat16 && has_gemm_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let kept = Tensor::rand([rows, outputs], (Kind::Float, Device::Cpu)).lt(density);
            let gradient = (random(&[rows, outputs]) * kept).to_kind(kind);
            let weight = random(&[outputs, inputs]).to_kind(kind);
            let found = linear_input_gradient(&gradient, &weight).unwrap();
            prop_assert_eq!((found.size(), found.kind()), (vec![rows, inputs], kind));
            let expected = double(&gradient).matmul(&double(&weight));
            let rounding = if kind == Kind::Float { 0.0 } else { 1.0 / 256.0 };
            let off = (double(&found) - &expected).abs() - expected.abs() * rounding;
            let summed = double(&gradient).abs().matmul(&double(&weight).abs()) + 1.0;
            prop_assert!(rows == 0 || (off / summed).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn small_and_large_weights_and_few_and_many_rows() {
        // Weights larger and smaller than a core's cache; more rows than panels, and fewer; no dimension but the
        // inputs.
        for (rows, inputs, outputs) in [(3, 1100, 700), (333, 1100, 700), (2000, 48, 64), (5, 48, 320)] {
            let (input, weight) = (random(&[rows, inputs]), random(&[outputs, inputs]));
            let expected = double(&input).linear(&double(&weight), None::<Tensor>);
            let panels = linear_weight(&weight).unwrap();
            let found = linear(&input, &panels, outputs, None, None).unwrap();
            assert!(error(&found, &expected, &input, &weight) < 1e-6);
            let first = linear(&input.get(0), &panels, outputs, None, None).unwrap();
            assert_eq!(first.size(), [outputs]);
            assert!(error(&first, &expected.get(0), &input.get(0), &weight) < 1e-6);
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same() {
        let before = tch::get_num_threads();
        for (rows, inputs, outputs) in [(49, 700, 300), (200, 40, 70), (1, 900, 150)] {
            let (input, weight) = (random(&[rows, inputs]), linear_weight(&random(&[outputs, inputs])).unwrap());
            let found = [1, 3, 16].map(|threads| {
                tch::set_num_threads(threads);
                linear(&input, &weight, outputs, None, None).unwrap()
            });
            tch::set_num_threads(before);
            assert!(found[1].equal(&found[0]) && found[2].equal(&found[0]));
        }
    }

    #[test]
    fn nan_stays() {
        let input = random(&[2, 8]);
        let _ = input.get(1).get(3).fill_(f64::NAN);
        let bounds = Some(Bounds { low: 0.0, high: Some(1.0) });
        let found = linear(&input, &linear_weight(&random(&[5, 8])).unwrap(), 5, None, bounds).unwrap();
        assert!(found.get(1).isnan().all().int64_value(&[]) != 0 && found.get(0).isnan().any().int64_value(&[]) == 0);
        if has_gemm_kernels(Kind::BFloat16) {
            // A NaN whose upper half alone would be infinite, or rounded to -0.
            for bits in [0x7f80_0001, 0x7fff_ffff] {
                let bias = Tensor::from_slice(&[f32::from_bits(bits); 5]);
                let half = |shape: &[i64]| random(shape).to_kind(Kind::BFloat16);
                let found =
                    linear(&half(&[2, 8]), &linear_weight(&half(&[5, 8])).unwrap(), 5, Some(&bias), None).unwrap();
                assert!(found.isnan().all().int64_value(&[]) != 0);
            }
        } else {
            let refused = linear_weight(&random(&[5, 8]).to_kind(Kind::BFloat16)).unwrap_err().to_string();
            assert!(refused.contains("instructions"), "{refused}");
        }
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let text = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(text(linear_weight(&random(&[4, 4, 1, 1]))).contains("[outputs, inputs]"));
        assert!(text(linear_weight(&random(&[4, 4]).to_kind(Kind::Double))).contains("instructions"));
        let weight = linear_weight(&random(&[40, 8])).unwrap();
        let input = random(&[3, 8]);
        assert!(text(linear(&random(&[3, 9]), &weight, 40, None, None)).contains("channels"));
        assert!(text(linear(&input, &weight, 400, None, None)).contains("panels"));
        assert!(text(linear(&random(&[3, 0]), &random(&[1, 0, 32]), 5, None, None)).contains("panels"));
        assert!(text(linear_weight(&random(&[4, 0]))).contains("[outputs, inputs]"));
        assert!(text(linear(&input, &random(&[40, 8]), 40, None, None)).contains("panels"));
        assert!(text(linear(&input, &weight, 40, Some(&random(&[8])), None)).contains("bias"));
        assert!(text(linear(&input.to_kind(Kind::Double), &weight, 40, None, None)).contains("an input of float32"));
        let odd = random(&[4, 7]).to_kind(Kind::BFloat16);
        let problem = if has_gemm_kernels(Kind::BFloat16) { "even number of inputs" } else { "instructions" };
        assert!(text(linear_weight(&odd)).contains(problem));
        assert!(text(linear_few_rows(&random(&[3, 9]), &random(&[40, 8]), None)).contains("[..., 8]"));
        assert!(text(linear_few_rows(&input, &random(&[40, 8]), Some(&random(&[8])))).contains("bias"));
        assert!(text(linear_few_rows(&input, &random(&[8, 40]).transpose(0, 1), None)).contains("contiguous"));
        let plain = random(&[40, 8]);
        assert!(text(linear_input_gradient(&random(&[3, 8]), &plain)).contains("[..., 40]"));
        assert!(text(linear_input_gradient(&random(&[3, 40]).to_kind(Kind::Double), &plain)).contains("float32"));
        assert!(text(linear_input_gradient(&random(&[3, 8]), &plain.transpose(0, 1))).contains("contiguous"));
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let weight = linear_weight(&random(&[40, 8])).unwrap();
        assert_eq!(linear(&random(&[0, 8]), &weight, 40, None, None).unwrap().size(), [0, 40]);
    }
}
