//! Convolutions as matrix products (implicit GEMM) on the CPU, in float32, and in bfloat16 with sums in float32.
//!
//! A kernel's places are steps of one sum that stays in registers, and what follows, an addition, a clamp and its gates, is done before the sum
//! leaves them. Weights lie in panels as wide as the registers allow: a product reads them in order, and fetches the next panel while it
//! multiplies with this one. oneDNN's kernels are as fast where the weights are in the caches; of a network they seldom are. Results
//! are fetched as well: they are written in several places at once, where no processor foresees it.

use std::ptr;

use tch::{Kind, Tensor};

use super::gates::closing;
use super::kernels::{one_tensor, two_tensors};
use super::{Bounds, Gates, Moves, OperatorError, ffi};

/// The weights of a convolution, laid out for [`gemm`].
#[derive(Debug)]
pub struct GemmWeight {
    panels: Tensor,
    outputs: i64,
    /// How many of the kernel's places lie in a line, where they are taken together.
    line: i64,
}

impl GemmWeight {
    /// Of a weight `[outputs, inputs, h, w]` of a dtype that [has products](super::has_products), for each place of the kernel for itself. Of
    /// bfloat16, the number of inputs is even.
    ///
    /// # Errors
    /// Another shape or dtype, no instructions for it, out of memory.
    pub fn by_places(weight: &Tensor) -> Result<Self, OperatorError> {
        Self::packed(weight, false)
    }

    /// For each line of the kernel: fewer and longer sums where inputs are few. Where the convolution has no dilation along a line. Of bfloat16,
    /// the number of a line's inputs is even.
    ///
    /// # Errors
    /// Those of [`GemmWeight::by_places`].
    pub fn by_lines(weight: &Tensor) -> Result<Self, OperatorError> {
        Self::packed(weight, true)
    }

    fn packed(weight: &Tensor, by_lines: bool) -> Result<Self, OperatorError> {
        let panels = one_tensor("gemm_weight", |result, error| {
            // SAFETY: the tensor is alive, and the places are ours to write.
            unsafe { ffi::camlens_gemm_weight(weight.as_ptr(), by_lines, result, error) }
        })?;
        let size = weight.size();
        Ok(GemmWeight { panels, outputs: size[0], line: if by_lines { size[3] } else { 1 } })
    }

    /// As they lie.
    pub fn panels(&self) -> &Tensor {
        &self.panels
    }

    /// Whether they are as [`sparse_weight_there`](super::sparse_weight_there) has them.
    pub fn are_for_sparse(&self) -> Result<bool, OperatorError> {
        Ok(self.line == 1 && self.panels.f_kind()? == Kind::Float)
    }

    /// The same weights again.
    pub fn shared(&self) -> Self {
        GemmWeight { panels: self.panels.shallow_clone(), ..*self }
    }
}

/// What follows a convolution, in the same pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// What is added to its result, of the same shape and dtype.
    pub other: Option<&'a Tensor>,
    /// What the sums are clamped to.
    pub bounds: Option<Bounds>,
    /// Whether the gates of these bounds are wanted.
    pub has_gates: bool,
}

