//! Matrix products with constant matrices, on the CPU: linear layers in float32, and in bfloat16 with sums in
//! float32.
//!
//! A weight lies in panels as wide as the registers allow, so that a product reads it once, in order, and fetches the next panel while
//! it multiplies with this one. oneDNN's kernels are as fast where the weights are in the caches; of a network they seldom are. For inputs of
//! few rows a linear layer's weight serves as it is.

use std::ptr;

use tch::{Kind, Tensor};

use super::kernels::one_tensor;
use super::{Bounds, OperatorError, ffi};

/// Whether the processor has the instructions for [`linear`] and [`gemm`](super::gemm()) with numbers of that dtype: AVX2 or AVX-512 on x86 for
/// float32, AVX-512 BF16 for bfloat16. [`winograd`](super::winograd()) takes those for float32.
pub fn has_products(kind: Kind) -> bool {
    match kind {
        Kind::Float => ffi::camlens_has_products(false),
        Kind::BFloat16 => ffi::camlens_has_products(true),
        _ => false,
    }
}

/// Whether a weight of that dtype with so many inputs can be [laid out in panels](linear_weight).
pub fn can_multiply(kind: Kind, inputs: i64) -> bool {
    has_products(kind) && (kind == Kind::Float || inputs % 2 == 0)
}

/// A weight `[outputs, inputs]` in panels, for [`linear`]. Of bfloat16, the number of inputs is even.
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn linear_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    one_tensor("linear_weight", |result, error| {
        // SAFETY: the tensor is alive, and the places are ours to write.
        unsafe { ffi::camlens_linear_weight(weight.as_ptr(), result, error) }
    })
}

/// `[..., inputs]` to `[..., outputs]`: the product with a [weight in panels](linear_weight) for so many `outputs`, and the bias
/// (float32), within `bounds` where they are given. The result has the weight's dtype.
///
/// # Errors
/// Another dtype or device, another number of inputs, a weight with more or fewer panels than so many outputs have, out of memory.
pub fn linear(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let [low, high] = Bounds::limits(bounds);
    one_tensor("linear", |result, error| {
        // SAFETY: the tensors are alive, the bias is null or is too, and the places are ours to write.
        unsafe { ffi::camlens_linear(input.as_ptr(), weight.as_ptr(), outputs, bias, low, high, result, error) }
    })
}

/// `[..., inputs]` to `[..., outputs]`: the product with a contiguous weight `[outputs, inputs]` of the same dtype, one that
/// [`has_products`], and the bias (float32). Sums are float32. For few rows: the weight is read once, as it is.
///
/// # Errors
/// Another dtype or device, another number of inputs, a bias of another size, no instructions for it, out of memory.
pub fn linear_by_rows(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, OperatorError> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    one_tensor("linear_by_rows", |result, error| {
        // SAFETY: the tensors are alive, the bias is null or is too, and the places are ours to write.
        unsafe { ffi::camlens_linear_by_rows(input.as_ptr(), weight.as_ptr(), bias, result, error) }
    })
}

