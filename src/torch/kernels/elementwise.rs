//! Elementwise work for which ATen takes several passes over memory, and a change of layout at which it is slow.

use std::ffi::c_void;
use std::ptr;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::call::{Parts, run};
use super::element::ElementType;
use super::tensor::{self, Operand, View, data_mut, empty_channels_last, expect};
use super::{Bounds, ffi};
use crate::torch::{OperatorError, cuda};

/// Passes a gradient through a rectifier, in one pass over memory: the sum of `parts` where the rectifier's `result`
/// lies strictly between its bounds, 0 elsewhere; if `guided`, `max(sum, 0)` there. Parts and result have one shape.
/// The gradient has the result's strides, and may take over the memory of a part that nothing else holds.
///
/// # Errors
/// No part at all, shapes that differ, out of memory.
pub fn gate(parts: &[Tensor], result: &Tensor, bounds: Bounds, guided: bool) -> Result<Tensor, OperatorError> {
    if let Some(gradient) = cuda::gate(parts, result, bounds, guided) {
        return gradient;
    }
    let parts = Parts::of(parts)?;
    let view = View::of(result);
    let mut element = view.element_type().filter(|_| !bounds.low.is_nan());
    let mut gradient = None;
    for part in [Some(parts.first()), parts.second()].into_iter().flatten() {
        let given = View::of(part);
        expect(given.size() == view.size(), "gate", || {
            format!("the gradient has shape {:?}, the result {:?}", given.size(), view.size())
        })?;
        element = element.filter(|element| given.element_type() == Some(*element));
        if gradient.is_none() && given.is_overwritable() && given.strides() == view.strides() {
            gradient = Some(part);
        }
    }
    let Some(element) = element else { return gate_by_operators(&parts, result, bounds, guided) };
    let gradient = gradient.map_or_else(|| result.f_empty_like(), |part| Ok(part.shallow_clone()))?;
    let [low, high] = match element {
        ElementType::Float32 => [bounds.low as f32, bounds.high.unwrap_or(f64::NAN) as f32],
        // The result was rounded after it was clamped, and so is the bound that it is compared with.
        ElementType::BFloat16 => {
            [bounds.low, bounds.high.unwrap_or(f64::NAN)].map(|bound| element.rounded(bound as f32))
        }
    };
    let pointers: [*const C_tensor; 2] = [parts.first().as_ptr(), parts.second().map_or(ptr::null(), Tensor::as_ptr)];
    let count = 1 + usize::from(parts.second().is_some());
    let (element, to, result) = (element as i32, gradient.as_ptr(), result.as_ptr());
    run("gate", |error| {
        // SAFETY: all tensors are live and of one shape and type, and the first `count` pointers are not null. The
        // gradient is fresh, or it is a part that nothing else holds.
        unsafe { ffi::camlens_gate(element, to, pointers.as_ptr(), count, result, low, high, guided, error) }
    })?;
    Ok(gradient)
}

/// [`gate`] with ATen's operators, for what the kernel does not cover.
fn gate_by_operators(
    parts: &Parts<'_>,
    result: &Tensor,
    bounds: Bounds,
    guided: bool,
) -> Result<Tensor, OperatorError> {
    let _guard = tch::no_grad_guard();
    let summed;
    let sum = match parts.second() {
        None => parts.first(),
        Some(second) => {
            summed = parts.first().f_add(second)?;
            &summed
        }
    };
    let mut passed = match bounds.high.filter(|high| !high.is_nan()) {
        None => result.f_threshold_backward(sum, bounds.low)?,
        Some(high) => result.f_hardtanh_backward(sum, bounds.low, high)?,
    };
    Ok(if guided { passed.f_relu_()? } else { passed })
}

/// `sum + other`, in the memory of `sum` if nothing else holds it.
///
/// # Errors
/// Shapes that do not broadcast, out of memory.
pub fn add(sum: Tensor, other: &Tensor) -> Result<Tensor, OperatorError> {
    let _guard = tch::no_grad_guard();
    let view = View::of(&sum);
    let is_in_place = view.is_overwritable() && view.is_alike(&View::of(other));
    Ok(if is_in_place { sum.f_add_out(&sum, other)? } else { sum.f_add(other)? })
}

