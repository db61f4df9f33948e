//! Convolutions with 3 × 3 kernels and stride 1 by Winograd's algorithm.
//!
//! Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, 2016 (arXiv 1509.09308). F(2×2, 3×3) takes 16
//! products where the direct sum takes 36, F(4×4, 3×3) takes 36 instead of 144; weights take 16/9 and 36/9 of their
//! memory. In float32 the relative error is about 0.7 and 2 times that of the direct sum.

use tch::{Device, Kind, TchError, Tensor};

use super::call::run;
use super::element::ElementType;
use super::panels::{Bias, pack};
use super::tensor::{View, channels_last, data_mut, empty, empty_channels_last, expect, refused};
use super::{Bounds, ffi};
use crate::torch::OperatorError;

/// The numbers of input and output channels are multiples of this.
pub const WINOGRAD_CHANNELS: i64 = 16;

/// The edge of a tile's output, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WinogradStep {
    Two = 2,
    Four = 4,
}

impl WinogradStep {
    /// The edge of an input tile.
    fn edge(self) -> i64 {
        self as i64 + 2
    }

    /// G, `[edge, 3]` in float64, for the interpolation points in micro/winograd.cpp: the row of a point p is 1, p, p²
    /// over the product of the differences to the other points.
    fn weight_transform(self) -> Result<Tensor, TchError> {
        let (a, b) = (0.75, 1.5);
        let by_a = 1.0 / (2.0 * a * a * (a * a - b * b));
        let by_b = 1.0 / (2.0 * b * b * (b * b - a * a));
        #[rustfmt::skip]
        let rows = match self {
            WinogradStep::Two => vec![
                1.0, 0.0, 0.0,
                0.5, 0.5, 0.5,
                0.5, -0.5, 0.5,
                0.0, 0.0, 1.0,
            ],
            WinogradStep::Four => vec![
                1.0 / (a * a * b * b), 0.0, 0.0,
                by_a, by_a * a, by_a * a * a,
                by_a, by_a * -a, by_a * a * a,
                by_b, by_b * b, by_b * b * b,
                by_b, by_b * -b, by_b * b * b,
                0.0, 0.0, 1.0,
            ],
        };
        Tensor::f_from_slice(&rows)?.f_view([self.edge(), 3])
    }
}

/// Transforms the weight `[outputs, inputs, 3, 3]` of a convolution for [`winograd`]: `[edge², panels, inputs, panel
/// width]`, float32.
///
/// # Errors
/// No instructions for it ([`has_gemm_kernels`](super::has_gemm_kernels)), another kernel, channels that are
/// not multiples of [`WINOGRAD_CHANNELS`], out of memory.
pub fn winograd_weight(weight: &Tensor, step: WinogradStep) -> Result<Tensor, OperatorError> {
    let view = View::of(weight);
    let shape = view.dimensions::<4>().filter(|size| size[2..] == [3, 3]);
    let [outputs, inputs, _, _] = shape
        .ok_or_else(|| refused("winograd_weight", format!("a kernel of 3 × 3 is expected, not {:?}", view.size())))?;
    let fits = view.elements() > 0 && outputs % WINOGRAD_CHANNELS == 0 && inputs % WINOGRAD_CHANNELS == 0;
    expect(fits, "winograd_weight", || format!("channels in multiples of 16 are expected, not {:?}", view.size()))?;
    let width = panel_width("winograd_weight")?;
    let positions = step.edge() * step.edge();
    let _guard = tch::no_grad_guard();
    let transform = step.weight_transform()?;
    let transposed = transform.f_transpose(0, 1)?;
    let panels = (outputs + width - 1) / width;
    let result = empty(&[positions, panels, inputs, width], Kind::Float)?;
    // One panel at a time takes little memory beyond the result's.
    for panel in 0..panels {
        let columns = width.min(outputs - panel * width);
        let part = weight.f_narrow(0, panel * width, columns)?.f_to_kind(Kind::Double)?;
        let values = transform.f_matmul(&part)?.f_matmul(&transposed)?.f_permute([2, 3, 1, 0])?;
        let values = values.f_reshape([positions, inputs, columns])?.f_to_kind(Kind::Float)?;
        result.f_select(1, panel)?.f_copy_(&pack("winograd_weight", &values)?.f_select(1, 0)?)?;
    }
    Ok(result)
}

