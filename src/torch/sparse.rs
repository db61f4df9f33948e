//! Convolutions, and the ways back through them, of inputs and gradients that are zero in many places, on the CPU.
//!
//! A rectifier's results are zero in every other place. What comes back through one is zero in the same, and with guided
//! backpropagation wherever it would be negative too: of a ResNet's gradients about seven numbers in ten, nine in ten above a maximum. A
//! pixel's zeros are left out: a mask of bits tells which numbers are none, and those alone are multiplied, with rows of weights that a
//! core's smallest cache holds while pixels pass by. A 1 × 1 convolution of float32 with few zeros is an ordinary product, unless gates are
//! still [ahead](Ahead). Weights are to be finite: a zero may be multiplied with one or not.

use std::ptr;

use tch::Tensor;

use super::gates::{Ahead, pointers};
use super::kernels::one_tensor;
use super::{Bounds, OperatorError, ffi};

/// How a convolution moves over its input: along its height, then along its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Moves {
    pub stride: [i64; 2],
    pub padding: [i64; 2],
    pub dilation: [i64; 2],
}

/// The weights `[outputs, inputs, h, w]` of a convolution, for [`sparse_convolution`], of a dtype that
/// [has products](super::has_products).
///
/// # Errors
/// Another shape or dtype, no instructions for it, out of memory.
pub fn sparse_weight_there(weight: &Tensor) -> Result<Tensor, OperatorError> {
    packed(weight, false)
}

/// The same for [`sparse_input_gradient`].
///
/// # Errors
/// Those of [`sparse_weight_there`].
pub fn sparse_weight_back(weight: &Tensor) -> Result<Tensor, OperatorError> {
    packed(weight, true)
}

fn packed(weight: &Tensor, back: bool) -> Result<Tensor, OperatorError> {
    one_tensor("sparse_weight", |result, error| {
        // SAFETY: the tensor is alive, and the places are ours to write.
        unsafe { ffi::camlens_sparse_weight(weight.as_ptr(), back, result, error) }
    })
}

/// A convolution of an `input`, `[N, inputs, H, W]`, with such a weight for so many `outputs`, of its dtype, and a bias (float32), within
/// `bounds` where they are given. Sums are float32. The result has its channels next to each other in memory.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the kernel, out of memory.
pub fn sparse_convolution(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    moves: &Moves,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let [low, high] = Bounds::limits(bounds);
    one_tensor("sparse_convolution", |result, error| {
        // SAFETY: the tensors are alive, the bias is null or is too, `moves` is laid out as its namesake in moves.h, and the places are ours
        // to write.
        unsafe {
            ffi::camlens_sparse_convolution(
                input.as_ptr(),
                weight.as_ptr(),
                outputs,
                bias,
                ptr::from_ref(moves),
                low,
                high,
                result,
                error,
            )
        }
    })
}

/// The gradient to an input of `size`, `[N, inputs, H, W]`, of a convolution with such a weight, from `gradient`, that of its result, of the
/// weight's dtype, which may still have gates [ahead](Ahead) of it. The weight may be [that for the way there](sparse_weight_there), with
/// `of_there`, of float32: it is transposed as it is read, which takes longer where there are few pixels, and no memory. Sums are float32. The
/// result has its channels next to each other in memory.
///
/// # Errors
/// Another dtype or device, gates of another shape, a shape that the convolution does not give, a weight with more or fewer panels than so
/// many inputs have, out of memory.
pub fn sparse_input_gradient(
    gradient: &Tensor,
    ahead: Option<Ahead<'_>>,
    weight: &Tensor,
    of_there: bool,
    size: [i64; 4],
    moves: &Moves,
) -> Result<Tensor, OperatorError> {
    let (gates, guided) = pointers(ahead);
    one_tensor("sparse_input_gradient", |result, error| {
        // SAFETY: the tensors are alive, the gates are null or are too, `moves` is laid out as its namesake in moves.h, and the places are ours
        // to write.
        unsafe {
            ffi::camlens_sparse_input_gradient(
                gradient.as_ptr(),
                gates,
                guided,
                weight.as_ptr(),
                of_there,
                size.as_ptr(),
                ptr::from_ref(moves),
                result,
                error,
            )
        }
    })
}

