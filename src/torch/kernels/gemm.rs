//! Convolutions as matrix products (implicit GEMM), in float32, and in bfloat16 with sums in float32.
//!
//! A product accumulates all taps of the kernel in registers, and the epilogue (an addition, a clamp and its gates) is
//! applied before the sums leave them. Weights are packed in panels: a product reads them in order and prefetches the
//! next panel while it multiplies with this one. oneDNN's kernels are as fast when the weights are in the caches; in a
//! network they seldom are. The result's cache lines are prefetched too: several rows are written in turn, which no
//! hardware prefetcher foresees.

use std::ptr;

use tch::{Device, Kind, Tensor};

use super::call::run;
use super::gates::{MASK_BITS, closing};
use super::panels::{Bias, pack};
use super::tensor::{View, channels_last, data_mut, empty_channels_last, expect, multiplied_type, refused};
use super::{Bounds, ConvolutionParameters, Gates, ffi};
use crate::torch::OperatorError;

/// The weight of a convolution, packed for [`gemm`].
#[derive(Debug)]
pub struct GemmWeight {
    /// `[taps along the height, along the width, panels, steps, panel width]`, for bfloat16 with two elements per step.
    panels: Tensor,
    outputs: i64,
    /// How many taps are packed as one: 1, or the kernel's width.
    taps_per_step: i64,
}

impl GemmWeight {
    /// Packs a weight `[outputs, inputs, h, w]` tap by tap. The dtype is one that
    /// [`has_gemm_kernels`](super::has_gemm_kernels); bfloat16 takes an even number of inputs.
    ///
    /// # Errors
    /// Another shape or dtype, no instructions for it, out of memory.
    pub fn by_taps(weight: &Tensor) -> Result<Self, OperatorError> {
        Self::packed(weight, false)
    }

    /// Packs each row of the kernel as one tap: fewer, longer sums for a convolution with few inputs, without dilation
    /// along the width. bfloat16 takes an even number of inputs times the kernel's width.
    ///
    /// # Errors
    /// Those of [`GemmWeight::by_taps`].
    pub fn by_kernel_rows(weight: &Tensor) -> Result<Self, OperatorError> {
        Self::packed(weight, true)
    }

    fn packed(weight: &Tensor, by_kernel_rows: bool) -> Result<Self, OperatorError> {
        let view = View::of(weight);
        let shape = view.dimensions::<4>().filter(|_| view.elements() > 0);
        let [outputs, _, _, width] = shape.ok_or_else(|| {
            refused("gemm_weight", format!("a weight [outputs, inputs, h, w] is expected, not {:?}", view.size()))
        })?;
        let _guard = tch::no_grad_guard();
        let taps = weight.f_permute([2, 3, 1, 0])?;
        let taps = if by_kernel_rows { taps.f_flatten(1, 2)?.f_unsqueeze(1)? } else { taps };
        let panels = pack("gemm_weight", &taps)?;
        Ok(GemmWeight { panels, outputs, taps_per_step: if by_kernel_rows { width } else { 1 } })
    }

    pub fn panels(&self) -> &Tensor {
        &self.panels
    }

    /// Whether [`panels`](Self::panels) are also a [`sparse_forward_weight`](super::sparse_forward_weight).
    pub fn fit_sparse_kernels(&self) -> Result<bool, OperatorError> {
        Ok(self.taps_per_step == 1 && self.panels.f_kind()? == Kind::Float)
    }

    /// The same weight in the same memory.
    pub fn shallow_clone(&self) -> Self {
        GemmWeight { panels: self.panels.shallow_clone(), ..*self }
    }
}

/// What follows a convolution, in the same pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// A tensor of the result's shape and dtype that is added.
    pub addend: Option<&'a Tensor>,
    /// The bounds to which the sums are clamped.
    pub bounds: Option<Bounds>,
    /// Whether to return the gates of these bounds.
    pub has_gates: bool,
}