/// A convolution of an `input`, `[N, inputs, H, W]`, with a weight of its dtype, and a bias (float32), and what follows. Weights are to be
/// finite where the input is padded. The result has its channels next to each other in memory.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the kernel, another shape or dtype of
/// what is added, out of memory.
pub fn gemm(
    input: &Tensor,
    weight: &GemmWeight,
    moves: &Moves,
    bias: Option<&Tensor>,
    then: Then<'_>,
) -> Result<(Tensor, Option<Gates>), OperatorError> {
    let [bias, other] = [bias, then.other].map(|tensor| tensor.map_or(ptr::null(), Tensor::as_ptr));
    let [low, high] = then.bounds.map_or([f64::NAN; 2], closing);
    let GemmWeight { panels, outputs, line } = weight;
    let (input, panels, moves) = (input.as_ptr(), panels.as_ptr(), ptr::from_ref(moves));
    let convolve = |result: *mut _, gates: *mut _, error: *mut _| {
        // SAFETY: the tensors are alive, or null where they may be, `moves` is laid out as its namesake in moves.h, and the places are ours to
        // write, or null likewise.
        unsafe {
            ffi::camlens_gemm(input, panels, *line, *outputs, moves, bias, other, low, high, result, gates, error)
        }
    };
    if then.has_gates && then.bounds.is_some() {
        let (result, bits) = two_tensors("gemm", convolve)?;
        return Ok((result, Some(Gates::of_bits(bits))));
    }
    Ok((one_tensor("gemm", |result, error| convolve(result, ptr::null_mut(), error))?, None))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::torch::sparse::reference::{double, random};
    use crate::torch::{channels_last, has_products};

    #[derive(Debug)]
    struct Case {
        input: Tensor,
        weight: Tensor,
        moves: Moves,
        bias: Option<Tensor>,
        other: Option<Tensor>,
        bounds: Option<Bounds>,
        has_gates: bool,
    }

    fn axis() -> impl Strategy<Value = [i64; 5]> {
        let plain = Just([1, 1, 0, 1]);
        let any = (1..=4i64, 1..=3i64, 0..=4i64, 1..=2i64)
            .prop_map(|(kernel, stride, padding, dilation)| [kernel, stride, padding, dilation]);
        (prop_oneof![plain, any], 0..=33i64).prop_map(|([kernel, stride, padding, dilation], more)| {
            let least = (dilation * (kernel - 1) + 1 - 2 * padding).max(1);
            [least + more, kernel, stride, padding, dilation]
        })
    }

    fn bounds() -> impl Strategy<Value = Option<Bounds>> {
        let clamp = |(low, high)| Bounds { low, high: Some(high) };
        prop::option::of(prop_oneof![Just(Bounds::RELU), (-1.0..0.5f64, 0.5..2.0f64).prop_map(clamp)])
    }

    fn case() -> impl Strategy<Value = Case> {
        let channels = ((1..20i64).prop_map(|pairs| 2 * pairs), 1..150i64);
        (1..4i64, channels, [axis(), axis()], bounds(), any::<[bool; 5]>()).prop_map(
            |(rows, (inputs, outputs), axes, bounds, [has_bias, adds, has_gates, is_half, is_channels_last])| {
                let kind = if is_half && has_products(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
                let of = |i: usize| axes.map(|axis| axis[i]);
                let moves = Moves { stride: of(2), padding: of(3), dilation: of(4) };
                let input = random(&[rows, inputs, axes[0][0], axes[1][0]]).to_kind(kind);
                let input = if is_channels_last { channels_last(&input).unwrap() } else { input };
                let weight = random(&[outputs, inputs, axes[0][1], axes[1][1]]).to_kind(kind);
                let [height, width] = axes.map(|[size, kernel, stride, padding, dilation]| {
                    (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
                });
                let other = adds.then(|| random(&[rows, outputs, height, width]).to_kind(kind));
                Case { input, weight, moves, bias: has_bias.then(|| random(&[outputs])), other, bounds, has_gates }
            },
        )
    }

    fn run(case: &Case, weight: &GemmWeight) -> (Tensor, Option<Gates>) {
        let then = Then { other: case.other.as_ref(), bounds: case.bounds, has_gates: case.has_gates };
        gemm(&case.input, weight, &case.moves, case.bias.as_ref(), then).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_convolution_with_what_follows(case in case(), by_lines in any::<bool>()) {
            let by_lines = by_lines && case.moves.dilation[1] == 1;
            let packed = if by_lines { GemmWeight::by_lines(&case.weight) } else { GemmWeight::by_places(&case.weight) };
            let (found, gates) = run(&case, &packed.unwrap());
            let Case { input, weight, moves, bias, other, bounds, has_gates } = &case;
            let sum = |input: Tensor, weight: Tensor, bias: Option<Tensor>, other: Option<Tensor>| {
                let result = input.conv2d(&weight, bias, moves.stride, moves.padding, moves.dilation, 1);
                if let Some(other) = other { result + other } else { result }
            };
            let (amount, wide) = (|tensor: &Tensor| double(tensor).abs(), double);
            let summed = sum(amount(input), amount(weight), bias.as_ref().map(amount), other.as_ref().map(amount)) + 1.0;
            let mut expected = sum(wide(input), wide(weight), bias.as_ref().map(wide), other.as_ref().map(wide));
            if let Some(bounds) = bounds {
                expected = expected.clamp(bounds.low, bounds.high.unwrap_or(f64::INFINITY));
            }
            prop_assert_eq!(found.size(), expected.size());
            prop_assert_eq!(found.kind(), input.kind());
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
            // What rounding a bfloat16 result leaves.
            let rounding = if found.kind() == Kind::Float { expected.zeros_like() } else { expected.abs() / 256 };
            let error = (((double(&found) - &expected).abs() - rounding) / summed).max().double_value(&[]);
            prop_assert!(error < 1e-6, "{}", error);

            prop_assert_eq!(gates.is_some(), *has_gates && bounds.is_some());
            if let (Some(gates), Some(bounds)) = (gates, bounds) {
                let given = channels_last(&random(&found.size()).to_kind(found.kind())).unwrap();
                let of_result = Gates::of(&found, *bounds).unwrap().unwrap();
                let passed = gates.pass(&[given.copy()], true).unwrap();
                prop_assert!(passed.equal(&of_result.pass(&[given], true).unwrap()));
            }
        }
    }

    #[test]
    fn large_pictures_and_weights_are_worked_on_in_parts() {
        for (size, outputs, kernel, stride) in [
            ([1, 256, 70, 40], 8, 3, 1),
            ([2, 64, 90, 7], 96, 3, 2),
            ([1, 300, 9, 9], 500, 3, 1),
            ([2, 512, 40, 40], 300, 1, 1),
            ([1, 700, 30, 30], 260, 1, 2),
        ] {
            let moves = Moves { stride: [stride; 2], padding: [kernel / 2; 2], dilation: [1; 2] };
            let weight = random(&[outputs, size[1], kernel, kernel]);
            let case =
                Case { input: random(&size), weight, moves, bias: None, other: None, bounds: None, has_gates: false };
            let found = run(&case, &GemmWeight::by_places(&case.weight).unwrap()).0;
            let expected = double(&case.input).conv2d(
                &double(&case.weight),
                None::<Tensor>,
                moves.stride,
                moves.padding,
                [1, 1],
                1,
            );
            let error = (double(&found) - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
            assert!(error < 1e-6, "{size:?}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        fn text<T>(result: Result<T, OperatorError>) -> String {
            result.err().unwrap().to_string()
        }
        let moves = Moves { stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let weight = |outputs: i64| GemmWeight::by_places(&random(&[outputs, 8, 3, 3])).unwrap();
        let run = |input: &Tensor, weight: &GemmWeight, then| text(gemm(input, weight, &moves, None, then));
        let (input, none) = (random(&[2, 8, 5, 6]), Then::default());
        assert!(text(GemmWeight::by_places(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(GemmWeight::by_places(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let odd = random(&[4, 7, 1, 1]).to_kind(Kind::BFloat16);
        let problem = if has_products(Kind::BFloat16) { "even number of inputs" } else { "instructions" };
        assert!(text(GemmWeight::by_places(&odd)).contains(problem));
        assert!(run(&random(&[8, 5, 6]), &weight(40), none).contains("[N, inputs, H, W]"));
        assert!(run(&random(&[2, 9, 5, 6]), &weight(40), none).contains("channels"));
        assert!(run(&random(&[2, 8, 2, 6]), &weight(40), none).contains("smaller than the kernel"));
        assert!(run(&input, &GemmWeight { outputs: 400, ..weight(40) }, none).contains("panels"));
        assert!(run(&input, &GemmWeight { line: 2, ..weight(40) }, none).contains("a line of places"));
        assert!(run(&input.to_kind(Kind::Double), &weight(40), none).contains("Float"));
        let lines = GemmWeight::by_lines(&random(&[40, 8, 3, 3])).unwrap();
        let spread = Moves { dilation: [1, 2], ..moves };
        assert!(text(gemm(&input, &lines, &spread, None, none)).contains("a line of places"));
        let other = random(&[2, 40, 3, 5]);
        let then = Then { other: Some(&other), ..Then::default() };
        assert!(run(&input, &weight(40), then).contains("what is added has shape [2, 40, 3, 5]"));
        assert!(text(gemm(&input, &weight(40), &moves, Some(&random(&[8])), none)).contains("a bias of 40"));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let moves = Moves { stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let weight = GemmWeight::by_places(&random(&[40, 8, 1, 1])).unwrap();
        let none = gemm(&random(&[0, 8, 2, 2]), &weight, &moves, None, Then::default()).unwrap().0;
        assert_eq!(none.size(), [0, 40, 2, 2]);
    }
}
