//! Gradients to the input of a convolution that has few input channels, such as a network's first.
//!
//! Every pixel of the gradient is multiplied with the whole kernel, without its zeros as in
//! [`sparse_input_gradient`](super::sparse_input_gradient), and the products are added where the kernel lies (col2im).
//! A convolution with three outputs would leave most of a vector register empty.

use tch::Tensor;

use super::call::run;
use super::convolution::check_gradient;
use super::panels::pack_sparse;
use super::tensor::{View, channels_last, data_mut, empty, expect, multiplied_type, refused};
use super::{ConvolutionParameters, PendingMask, ffi};
use crate::torch::OperatorError;

/// Packs the weight `[outputs, inputs, h, w]` of a convolution for [`col2im_input_gradient`]. The dtype is one that
/// [`has_gemm_kernels`](super::has_gemm_kernels).
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn col2im_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    let shape = view.dimensions::<4>().filter(|_| view.elements() > 0);
    let [outputs, inputs, height, width] = shape.ok_or_else(|| {
        refused("col2im_weight", format!("a weight [outputs, inputs, h, w] is expected, not {:?}", view.size()))
    })?;
    let (_, panel_width) = multiplied_type("col2im_weight", &view)?;
    let row = width * inputs;
    let padded = panels_per_row(panel_width, width, inputs) * panel_width;
    let _guard = tch::no_grad_guard();
    let rows = weight.f_permute([0, 2, 3, 1])?.f_reshape([outputs, height, row])?;
    let rows = rows.f_constant_pad_nd([0, padded - row])?.f_reshape([outputs, height * padded])?;
    pack_sparse("col2im_weight", &rows)
}

/// The panels of one kernel row, `[w, inputs]`.
fn panels_per_row(panel_width: i64, kernel_width: i64, inputs: i64) -> i64 {
    (kernel_width * inputs + panel_width - 1) / panel_width
}