/// What PyTorch's own operators give.
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
        pub moves: Moves,
    }

    /// Gates for the gradient, open for about a half of it.
    pub fn gates(case: &Case) -> Gates {
        let result = channels_last(&random(&case.gradient.size())).unwrap();
        Gates::of(&result, Bounds::RELU).unwrap().unwrap()
    }

    /// The case of what comes through the gates.
    pub fn passed(case: Case, ahead: Ahead<'_>) -> Case {
        let gradient = ahead.gates.pass(&[case.gradient.shallow_clone()], ahead.guided).unwrap();
        Case { gradient, ..case }
    }

    pub fn double(tensor: &Tensor) -> Tensor {
        tensor.to_kind(Kind::Double)
    }

    pub fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Random numbers, of which so many are not zero.
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

    /// With up to so many input channels.
    pub fn case(most_inputs: i64, most_dilation: i64) -> impl Strategy<Value = Case> {
        let density = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
        let axes = [axis(most_dilation), axis(most_dilation)];
        (1..4i64, 1..150i64, 1..=most_inputs, axes, density, any::<[bool; 2]>()).prop_map(
            |(rows, outputs, inputs, axes, density, [is_channels_last, is_product])| {
                let axes = if is_product { axes.map(|axis| [axis[0], 1, 1, 0, 1]) } else { axes };
                let of = |i: usize| axes.map(|axis| axis[i]);
                let moves = Moves { stride: of(2), padding: of(3), dilation: of(4) };
                let [height, width] = axes.map(|[size, kernel, stride, padding, dilation]| {
                    (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
                });
                let gradient = sparse(&[rows, outputs, height, width], density);
                let gradient = if is_channels_last { channels_last(&gradient).unwrap() } else { gradient };
                let weight = random(&[outputs, inputs, axes[0][1], axes[1][1]]);
                Case { gradient, weight, size: [rows, inputs, axes[0][0], axes[1][0]], moves }
            },
        )
    }

    /// The gradient, and the sum of the amounts that it is a sum of, and 1.
    pub fn expected(case: &Case) -> (Tensor, Tensor) {
        let Case { gradient, weight, size, moves } = case;
        let by = |gradient: &Tensor, weight: &Tensor| {
            let input = Tensor::zeros(size, (Kind::Double, Device::Cpu)).set_requires_grad(true);
            let result = input.conv2d(weight, None::<Tensor>, moves.stride, moves.padding, moves.dilation, 1);
            Tensor::run_backward(&[(result * gradient).sum(Kind::Double)], &[&input], false, false).remove(0)
        };
        let (gradient, weight) = (double(gradient), double(weight));
        (by(&gradient, &weight), by(&gradient.abs(), &weight.abs()) + 1.0)
    }

    /// The largest difference, relative to what is summed.
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
    use crate::torch::{Gates, channels_last, has_products};

    proptest! {
        #[test]
        fn it_is_the_gradient(case in case(150, 2)) {
            let weight = sparse_weight_back(&case.weight).unwrap();
            let found = sparse_input_gradient(&case.gradient, None, &weight, false, case.size, &case.moves).unwrap();
            prop_assert_eq!(found.size(), case.size);
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn the_weight_for_the_way_there_serves_too(case in case(150, 2), has_gates in any::<bool>(), guided in any::<bool>()) {
            let weight = sparse_weight_there(&case.weight).unwrap();
            let gates = gates(&case);
            let ahead = has_gates.then_some(Ahead { gates: &gates, guided });
            let found = sparse_input_gradient(&case.gradient, ahead, &weight, true, case.size, &case.moves).unwrap();
            let case = match ahead {
                Some(ahead) => passed(case, ahead),
                None => case,
            };
            let error = error(&found, &expected(&case));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    proptest! {
        #[test]
        fn it_takes_a_gradient_through_the_gates_ahead(case in case(150, 2), guided in any::<bool>()) {
            let (weight, gates) = (sparse_weight_back(&case.weight).unwrap(), gates(&case));
            let ahead = Ahead { gates: &gates, guided };
            let found = sparse_input_gradient(&case.gradient, Some(ahead), &weight, false, case.size, &case.moves).unwrap();
            let error = error(&found, &expected(&passed(case, ahead)));
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
            let Case { gradient, weight, size, moves } = case;
            let (input, outputs) = (sparse(&size, density), weight.size()[0]);
            let bias = has_bias.then(|| random(&[outputs]));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let packed = sparse_weight_there(&weight).unwrap();
            let found = sparse_convolution(&input, &packed, outputs, bias.as_ref(), &moves, bounds).unwrap();
            prop_assert_eq!(found.size(), gradient.size());
            let by = |input: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
                let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
                double(input).conv2d(&double(weight), bias.map(double), moves.stride, moves.padding, moves.dilation, 1)
            };
            let sum = by(&input, &weight, bias.as_ref());
            let expected = bounds.map_or(sum.shallow_clone(), |b| sum.clamp(b.low, b.high.unwrap()));
            let error = error(&found, &(expected, by(&input.abs(), &weight.abs(), None) + 1.0));
            prop_assert!(error < 1e-6, "{}", error);
        }
    }

    const BY_ONE: Moves = Moves { stride: [1, 1], padding: [0, 0], dilation: [1, 1] };

    /// What has bfloat16 on a processor without is refused.
    fn assert_refused(weight: Result<Tensor, OperatorError>) {
        let error = weight.unwrap_err().to_string();
        assert!(error.contains("instructions"), "{error}");
    }

    #[test]
    fn bfloat16_is_summed_in_float32() {
        if !has_products(Kind::BFloat16) {
            return assert_refused(sparse_weight_back(&random(&[64, 48, 1, 1]).to_kind(Kind::BFloat16)));
        }
        for (outputs, inputs, kernel, density) in
            [(64, 48, 1, 0.3), (131, 200, 3, 0.3), (66, 3, 3, 0.1), (64, 64, 1, 1.0), (1, 5, 1, 1.0)]
        {
            let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let weight = half(random(&[outputs, inputs, kernel, kernel]));
            let gradient = half(sparse(&[2, outputs, 9, 10], density));
            let size = [2, inputs, 8 + kernel, 9 + kernel];
            let found =
                sparse_input_gradient(&gradient, None, &sparse_weight_back(&weight).unwrap(), false, size, &BY_ONE)
                    .unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let (expected, summed) = expected(&Case { gradient, weight, size, moves: BY_ONE });
            // What rounding the result leaves, relative to it, and of the sum.
            let error = (found.to_kind(Kind::Double) - &expected).abs() - expected.abs() / 256;
            assert!((error / summed).max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn bfloat16_comes_through_the_gates_ahead() {
        if !has_products(Kind::BFloat16) {
            let numbers = channels_last(&random(&[2, 131, 9, 10]).to_kind(Kind::BFloat16)).unwrap();
            assert!(Gates::of(&numbers, Bounds::RELU).unwrap().is_none());
            return;
        }
        let half = |tensor: Tensor| channels_last(&tensor.to_kind(Kind::BFloat16)).unwrap();
        let weight = sparse_weight_back(&half(random(&[131, 48, 3, 3]))).unwrap();
        let gradient = half(random(&[2, 131, 9, 10]));
        let _ = gradient.select(1, 7).fill_(-f64::NAN);
        let closed = half(random(&[2, 131, 9, 10]));
        let _ = closed.select(1, 7).fill_(0.0);
        let gates = Gates::of(&closed, Bounds::RELU).unwrap().unwrap();
        let open = Gates::of(&half(random(&[2, 131, 9, 10]).abs() + 1.0), Bounds::RELU).unwrap().unwrap();
        let with = |given: &Tensor, ahead| {
            sparse_input_gradient(given, ahead, &weight, false, [2, 48, 11, 12], &BY_ONE).unwrap()
        };
        for guided in [false, true] {
            let passed = gates.pass(&[gradient.shallow_clone()], guided).unwrap();
            assert!(with(&gradient, Some(Ahead { gates: &gates, guided })).equal(&with(&passed, None)));
            let all = with(&gradient, Some(Ahead { gates: &open, guided }));
            assert!(all.isnan().all().int64_value(&[]) != 0, "what is none stays so, whatever its sign");
        }
    }

    #[test]
    fn a_convolution_of_bfloat16_too() {
        if !has_products(Kind::BFloat16) {
            return assert_refused(sparse_weight_there(&random(&[48, 64, 1, 1]).to_kind(Kind::BFloat16)));
        }
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        for (inputs, outputs, kernel, stride, density) in
            [(64, 48, 1, 1, 0.3), (131, 200, 3, 2, 0.3), (64, 80, 1, 2, 1.0)]
        {
            let moves = Moves { stride: [stride; 2], ..BY_ONE };
            let (input, bias) = (half(sparse(&[2, inputs, 9, 10], density)), random(&[outputs]));
            let weight = half(random(&[outputs, inputs, kernel, kernel]));
            let packed = sparse_weight_there(&weight).unwrap();
            let found = sparse_convolution(&input, &packed, outputs, Some(&bias), &moves, Some(Bounds::RELU)).unwrap();
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
            let moves = Moves { stride: [stride; 2], padding: [kernel / 2; 2], ..BY_ONE };
            let weight = sparse_weight_back(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let given = sparse(&[size[0], outputs, (size[2] - 1) / stride + 1, (size[3] - 1) / stride + 1], 0.4);
            let there = sparse_weight_there(&random(&[outputs, size[1], kernel, kernel])).unwrap();
            let input = sparse(&size, 0.5);
            // Some lines dense, some not; and a bias: sums begin with it, dense or not.
            let _ = input.narrow(2, 0, size[2] / 2).fill_(0.5);
            let bias = random(&[outputs]);
            let gates = Gates::of(&channels_last(&random(&given.size())).unwrap(), Bounds::RELU).unwrap().unwrap();
            let ahead = Some(Ahead { gates: &gates, guided: true });
            let found = [1, 3, 16].map(|threads| {
                tch::set_num_threads(threads);
                [
                    sparse_input_gradient(&given, None, &weight, false, size, &moves).unwrap(),
                    sparse_input_gradient(&given, ahead, &there, true, size, &moves).unwrap(),
                    sparse_convolution(&input, &there, outputs, Some(&bias), &moves, None).unwrap(),
                ]
            });
            tch::set_num_threads(before);
            for other in &found[1..] {
                assert!(other.iter().zip(&found[0]).all(|(one, other)| one.equal(other)));
            }
        }
    }

    #[test]
    fn numbers_that_are_none_stay_so_and_the_smallest_count() {
        let weight = sparse_weight_back(&random(&[8, 5, 1, 1]).abs()).unwrap();
        let gradient = Tensor::zeros([1, 8, 1, 3], (Kind::Float, Device::Cpu));
        let _ = gradient.select(3, 0).select(1, 3).fill_(f64::NAN);
        let _ = gradient.select(3, 1).select(1, 6).fill_(1e-42);
        let found = sparse_input_gradient(&gradient, None, &weight, false, [1, 5, 1, 3], &BY_ONE).unwrap();
        assert!(found.select(3, 0).isnan().all().int64_value(&[]) != 0);
        assert!(found.select(3, 2).equal(&Tensor::zeros([1, 5, 1], (Kind::Float, Device::Cpu))));
        let tiny = random(&[1, 1, 1, 1]).fill_(1e-30);
        let large = sparse_weight_back(&random(&[1, 1, 1, 1]).fill_(1e30)).unwrap();
        let found = sparse_input_gradient(&tiny, None, &large, false, [1, 1, 1, 1], &BY_ONE).unwrap();
        assert!((found.double_value(&[0, 0, 0, 0]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let text = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        assert!(text(sparse_weight_back(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(sparse_weight_back(&random(&[4, 4, 1, 0]))).contains("[outputs, inputs, h, w]"));
        assert!(text(sparse_weight_back(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let weight = sparse_weight_back(&random(&[8, 40, 3, 3])).unwrap();
        let with =
            |given: &Tensor, size, moves: &Moves| text(sparse_input_gradient(given, None, &weight, false, size, moves));
        let given = random(&[1, 8, 4, 4]);
        assert!(with(&random(&[1, 9, 4, 4]), [1, 40, 6, 6], &BY_ONE).contains("channels"));
        assert!(with(&given.to_kind(Kind::Double), [1, 40, 6, 6], &BY_ONE).contains("Float"));
        assert!(with(&given, [1, 400, 6, 6], &BY_ONE).contains("400 channels"));
        assert!(with(&given, [1, 40, 7, 6], &BY_ONE).contains("shape"));
        assert!(with(&given, [2, 40, 6, 6], &BY_ONE).contains("shape"));
        assert!(with(&given, [1, 40, 2, 6], &BY_ONE).contains("shape"));
        let gates = Gates::of(&channels_last(&random(&[1, 8, 4, 5])).unwrap(), Bounds::RELU).unwrap().unwrap();
        let ahead = Ahead { gates: &gates, guided: true };
        assert!(
            text(sparse_input_gradient(&given, Some(ahead), &weight, false, [1, 40, 6, 6], &BY_ONE)).contains("gates")
        );
        assert!(with(&given, [1, 40, 6, 6], &Moves { stride: [0, 1], ..BY_ONE }).contains("move"));
        let there = sparse_weight_there(&random(&[40, 8, 3, 3])).unwrap();
        let with = |input: &Tensor, outputs, bias: Option<&Tensor>| {
            text(sparse_convolution(input, &there, outputs, bias, &BY_ONE, None))
        };
        assert!(with(&random(&[1, 9, 4, 4]), 40, None).contains("channels"));
        assert!(with(&random(&[1, 8, 2, 4]), 40, None).contains("smaller"));
        assert!(with(&given, 400, None).contains("400 channels"));
        assert!(with(&given, 40, Some(&random(&[8]))).contains("bias"));
        assert!(with(&given.to_kind(Kind::Double), 40, None).contains("Float"));
        assert!(
            text(sparse_input_gradient(&given, None, &random(&[8, 40, 3, 3]), false, [1, 40, 6, 6], &BY_ONE))
                .contains("panels")
        );
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let weight = sparse_weight_back(&random(&[8, 40, 1, 1])).unwrap();
        let found =
            sparse_input_gradient(&random(&[0, 8, 2, 2]), None, &weight, false, [0, 40, 2, 2], &BY_ONE).unwrap();
        assert_eq!(found.size(), [0, 40, 2, 2]);
    }
}