/// A convolution with stride 1 and `padding` on all sides of `[N, inputs, H, W]`, float32 or bfloat16, with a
/// [transformed weight](winograd_weight), within `bounds`. The result is channels-last.
///
/// # Errors
/// Another dtype or device, a bias that is not float32, other numbers of channels, an input smaller than the
/// kernel, out of memory.
pub fn winograd(
    input: &Tensor,
    weight: &Tensor,
    outputs: i64,
    bias: Option<&Tensor>,
    padding: i64,
    bounds: Option<Bounds>,
) -> Result<Tensor, OperatorError> {
    let panel_width = panel_width("winograd")?;
    let given = View::of(input);
    let (element, [batch, channels, height, width]) =
        given.element_type().zip(given.dimensions()).ok_or_else(|| {
            refused("winograd", "images [N, C, H, W] of float32 or bfloat16 on the CPU are expected".to_owned())
        })?;
    let packed = View::of(weight);
    let panels = (outputs + panel_width - 1) / panel_width;
    let fits = packed.dimensions::<4>().filter(|&[_, n, inputs, columns]| {
        packed.element_type() == Some(ElementType::Float32)
            && packed.is_contiguous()
            && packed.elements() > 0
            && n == panels
            && columns == panel_width
            && outputs % WINOGRAD_CHANNELS == 0
            && inputs % WINOGRAD_CHANNELS == 0
    });
    let steps = [WinogradStep::Two, WinogradStep::Four];
    let fits = fits.and_then(|[positions, _, inputs, _]| {
        let step = steps.into_iter().find(|step| step.edge() * step.edge() == positions)?;
        Some((step, inputs))
    });
    let (step, inputs) = fits.ok_or_else(|| {
        refused("winograd", format!("transformed weights of {outputs} outputs are expected, not {:?}", packed.size()))
    })?;
    expect(channels == inputs, "winograd", || format!("the input has {channels} channels, the weights {inputs}"))?;
    let bias = Bias::exact("winograd", bias, outputs)?;
    let padded = |edge: i64| padding.checked_mul(2).and_then(|both| both.checked_add(edge)).map(|edge| edge - 2);
    let sizes = padded(height).zip(padded(width)).filter(|&(down, across)| padding >= 0 && down > 0 && across > 0);
    let (result_height, result_width) = sizes
        .ok_or_else(|| refused("winograd", format!("the input is smaller than the kernel: {:?}", given.size())))?;
    let input = channels_last(input)?;
    let size = [batch, outputs, result_height, result_width];
    let mut result = empty_channels_last(size, element.kind(), Device::Cpu)?;
    if size.contains(&0) {
        return Ok(result);
    }
    let [low, high] = Bounds::limits(bounds).map(|limit| limit as f32);
    let call = ffi::WinogradConvolution {
        element: element as i32,
        input: View::of(&input).data(),
        batch,
        height,
        width,
        inputs,
        weight: packed.data(),
        step: step as i64,
        bias: bias.data(),
        padding,
        low,
        high,
        result: data_mut(&mut result),
        result_height,
        result_width,
        outputs,
    };
    run("winograd", |error| {
        // SAFETY: all tensors are live, dense and of the sizes in `call`, which were checked above; the result is
        // fresh.
        unsafe { ffi::camlens_winograd(&raw const call, error) }
    })?;
    Ok(result)
}