/// `min(max(sum + other, low), high)` in one pass over memory, in the memory of `sum` if nothing else holds it. An
/// absent bound does not limit.
///
/// # Errors
/// Shapes that differ, out of memory.
pub fn add_clamped(sum: Tensor, other: &Tensor, bounds: Bounds) -> Result<Tensor, OperatorError> {
    let (left, right) = (View::of(&sum), View::of(other));
    expect(left.size() == right.size(), "add_clamped", || {
        format!("the sum has shape {:?}, the addend {:?}", left.size(), right.size())
    })?;
    let [low, high] = Bounds::limits(Some(bounds));
    if left.is_overwritable()
        && let Some(result) = cuda::add_clamped(&sum, other, bounds)
    {
        return result;
    }
    let Some(element) = left.element_type().filter(|_| left.is_alike(&right)) else {
        let _guard = tch::no_grad_guard();
        return Ok(sum.f_add(other)?.f_clamp_(low, high)?);
    };
    let result = if left.is_overwritable() { sum.shallow_clone() } else { sum.f_empty_like()? };
    let [low, high] = [low as f32, high as f32];
    run("add_clamped", |error| {
        // SAFETY: all tensors are live and of one shape and type. The result is fresh, or it is `sum`, which nothing
        // else holds and which ends here.
        unsafe {
            ffi::camlens_add_clamped(element as i32, result.as_ptr(), sum.as_ptr(), other.as_ptr(), low, high, error)
        }
    })?;
    Ok(result)
}