/// The gradient to the input of a linear layer with a contiguous weight `[outputs, inputs]`, from that of its result, `[..., outputs]`, of the
/// same dtype: one that [`has_products`]. Rows of the weight whose gradient is zero are not read: zeros count as nothing. Sums are float32.
///
/// # Errors
/// Another dtype or device, another number of outputs, no instructions for it, out of memory.
pub fn linear_gradient(gradient: &Tensor, weight: &Tensor) -> Result<Tensor, OperatorError> {
    one_tensor("linear_gradient", |result, error| {
        // SAFETY: the tensors are alive, and the places are ours to write.
        unsafe { ffi::camlens_linear_gradient(gradient.as_ptr(), weight.as_ptr(), result, error) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::*;
    use crate::torch::sparse::reference::{double, random};

    /// The largest difference, relative to what is summed.
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
        fn bfloat16_is_summed_in_float32(rows in 1..40i64, inputs in (1..40i64).prop_map(|n| 2 * n), outputs in 1..80i64) {
            let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let (input, weight, bias) = (half(random(&[rows, inputs])), half(random(&[outputs, inputs])), random(&[outputs]));
            if has_products(Kind::BFloat16) {
                let found = linear(&input, &linear_weight(&weight).unwrap(), outputs, Some(&bias), None).unwrap();
                prop_assert_eq!(found.kind(), Kind::BFloat16);
                let expected = double(&input).linear(&double(&weight), Some(double(&bias)));
                // What rounding the result leaves, relative to it, and of the sum.
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
        fn a_weight_is_read_as_it_is(
            rows in 0..5i64, inputs in 1..300i64, outputs in 1..90i64, has_bias in any::<bool>(), is_bfloat16 in any::<bool>(),
        ) {
            let kind = if is_bfloat16 && has_products(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let (input, weight) = (random(&[rows, inputs]).to_kind(kind), random(&[outputs, inputs]).to_kind(kind));
            let bias = has_bias.then(|| random(&[outputs]));
            let found = linear_by_rows(&input, &weight, bias.as_ref()).unwrap();
            prop_assert_eq!((found.size(), found.kind()), (vec![rows, outputs], kind));
            let expected = double(&input).linear(&double(&weight), bias.as_ref().map(double));
            let rounding = if kind == Kind::Float { 0.0 } else { 1.0 / 256.0 };
            let off = (double(&found) - &expected).abs() - expected.abs() * rounding;
            let summed = double(&input).abs().linear(&double(&weight).abs(), bias.as_ref().map(|b| double(b).abs())) + 1.0;
            prop_assert!(rows == 0 || (off / summed).max().double_value(&[]) < 1e-6);
            if rows > 0 {
                let alone = linear_by_rows(&input.narrow(0, rows - 1, 1), &weight, bias.as_ref()).unwrap();
                prop_assert!(alone.equal(&found.narrow(0, rows - 1, 1)), "whatever comes with it");
            }
        }
    }

    proptest! {
        #[test]
        fn a_gradient_goes_back(
            rows in 0..4i64, inputs in 1..300i64, outputs in 1..90i64, density in 0.0..1.0f64, is_bfloat16 in any::<bool>(),
        ) {
            let kind = if is_bfloat16 && has_products(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
            let kept = Tensor::rand([rows, outputs], (Kind::Float, Device::Cpu)).lt(density);
            let gradient = (random(&[rows, outputs]) * kept).to_kind(kind);
            let weight = random(&[outputs, inputs]).to_kind(kind);
            let found = linear_gradient(&gradient, &weight).unwrap();
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
        // More weights than a core's cache holds, and less; more rows than panels, and less; no dimension but the inputs.
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
    fn numbers_that_are_none_stay_so() {
        let input = random(&[2, 8]);
        let _ = input.get(1).get(3).fill_(f64::NAN);
        let bounds = Some(Bounds { low: 0.0, high: Some(1.0) });
        let found = linear(&input, &linear_weight(&random(&[5, 8])).unwrap(), 5, None, bounds).unwrap();
        assert!(found.get(1).isnan().all().int64_value(&[]) != 0 && found.get(0).isnan().any().int64_value(&[]) == 0);
        if has_products(Kind::BFloat16) {
            // One whose upper half alone would be infinite, or rounded to -0.
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
    fn what_does_not_fit_is_refused() {
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
        assert!(text(linear(&input.to_kind(Kind::Double), &weight, 40, None, None)).contains("an input of Float"));
        let odd = random(&[4, 7]).to_kind(Kind::BFloat16);
        let problem = if has_products(Kind::BFloat16) { "even number of inputs" } else { "instructions" };
        assert!(text(linear_weight(&odd)).contains(problem));
        assert!(text(linear_by_rows(&random(&[3, 9]), &random(&[40, 8]), None)).contains("[..., 8]"));
        assert!(text(linear_by_rows(&input, &random(&[40, 8]), Some(&random(&[8])))).contains("bias"));
        assert!(text(linear_by_rows(&input, &random(&[8, 40]).transpose(0, 1), None)).contains("contiguous"));
        let plain = random(&[40, 8]);
        assert!(text(linear_gradient(&random(&[3, 8]), &plain)).contains("[..., 40]"));
        assert!(text(linear_gradient(&random(&[3, 40]).to_kind(Kind::Double), &plain)).contains("Float"));
        assert!(text(linear_gradient(&random(&[3, 8]), &plain.transpose(0, 1))).contains("contiguous"));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let weight = linear_weight(&random(&[40, 8])).unwrap();
        assert_eq!(linear(&random(&[0, 8]), &weight, 40, None, None).unwrap().size(), [0, 40]);
    }
}