/// The width of the panels of float32.
fn panel_width(kernel: &str) -> Result<i64, OperatorError> {
    let width = ElementType::Float32.panel_width();
    width.ok_or_else(|| refused(kernel, "the processor lacks AVX2".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::relative_error;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    proptest! {
        #[test]
        fn it_is_the_sum_over_the_kernel(
            rows in 1..4i64,
            inputs in (1..4i64).prop_map(|n| n * WINOGRAD_CHANNELS),
            outputs in (1..4i64).prop_map(|n| n * WINOGRAD_CHANNELS),
            size in [1..20i64, 1..20i64],
            padding in 0..3i64,
            has_bias in any::<bool>(),
            high in prop::option::of(0.5..1.5f64),
            is_channels_last in any::<bool>(),
            step in prop_oneof![Just((WinogradStep::Two, 6e-7)), Just((WinogradStep::Four, 3e-6))],
        ) {
            let size = size.map(|edge| edge.max(3 - 2 * padding));
            let input = random(&[rows, inputs, size[0], size[1]]);
            let input = if is_channels_last { crate::torch::channels_last(&input).unwrap() } else { input };
            let weight = random(&[outputs, inputs, 3, 3]) * (1.0 / inputs as f64).sqrt();
            let bias = has_bias.then(|| random(&[outputs]));
            let bounds = high.map(|high| Bounds { low: -0.25, high: Some(high) });
            let double = |t: &Tensor| t.to_kind(Kind::Double);
            let sum = double(&input).conv2d(&double(&weight), bias.as_ref().map(double), 1, padding, 1, 1);
            let expected = bounds.map_or(sum.shallow_clone(), |b| sum.clamp(b.low, b.high.unwrap()));
            let (step, allowed) = step;
            let weight = winograd_weight(&weight, step).unwrap();
            let found = winograd(&input, &weight, outputs, bias.as_ref(), padding, bounds).unwrap();
            prop_assert_eq!(found.size(), expected.size());
            // Relative to the sum, since the clamped result may be small.
            let error = relative_error(&(&sum + (double(&found) - &expected)), &sum);
            prop_assert!(error < allowed, "{}", error);
            let [_, channels, height, width] = *found.size().as_slice() else { panic!() };
            prop_assert_eq!(found.stride(), [channels * height * width, 1, width * channels, channels]);
        }
    }

    #[test]
    fn images_of_bfloat16_are_transformed_in_float32() {
        let half = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
        let (input, weight, bias) = (half(random(&[2, 32, 13, 14])), half(random(&[48, 32, 3, 3])), random(&[48]));
        let double = |t: &Tensor| t.to_kind(Kind::Double);
        let expected = double(&input).conv2d(&double(&weight), Some(double(&bias)), 1, 1, 1, 1);
        for step in [WinogradStep::Two, WinogradStep::Four] {
            let weight = winograd_weight(&weight, step).unwrap();
            let found = winograd(&input, &weight, 48, Some(&bias), 1, None).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            // As exact as bfloat16 rounding: at most 2⁻⁸, about 2⁻⁹·√(1/3) on average.
            assert!(relative_error(&found, &half(expected.shallow_clone()).to_kind(Kind::Double)) < 1e-3);
            assert!(relative_error(&found, &expected) < 2.5e-3);
        }
        let nan = Tensor::full([1, 32, 4, 4], f64::NAN, (Kind::BFloat16, Device::Cpu));
        let found = winograd(&nan, &winograd_weight(&weight, WinogradStep::Two).unwrap(), 48, None, 1, None).unwrap();
        assert!(found.isnan().all().int64_value(&[]) != 0);
    }

    #[test]
    fn more_tiles_than_one_block() {
        // Small weights, which every thread reads, and large ones, of which each thread reads a part.
        for (size, outputs) in [([2, 16, 130, 131], 32), ([2, 256, 40, 41], 192)] {
            let (input, weight) = (random(&size), random(&[outputs, size[1], 3, 3]));
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let expected = double(&input).conv2d(&double(&weight), None::<Tensor>, 1, 1, 1, 1);
            for step in [WinogradStep::Two, WinogradStep::Four] {
                let found = winograd(&input, &winograd_weight(&weight, step).unwrap(), outputs, None, 1, None).unwrap();
                assert!(relative_error(&found, &expected) < 3e-6);
            }
        }
    }

    #[test]
    fn nan_stays() {
        let input = random(&[1, 16, 4, 4]);
        let _ = input.get(0).get(3).get(1).get(1).fill_(f64::NAN);
        let weight = winograd_weight(&random(&[16, 16, 3, 3]), WinogradStep::Two).unwrap();
        let found = winograd(&input, &weight, 16, None, 1, Some(Bounds { low: 0.0, high: Some(1.0) })).unwrap();
        assert!(found.get(0).get(0).get(1).get(1).double_value(&[]).is_nan());
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let error = |result: Result<Tensor, OperatorError>| result.unwrap_err().to_string();
        let of = |shape: &[i64]| error(winograd_weight(&random(shape), WinogradStep::Two));
        assert!(of(&[16, 16, 5, 5]).contains("3 × 3"));
        assert!(of(&[16, 8, 3, 3]).contains("multiples of 16"));
        let weight = winograd_weight(&random(&[16, 32, 3, 3]), WinogradStep::Four).unwrap();
        let with = |input: &Tensor| error(winograd(input, &weight, 16, None, 0, None));
        assert!(with(&random(&[1, 16, 5, 5])).contains("channels"));
        assert!(with(&random(&[1, 32, 2, 5])).contains("smaller"));
        assert!(with(&random(&[1, 32, 5, 5]).to_kind(Kind::Double)).contains("float32"));
        for outputs in [8, 64] {
            assert!(error(winograd(&random(&[1, 32, 5, 5]), &weight, outputs, None, 0, None)).contains("weights"));
        }
        assert!(of(&[0, 0, 3, 3]).contains("multiples of 16"));
        assert!(
            error(winograd(&random(&[1, 32, 5, 5]), &random(&[36, 1, 32, 8]), 16, None, 0, None)).contains("weights")
        );
        let bias = random(&[8]);
        assert!(error(winograd(&random(&[1, 32, 5, 5]), &weight, 16, Some(&bias), 0, None)).contains("bias"));
    }
}