/// `[N, C, H, W]` with the channels of a pixel adjacent in memory; the tensor itself if it is so already.
///
/// # Errors
/// Another number of dimensions, out of memory.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, OperatorError> {
    let view = View::of(tensor);
    let bytes = view.element_bytes();
    let interleaved = view.dimensions::<4>().filter(|size| {
        view.is_strided_on_cpu() && view.is_contiguous() && matches!(size[1], 3 | 4) && matches!(bytes, 2 | 4)
    });
    let Some(size) = interleaved.filter(|_| !view.is_channels_last()) else {
        return Ok(match tensor::channels_last(tensor)? {
            Operand::Given(tensor) => tensor.shallow_clone(),
            Operand::Copied(copy) => copy,
        });
    };
    let [images, channels, height, width] = size;
    let mut result = empty_channels_last(size, tensor.f_kind()?, Device::Cpu)?;
    let (from, to) = (view.data::<c_void>(), data_mut(&mut result));
    run("channels_last", |error| {
        // SAFETY: both tensors are live and dense, with these sizes and elements of `bytes` bytes; the result is fresh.
        unsafe { ffi::camlens_interleave(from, images, channels, height, width, bytes, to, error) }
    })?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::Storage;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    fn random(shape: &[i64], is_channels_last: bool) -> Tensor {
        let tensor = Tensor::randn(shape, (Kind::Float, Device::Cpu));
        if is_channels_last { tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]) } else { tensor }
    }

    proptest! {
        #[test]
        fn a_gate_is_atens(
            shape in [1..3i64, 1..20i64, 1..9i64, 1..9i64],
            layouts in any::<[bool; 3]>(),
            count in 1..4usize,
            high in prop::option::of(0.1..1.0f64),
            low in prop_oneof![Just(0.0), Just(-0.5)],
            guided in any::<bool>(),
            kind in prop_oneof![Just(Kind::Float), Just(Kind::Double)],
        ) {
            let parts: Vec<Tensor> = (0..count).map(|i| random(&shape, layouts[i % 2]).to_kind(kind)).collect();
            // Some results equal a bound.
            let result = (random(&shape, layouts[2]) * 4.0).round().to_kind(kind) / 4.0;
            let sum = parts.iter().skip(1).fold(parts[0].copy(), |sum, part| sum + part);
            let expected = match high {
                None => result.threshold_backward(&sum, low),
                Some(high) => result.hardtanh_backward(&sum, low, high),
            };
            let expected = if guided { expected.clamp_min(0) } else { expected };
            // Held twice, so that they are not overwritten.
            let held: Vec<Tensor> = parts.iter().map(Tensor::shallow_clone).collect();
            let before: Vec<Tensor> = parts.iter().map(Tensor::copy).collect();
            let found = gate(&parts, &result, Bounds { low, high }, guided).unwrap();
            prop_assert!(found.equal(&expected));
            prop_assert!(held.iter().zip(&before).all(|(now, before)| now.equal(before)));
            drop(held);
            let found = gate(&parts, &result, Bounds { low, high }, guided).unwrap();
            prop_assert!(found.equal(&expected));
        }

        #[test]
        fn a_gate_of_bfloat16_is_that_of_float32_rounded_once(
            shape in [1..3i64, 1..20i64, 1..9i64, 1..9i64],
            layouts in any::<[bool; 3]>(),
            has_two in any::<bool>(),
            high in prop::option::of(0.1..1.0f64),
            guided in any::<bool>(),
        ) {
            let narrow = |tensor: Tensor| tensor.to_kind(Kind::BFloat16);
            let parts: Vec<Tensor> =
                (0..1 + usize::from(has_two)).map(|i| narrow(random(&shape, layouts[i]))).collect();
            let bounds = Bounds { low: 0.0, high };
            // A rectifier's result before rounding; one at a bound that bfloat16 cannot represent stays at the bound.
            let result = random(&shape, layouts[2]).clamp(0.0, high.unwrap_or(f64::INFINITY));
            // Elsewhere rounding may move a result to the bound, and either gate would be right.
            let rounded_bound = high.map(|high| narrow(Tensor::from(high as f32)).double_value(&[]));
            let reaches = |t: &Tensor| rounded_bound.map(|bound| t.to_kind(Kind::Double).ge(bound));
            let result = match (reaches(&narrow(result.shallow_clone())), high) {
                (Some(reached), Some(high)) => result.masked_fill(&reached, high),
                _ => result,
            };
            let wide: Vec<Tensor> = parts.iter().map(|part| part.to_kind(Kind::Float)).collect();
            let expected = narrow(gate(&wide, &result, bounds, guided).unwrap());
            let found = gate(&parts, &narrow(result), bounds, guided).unwrap();
            prop_assert_eq!(found.kind(), Kind::BFloat16);
            prop_assert!(found.equal(&expected));
        }

        #[test]
        fn a_clamped_sum_is_atens(
            shape in [1..3i64, 1..20i64, 1..9i64, 1..9i64],
            layouts in any::<[bool; 2]>(),
            high in prop::option::of(0.1..1.0f64),
            kind in prop_oneof![Just(Kind::Float), Just(Kind::Double), Just(Kind::BFloat16)],
        ) {
            let [one, two] = layouts.map(|is_channels_last| random(&shape, is_channels_last).to_kind(kind));
            let wide = if kind == Kind::BFloat16 { Kind::Float } else { kind };
            let sum = one.to_kind(wide) + two.to_kind(wide);
            let expected = sum.clamp(-0.5, high.unwrap_or(f64::INFINITY)).to_kind(kind);
            let (held, before) = (one.shallow_clone(), one.copy());
            let bounds = Bounds { low: -0.5, high };
            prop_assert!(add_clamped(one, &two, bounds).unwrap().equal(&expected));
            prop_assert!(held.equal(&before), "it is held elsewhere");
            prop_assert!(add_clamped(held, &two, bounds).unwrap().equal(&expected));
        }

        #[test]
        fn channels_become_adjacent(
            channels in 2..6i64,
            is_channels_last in any::<bool>(),
            kind in prop_oneof![Just(Kind::Float), Just(Kind::Double), Just(Kind::BFloat16)],
        ) {
            let tensor = random(&[2, channels, 5, 7], is_channels_last).to_kind(kind);
            let found = channels_last(&tensor).unwrap();
            prop_assert!(found.equal(&tensor));
            prop_assert_eq!(found.stride(), [channels * 35, 1, channels * 7, channels]);
        }
    }

    #[test]
    fn a_gate_takes_over_memory_that_nothing_else_holds() {
        let result = Tensor::from_slice(&[1.0f32, -1.0, 2.0]);
        let address = |tensor: &Tensor| Storage::of(tensor).address;
        let parts = [Tensor::from_slice(&[1.0f32, 2.0, -3.0]), Tensor::from_slice(&[1.0f32, 1.0, 1.0])];
        let held = parts[0].shallow_clone();
        let found = gate(&parts, &result, Bounds::RELU, true).unwrap();
        assert_eq!(address(&found), address(&parts[1]), "the first is held elsewhere");
        assert_eq!(values(&found), [2.0, 0.0, 0.0]);
        assert_eq!(values(&held), [1.0, 2.0, -3.0]);
        // A view of memory that another tensor shares.
        let base = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        let view = base.narrow(0, 1, 3);
        let found = gate(&[view], &result, Bounds::RELU, false).unwrap();
        assert_eq!(values(&found), [2.0, 0.0, 4.0]);
        assert_eq!(values(&base), [1.0, 2.0, 3.0, 4.0]);
        // One expanded element: the memory is shorter than the shape.
        let expanded = Tensor::from_slice(&[5.0f32]).expand([3], false);
        assert_eq!(values(&gate(&[expanded], &result, Bounds::RELU, false).unwrap()), [5.0, 0.0, 5.0]);
    }

    #[test]
    fn a_sum_takes_over_memory_that_nothing_else_holds() {
        let other = Tensor::from_slice(&[10.0f32, 20.0]);
        let mine = Tensor::from_slice(&[1.0f32, 2.0]);
        let address = Storage::of(&mine).address;
        let sum = add(mine, &other).unwrap();
        assert_eq!((values(&sum), Storage::of(&sum).address), (vec![11.0, 22.0], address));
        let held = sum.shallow_clone();
        let more = add(sum, &other).unwrap();
        assert_eq!((values(&more), values(&held)), (vec![21.0, 42.0], vec![11.0, 22.0]));
        assert_eq!(values(&add(Tensor::from_slice(&[1.0f32]).expand([2], false), &other).unwrap()), [11.0, 21.0]);
    }

    #[test]
    fn nan_passes_as_in_aten() {
        let nan = f32::NAN;
        let gradient = Tensor::from_slice(&[nan, nan, 1.0, -1.0]);
        let result = Tensor::from_slice(&[1.0f32, 0.0, nan, nan]);
        let found = values(&gate(&[gradient], &result, Bounds::RELU, true).unwrap());
        assert!(found[0].is_nan());
        assert_eq!(found[1..], [0.0, 1.0, 0.0]);
    }

    #[test]
    fn bfloat16_is_rounded_as_aten_rounds() {
        let nan = f32::NAN;
        // Halfway between two: to the even one. Beyond the largest: infinite. NaN stays NaN.
        let mut all: Vec<f32> =
            vec![1.0, 1.003_906_2, 1.011_718_8, -1.003_906_2, 3.4e38, -3.4e38, 1e-40, 0.0, -0.0, nan];
        all.extend((0..1000).map(|i| (i as f32 - 500.0) * 0.013_37));
        let wide = Tensor::from_slice(&all);
        let narrow = wide.to_kind(Kind::BFloat16);
        let zeros = Tensor::from_slice(&vec![0f32; all.len()]).to_kind(Kind::BFloat16);
        let everything = Bounds { low: f64::NEG_INFINITY, high: None };
        let sum = add_clamped(narrow.copy(), &zeros, everything).unwrap();
        assert!(sum.nan_to_num(7.0, None, None).equal(&narrow.nan_to_num(7.0, None, None)));
        // Sums that need rounding.
        let (one, two) = (narrow.copy(), (&wide * 0.37).to_kind(Kind::BFloat16));
        let expected = (one.to_kind(Kind::Float) + two.to_kind(Kind::Float)).to_kind(Kind::BFloat16);
        let sum = add_clamped(one, &two, everything).unwrap();
        assert!(sum.nan_to_num(7.0, None, None).equal(&expected.nan_to_num(7.0, None, None)));
    }

    #[test]
    fn arguments_that_do_not_match_are_refused() {
        let result = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(gate(&[], &result, Bounds::RELU, false).is_err());
        let error = gate(&[Tensor::from_slice(&[1.0f32])], &result, Bounds::RELU, false).unwrap_err();
        assert!(error.to_string().contains("shape"), "{error}");
        assert!(add_clamped(Tensor::from_slice(&[1.0f32]), &result, Bounds::RELU).is_err());
    }
}
