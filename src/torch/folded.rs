//! Gradients to the few channels of a network's input, on the CPU.
//!
//! Every pixel of a gradient is multiplied with the whole kernel at once, without its zeros as in [`sparse`](super::sparse_input_gradient),
//! and what comes of it is added where the kernel lay. A convolution with three outputs would leave most of a vector register empty.

use std::ptr;

use tch::Tensor;

use super::gates::{Ahead, pointers};
use super::kernels::one_tensor;
use super::{Moves, OperatorError, ffi};

/// The weights `[outputs, inputs, h, w]` of a convolution, for [`folded_input_gradient`], of a dtype that
/// [has products](super::has_products).
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn folded_weight(weight: &Tensor) -> Result<Tensor, OperatorError> {
    one_tensor("folded_weight", |result, error| {
        // SAFETY: the tensor is alive, and the places are ours to write.
        unsafe { ffi::camlens_folded_weight(weight.as_ptr(), result, error) }
    })
}

/// As [`sparse_input_gradient`](super::sparse_input_gradient), of a convolution without dilation whose `kernel` has that height and width.
/// The result is contiguous.
///
/// # Errors
/// Another dtype or device, a shape that the convolution does not give, a weight with more or fewer panels than a kernel for so many inputs
/// has, a dilation, out of memory.
pub fn folded_input_gradient(
    gradient: &Tensor,
    ahead: Option<Ahead<'_>>,
    weight: &Tensor,
    kernel: [i64; 2],
    size: [i64; 4],
    moves: &Moves,
) -> Result<Tensor, OperatorError> {
    let (gates, guided) = pointers(ahead);
    one_tensor("folded_input_gradient", |result, error| {
        // SAFETY: the tensors are alive, the gates are null or are too, `moves` is laid out as its namesake in moves.h, and the places are ours
        // to write.
        unsafe {
            ffi::camlens_folded_input_gradient(
                gradient.as_ptr(),
                gates,
                guided,
                weight.as_ptr(),
                kernel.as_ptr(),
                size.as_ptr(),
                ptr::from_ref(moves),
                result,
                error,
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::torch::has_products;
    use crate::torch::sparse::reference::{Case, case, error, expected, gates, passed, random, sparse};

    const BY_ONE: Moves = Moves { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    fn gradient_of(case: &Case, ahead: Option<Ahead<'_>>) -> Result<Tensor, OperatorError> {
        let [_, _, height, width] = *case.weight.size().as_slice() else { panic!() };
        let weight = folded_weight(&case.weight)?;
        folded_input_gradient(&case.gradient, ahead, &weight, [height, width], case.size, &case.moves)
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
        fn it_takes_a_gradient_through_the_gates_ahead(case in case(5, 1), guided in any::<bool>()) {
            let gates = gates(&case);
            let ahead = Ahead { gates: &gates, guided };
            let found = gradient_of(&case, Some(ahead)).unwrap();
            let error = error(&found, &expected(&passed(case, ahead)));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    #[test]
    fn the_first_convolutions_of_networks() {
        // 7 × 7 with stride 2 and 11 × 11 with stride 4, on sizes that the stride does and does not divide; patches.
        for (kernel, stride, padding, size) in
            [(7, 2, 3, 224), (7, 2, 3, 225), (11, 4, 2, 135), (3, 1, 1, 65), (6, 2, 5, 9), (4, 4, 0, 64), (3, 5, 0, 16)]
        {
            let moves = Moves { stride: [stride; 2], padding: [padding; 2], ..BY_ONE };
            let given = [size, size + 1].map(|size| (size + 2 * padding - kernel) / stride + 1);
            for density in [0.1, 1.0] {
                let gradient = sparse(&[2, 24, given[0], given[1]], density);
                let weight = random(&[24, 3, kernel, kernel]);
                let case = Case { gradient, weight, size: [2, 3, size, size + 1], moves };
                assert!(
                    error(&gradient_of(&case, None).unwrap(), &expected(&case)) < 1e-6,
                    "kernel {kernel} stride {stride}"
                );
            }
        }
    }

    #[test]
    fn bfloat16_is_summed_in_float32() {
        if !has_products(Kind::BFloat16) {
            let refused = folded_weight(&random(&[64, 3, 7, 7]).to_kind(Kind::BFloat16)).unwrap_err().to_string();
            assert!(refused.contains("instructions"), "{refused}");
            return;
        }
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        let moves = Moves { stride: [2, 2], padding: [3, 3], ..BY_ONE };
        let case = Case {
            gradient: half(sparse(&[1, 64, 20, 21], 0.2)),
            weight: half(random(&[64, 3, 7, 7])),
            size: [1, 3, 40, 41],
            moves,
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
            moves: Moves { stride: [2, 2], padding: [1, 1], ..BY_ONE },
        };
        let found = [1, 3, 16].map(|threads| {
            tch::set_num_threads(threads);
            gradient_of(&case, None).unwrap()
        });
        tch::set_num_threads(before);
        assert!(found[1].equal(&found[0]) && found[2].equal(&found[0]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let text = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(text(folded_weight(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(folded_weight(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let weight = folded_weight(&random(&[8, 3, 3, 3])).unwrap();
        let with = |given: &Tensor, kernel, size, moves: &Moves| {
            text(folded_input_gradient(given, None, &weight, kernel, size, moves))
        };
        let given = random(&[1, 8, 4, 4]);
        assert!(with(&given, [3, 3], [1, 300, 6, 6], &BY_ONE).contains("300 inputs"));
        assert!(with(&given, [4, 3], [1, 3, 7, 6], &BY_ONE).contains("panels"));
        assert!(with(&given, [3, 3], [1, 3, 9, 6], &BY_ONE).contains("shape"));
        assert!(with(&random(&[1, 9, 4, 4]), [3, 3], [1, 3, 6, 6], &BY_ONE).contains("channels"));
        assert!(with(&given, [3, 3], [1, 3, 8, 8], &Moves { dilation: [2, 2], ..BY_ONE }).contains("dilation"));
        assert!(with(&given, [3, 3], [1, 3, 6, 6], &Moves { stride: [0, 1], ..BY_ONE }).contains("move"));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let weight = folded_weight(&random(&[8, 3, 1, 1])).unwrap();
        let found =
            folded_input_gradient(&random(&[0, 8, 2, 2]), None, &weight, [1, 1], [0, 3, 2, 2], &BY_ONE).unwrap();
        assert_eq!(found.size(), [0, 3, 2, 2]);
    }
}