/// As [`sparse_input_gradient`](super::sparse_input_gradient), of a convolution without dilation whose `kernel` has
/// this height and width, with a [packed weight](col2im_weight). The result is contiguous.
///
/// # Errors
/// Another dtype or device, a gradient that the convolution does not give, a weight whose panels are not those
/// of the kernel and the input's channels, a dilation, out of memory.
pub fn col2im_input_gradient(
    gradient: &Tensor,
    pending: Option<PendingMask<'_>>,
    weight: &Tensor,
    kernel: [i64; 2],
    size: [i64; 4],
    parameters: &ConvolutionParameters,
) -> Result<Tensor, OperatorError> {
    let name = "col2im_input_gradient";
    let packed = View::of(weight);
    let (element, panel_width) = multiplied_type(name, &packed)?;
    let inputs = size[1];
    let panels = panels_per_row(panel_width, kernel[1], inputs);
    let fits = packed.dimensions::<3>().filter(|&[n, _, width]| {
        n == kernel[0] * panels && width == panel_width && packed.is_contiguous() && packed.elements() > 0
    });
    let [_, outputs, _] = fits.ok_or_else(|| {
        refused(name, format!("a weight in panels for {inputs} inputs is expected, not {:?}", packed.size()))
    })?;
    let given = View::of(gradient);
    let [batch, _, gradient_height, gradient_width] =
        check_gradient(name, &given, element, outputs, kernel, size, parameters)?;
    expect(parameters.dilation == [1, 1], name, || "no dilation is expected".to_owned())?;
    let (gates, is_guided) = PendingMask::bits(pending, name, &given)?;
    let mut result = empty(&size, element.kind())?;
    if size.contains(&0) {
        return Ok(result);
    }
    let gradient = channels_last(gradient)?;
    let call = ffi::Col2imGradient {
        element: element as i32,
        gradient: View::of(&gradient).data(),
        batch,
        gradient_height,
        gradient_width,
        outputs,
        gates,
        is_guided,
        weight: packed.data(),
        kernel,
        panels,
        parameters: *parameters,
        result: data_mut(&mut result),
        inputs,
        height: size[2],
        width: size[3],
    };
    run(name, |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_col2im(&raw const call, error) }
    })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::torch::has_gemm_kernels;
    use crate::torch::kernels::sparse::reference::{Case, case, error, expected, gates, passed, random, sparse};

    const BY_ONE: ConvolutionParameters = ConvolutionParameters { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    fn gradient_of(case: &Case, pending: Option<PendingMask<'_>>) -> Result<Tensor, OperatorError> {
        let [_, _, height, width] = *case.weight.size().as_slice() else { panic!() };
        let weight = col2im_weight(&case.weight)?;
        col2im_input_gradient(&case.gradient, pending, &weight, [height, width], case.size, &case.parameters)
    }

    proptest! {
        #[test]
        fn it_is_the_gradient(case in case(5, 1)) {
            let found = gradient_of(&case, None).unwrap();
            prop_assert_eq!(found.size(), case.size);
            prop_assert!(found.is_contiguous());
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }

        #[test]
        fn it_passes_a_gradient_through_pending_gates(case in case(5, 1), guided in any::<bool>()) {
            let gates = gates(&case);
            let pending = PendingMask { gates: &gates, guided };
            let found = gradient_of(&case, Some(pending)).unwrap();
            let error = error(&found, &expected(&passed(case, pending)));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    #[test]
    fn the_first_convolutions_of_networks() {
        // 7 × 7 with stride 2 and 11 × 11 with stride 4, on sizes that the stride does and does not divide; patches.
        for (kernel, stride, padding, size) in
            [(7, 2, 3, 224), (7, 2, 3, 225), (11, 4, 2, 135), (3, 1, 1, 65), (6, 2, 5, 9), (4, 4, 0, 64), (3, 5, 0, 16)]
        {
            let parameters = ConvolutionParameters { stride: [stride; 2], padding: [padding; 2], ..BY_ONE };
            let given = [size, size + 1].map(|size| (size + 2 * padding - kernel) / stride + 1);
            for density in [0.1, 1.0] {
                let gradient = sparse(&[2, 24, given[0], given[1]], density);
                let weight = random(&[24, 3, kernel, kernel]);
                let case = Case { gradient, weight, size: [2, 3, size, size + 1], parameters };
                assert!(
                    error(&gradient_of(&case, None).unwrap(), &expected(&case)) < 1e-6,
                    "kernel {kernel} stride {stride}"
                );
            }
        }
    }

    #[test]
    fn bfloat16_is_summed_in_float32() {
        if !has_gemm_kernels(Kind::BFloat16) {
            let refused = col2im_weight(&random(&[64, 3, 7, 7]).to_kind(Kind::BFloat16)).unwrap_err().to_string();
            assert!(refused.contains("instructions"), "{refused}");
            return;
        }
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        let parameters = ConvolutionParameters { stride: [2, 2], padding: [3, 3], ..BY_ONE };
        let case = Case {
            gradient: half(sparse(&[1, 64, 20, 21], 0.2)),
            weight: half(random(&[64, 3, 7, 7])),
            size: [1, 3, 40, 41],
            parameters,
        };
        let found = gradient_of(&case, None).unwrap();
        assert_eq!(found.kind(), Kind::BFloat16);
        let (expected, summed) = expected(&case);
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        let error = (double(&found) - &expected).abs() - expected.abs() / 256;
        assert!((error / summed).max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn any_number_of_threads_gives_the_same() {
        let before = tch::get_num_threads();
        let case = Case {
            gradient: sparse(&[2, 64, 56, 57], 0.3),
            weight: random(&[64, 3, 3, 3]),
            size: [2, 3, 112, 113],
            parameters: ConvolutionParameters { stride: [2, 2], padding: [1, 1], ..BY_ONE },
        };
        let found = [1, 3, 16].map(|threads| {
            tch::set_num_threads(threads);
            gradient_of(&case, None).unwrap()
        });
        tch::set_num_threads(before);
        assert!(found[1].equal(&found[0]) && found[2].equal(&found[0]));
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let text = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(text(col2im_weight(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(col2im_weight(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let weight = col2im_weight(&random(&[8, 3, 3, 3])).unwrap();
        let with = |given: &Tensor, kernel, size, parameters: &ConvolutionParameters| {
            text(col2im_input_gradient(given, None, &weight, kernel, size, parameters))
        };
        let given = random(&[1, 8, 4, 4]);
        assert!(with(&given, [3, 3], [1, 300, 6, 6], &BY_ONE).contains("300 inputs"));
        assert!(with(&given, [4, 3], [1, 3, 7, 6], &BY_ONE).contains("panels"));
        assert!(with(&given, [3, 3], [1, 3, 9, 6], &BY_ONE).contains("shape"));
        assert!(with(&random(&[1, 9, 4, 4]), [3, 3], [1, 3, 6, 6], &BY_ONE).contains("channels"));
        assert!(
            with(&given, [3, 3], [1, 3, 8, 8], &ConvolutionParameters { dilation: [2, 2], ..BY_ONE })
                .contains("dilation")
        );
        assert!(
            with(&given, [3, 3], [1, 3, 6, 6], &ConvolutionParameters { stride: [0, 1], ..BY_ONE }).contains("move")
        );
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let weight = col2im_weight(&random(&[8, 3, 1, 1])).unwrap();
        let found =
            col2im_input_gradient(&random(&[0, 8, 2, 2]), None, &weight, [1, 1], [0, 3, 2, 2], &BY_ONE).unwrap();
        assert_eq!(found.size(), [0, 3, 2, 2]);
    }
}