/// A convolution of `input`, `[N, inputs, H, W]`, with a weight of its dtype and a bias of float32, and its epilogue.
/// Weights are finite if the input is padded. The result is channels-last.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the
/// kernel, an addend of another shape or dtype, out of memory.
pub fn gemm(
    input: &Tensor,
    weight: &GemmWeight,
    parameters: &ConvolutionParameters,
    bias: Option<&Tensor>,
    epilogue: Epilogue<'_>,
) -> Result<(Tensor, Option<Gates>), OperatorError> {
    let GemmWeight { panels, outputs, taps_per_step } = weight;
    let panels = View::of(panels);
    let (element, panel_width) = multiplied_type("gemm", &panels)?;
    let kernel_and_steps = match *panels.size() {
        [h, w, n, steps, width] if element.per_step() == 1 => Some((h, w, n, steps, width)),
        [h, w, n, steps, width, 2] if element.per_step() == 2 => Some((h, w, n, steps, width)),
        _ => None,
    };
    let columns = (outputs + panel_width - 1) / panel_width;
    let fits = kernel_and_steps.filter(|&(_, _, n, _, width)| n == columns && width == panel_width);
    let (kernel_rows, kernel_taps, _, steps, _) = fits.filter(|_| panels.is_contiguous()).ok_or_else(|| {
        refused("gemm", format!("a weight in panels for {outputs} outputs is expected, not {:?}", panels.size()))
    })?;
    let given = View::of(input);
    let shape = given.dimensions::<4>().filter(|_| given.element_type() == Some(element));
    let [batch, channels, height, width] = shape.ok_or_else(|| {
        refused("gemm", format!("an input [N, inputs, H, W] of {} on the CPU is expected", element.name()))
    })?;
    let touch = *taps_per_step == 1 || (kernel_taps == 1 && parameters.dilation[1] == 1);
    expect(touch, "gemm", || "kernel rows of adjacent taps are expected".to_owned())?;
    let depth = steps * element.per_step();
    expect(channels * taps_per_step == depth, "gemm", || {
        format!("the input has {channels} channels, the weight {}", depth / taps_per_step)
    })?;
    let [result_height, result_width] =
        parameters.result_size("gemm", [height, width], [kernel_rows, kernel_taps * taps_per_step])?;
    expect(result_height > 0 && result_width > 0, "gemm", || {
        format!("the input is smaller than the kernel: {:?}", given.size())
    })?;
    let size = [batch, *outputs, result_height, result_width];
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    let result_view = View::of(&result);
    let addend = epilogue.addend.map(|addend| {
        let view = View::of(addend);
        expect(view.is_alike(&result_view), "gemm", || {
            format!("the addend has shape {:?}, the result {size:?}; both have one type", view.size())
        })?;
        Ok::<_, OperatorError>(channels_last(addend)?)
    });
    let addend = addend.transpose()?;
    let limits = epilogue.bounds.map_or([f64::NAN; 2], closing);
    let mut gates = None;
    if epilogue.has_gates && epilogue.bounds.is_some() {
        let mut bits = Gates::empty(&result_view)?;
        // Some bytes of the last word may have no channel, and are not written.
        if outputs % MASK_BITS != 0 {
            let _ = bits.f_zero_()?;
        }
        gates = Some(bits);
    }
    if result_view.elements() == 0 {
        return Ok((result, gates.map(Gates::of_bits)));
    }
    let bias = Bias::padded("gemm", bias, *outputs, panel_width)?;
    let input = channels_last(input)?;
    let [low, high] = limits.map(|limit| limit as f32);
    let call = ffi::GemmConvolution {
        element: element as i32,
        input: View::of(&input).data(),
        batch,
        height,
        width,
        inputs: channels,
        weight: panels.data(),
        kernel: [kernel_rows, kernel_taps],
        steps,
        taps_per_step: *taps_per_step,
        parameters: *parameters,
        bias: bias.data(),
        addend: addend.as_ref().map_or(ptr::null(), |addend| View::of(addend).data()),
        low,
        high,
        result: data_mut(&mut result),
        result_height,
        result_width,
        outputs: *outputs,
        gates: gates.as_mut().map_or(ptr::null_mut(), data_mut),
        gate_low: element.rounded(low),
        gate_high: element.rounded(high),
    };
    run("gemm", |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result and the
        // gates are fresh.
        unsafe { ffi::camlens_gemm(&raw const call, error) }
    })?;
    Ok((result, gates.map(Gates::of_bits)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::torch::kernels::sparse::reference::{double, random};
    use crate::torch::{channels_last, has_gemm_kernels};

    #[derive(Debug)]
    struct Case {
        input: Tensor,
        weight: Tensor,
        parameters: ConvolutionParameters,
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
                let kind = if is_half && has_gemm_kernels(Kind::BFloat16) { Kind::BFloat16 } else { Kind::Float };
                let of = |i: usize| axes.map(|axis| axis[i]);
                let parameters = ConvolutionParameters { stride: of(2), padding: of(3), dilation: of(4) };
                let input = random(&[rows, inputs, axes[0][0], axes[1][0]]).to_kind(kind);
                let input = if is_channels_last { channels_last(&input).unwrap() } else { input };
                let weight = random(&[outputs, inputs, axes[0][1], axes[1][1]]).to_kind(kind);
                let [height, width] = axes.map(|[size, kernel, stride, padding, dilation]| {
                    (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
                });
                let other = adds.then(|| random(&[rows, outputs, height, width]).to_kind(kind));
                Case { input, weight, parameters, bias: has_bias.then(|| random(&[outputs])), other, bounds, has_gates }
            },
        )
    }

    fn run(case: &Case, weight: &GemmWeight) -> (Tensor, Option<Gates>) {
        let then = Epilogue { addend: case.other.as_ref(), bounds: case.bounds, has_gates: case.has_gates };
        gemm(&case.input, weight, &case.parameters, case.bias.as_ref(), then).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_convolution_with_its_epilogue(case in case(), by_kernel_rows in any::<bool>()) {
            let by_kernel_rows = by_kernel_rows && case.parameters.dilation[1] == 1;
            let pack = if by_kernel_rows { GemmWeight::by_kernel_rows } else { GemmWeight::by_taps };
            let (found, gates) = run(&case, &pack(&case.weight).unwrap());
            let Case { input, weight, parameters, bias, other, bounds, has_gates } = &case;
            let sum = |input: Tensor, weight: Tensor, bias: Option<Tensor>, other: Option<Tensor>| {
                let result = input.conv2d(&weight, bias, parameters.stride, parameters.padding, parameters.dilation, 1);
                if let Some(other) = other { result + other } else { result }
            };
            let (size, wide) = (|tensor: &Tensor| double(tensor).abs(), double);
            let summed = sum(size(input), size(weight), bias.as_ref().map(size), other.as_ref().map(size)) + 1.0;
            let mut expected = sum(wide(input), wide(weight), bias.as_ref().map(wide), other.as_ref().map(wide));
            if let Some(bounds) = bounds {
                expected = expected.clamp(bounds.low, bounds.high.unwrap_or(f64::INFINITY));
            }
            prop_assert_eq!(found.size(), expected.size());
            prop_assert_eq!(found.kind(), input.kind());
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
            // The rounding error of a bfloat16 result.
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
    fn large_images_and_weights_are_computed_in_parts() {
        for (size, outputs, kernel, stride) in [
            ([1, 256, 70, 40], 8, 3, 1),
            ([2, 64, 90, 7], 96, 3, 2),
            ([1, 300, 9, 9], 500, 3, 1),
            ([2, 512, 40, 40], 300, 1, 1),
            ([1, 700, 30, 30], 260, 1, 2),
        ] {
            let parameters = ConvolutionParameters { stride: [stride; 2], padding: [kernel / 2; 2], dilation: [1; 2] };
            let weight = random(&[outputs, size[1], kernel, kernel]);
            let case = Case {
                input: random(&size),
                weight,
                parameters,
                bias: None,
                other: None,
                bounds: None,
                has_gates: false,
            };
            let found = run(&case, &GemmWeight::by_taps(&case.weight).unwrap()).0;
            let expected = double(&case.input).conv2d(
                &double(&case.weight),
                None::<Tensor>,
                parameters.stride,
                parameters.padding,
                [1, 1],
                1,
            );
            let error = (double(&found) - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
            assert!(error < 1e-6, "{size:?}: {error}");
        }
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        fn text<T>(result: Result<T, OperatorError>) -> String {
            result.err().unwrap().to_string()
        }
        let parameters = ConvolutionParameters { stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let weight = |outputs: i64| GemmWeight::by_taps(&random(&[outputs, 8, 3, 3])).unwrap();
        let run = |input: &Tensor, weight: &GemmWeight, then| text(gemm(input, weight, &parameters, None, then));
        let (input, none) = (random(&[2, 8, 5, 6]), Epilogue::default());
        assert!(text(GemmWeight::by_taps(&random(&[4, 4]))).contains("[outputs, inputs, h, w]"));
        assert!(text(GemmWeight::by_taps(&random(&[4, 4, 1, 1]).to_kind(Kind::Double))).contains("instructions"));
        let odd = random(&[4, 7, 1, 1]).to_kind(Kind::BFloat16);
        let problem = if has_gemm_kernels(Kind::BFloat16) { "even number of inputs" } else { "instructions" };
        assert!(text(GemmWeight::by_taps(&odd)).contains(problem));
        assert!(run(&random(&[8, 5, 6]), &weight(40), none).contains("[N, inputs, H, W]"));
        assert!(run(&random(&[2, 9, 5, 6]), &weight(40), none).contains("channels"));
        assert!(run(&random(&[2, 8, 2, 6]), &weight(40), none).contains("smaller than the kernel"));
        assert!(run(&input, &GemmWeight { outputs: 400, ..weight(40) }, none).contains("panels"));
        assert!(run(&input, &GemmWeight { taps_per_step: 2, ..weight(40) }, none).contains("kernel rows"));
        assert!(run(&input.to_kind(Kind::Double), &weight(40), none).contains("float32"));
        let lines = GemmWeight::by_kernel_rows(&random(&[40, 8, 3, 3])).unwrap();
        let spread = ConvolutionParameters { dilation: [1, 2], ..parameters };
        assert!(text(gemm(&input, &lines, &spread, None, none)).contains("kernel rows"));
        let other = random(&[2, 40, 3, 5]);
        let then = Epilogue { addend: Some(&other), ..Epilogue::default() };
        assert!(run(&input, &weight(40), then).contains("the addend has shape [2, 40, 3, 5]"));
        assert!(text(gemm(&input, &weight(40), &parameters, Some(&random(&[8])), none)).contains("a bias of 40"));
    }

    #[test]
    fn empty_tensors_give_empty_results() {
        let parameters = ConvolutionParameters { stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let weight = GemmWeight::by_taps(&random(&[40, 8, 1, 1])).unwrap();
        let none = gemm(&random(&[0, 8, 2, 2]), &weight, &parameters, None, Epilogue::default()).unwrap().0;
        assert_eq!(none.size(), [0, 40, 2, 2]);
    }
}
