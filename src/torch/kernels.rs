//! Elementwise work that ATen takes several passes over memory for, and changes of layout that it is slow at.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::Tensor;
use torch_sys::C_tensor;

use super::operator::error_of;
use super::stack::own;
use super::{OperatorError, ffi};

/// What a rectifier's results lie between. Gradients pass where `low < result < high`; a bound that is absent does not close.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    pub low: f64,
    pub high: Option<f64>,
}

impl Bounds {
    /// Those of ReLU.
    pub const RELU: Bounds = Bounds { low: 0.0, high: None };

    /// The lower and the upper one; infinite where there is none.
    pub(super) fn limits(bounds: Option<Self>) -> [f64; 2] {
        let low = bounds.map_or(f64::NEG_INFINITY, |bounds| bounds.low);
        [low, bounds.and_then(|bounds| bounds.high).unwrap_or(f64::INFINITY)]
    }
}

/// Takes a gradient back through a rectifier, in one pass: the sum of `parts` where the rectifier's `result` lies within its
/// bounds, 0 elsewhere; in a `guided` reverse `max(sum, 0)` there. Parts and result have one shape; the gradient is laid out in
/// memory as the result is, and may take over the memory of a part that nobody else holds.
///
/// # Errors
/// No part at all, shapes that differ, out of memory.
pub fn gate(parts: &[Tensor], result: &Tensor, bounds: Bounds, guided: bool) -> Result<Tensor, OperatorError> {
    let high = bounds.high.unwrap_or(f64::NAN);
    with_two(parts, |parts, count| {
        one_tensor("gate", |gradient, error| {
            // SAFETY: `count` of the parts are live tensors, as is the result; the places are ours to write.
            unsafe { ffi::camlens_gate(parts, count, result.as_ptr(), bounds.low, high, guided, gradient, error) }
        })
    })
}

/// What `pass` gives for gradients that are to be summed, of which it takes two at once: there are seldom more.
pub(super) fn with_two<T>(
    parts: &[Tensor],
    pass: impl FnOnce(*const *const C_tensor, usize) -> Result<T, OperatorError>,
) -> Result<T, OperatorError> {
    let summed;
    let (one, two) = match parts {
        [] => {
            let message = "a gate takes at least one gradient".to_owned();
            return Err(OperatorError::Failed { operator: "gate".into(), message });
        }
        [one] => (one, None),
        [one, two] => (one, Some(two)),
        [one, between @ .., last] => {
            summed = between.iter().try_fold(one.shallow_clone(), |sum, part| sum.f_add(part))?;
            (&summed, Some(last))
        }
    };
    let pointers: [*const C_tensor; 2] = [one.as_ptr(), two.map_or(ptr::null(), Tensor::as_ptr)];
    pass(pointers.as_ptr(), 1 + usize::from(two.is_some()))
}

/// The sum, in the memory of `sum` where nobody else holds it.
pub fn add(sum: Tensor, other: &Tensor) -> Result<Tensor, OperatorError> {
    // SAFETY: both tensors are alive, and the places are ours to write. Memory is written only where `sum` alone holds it, and
    // `sum` ends here.
    one_tensor("add", |result, error| unsafe { ffi::camlens_add(sum.as_ptr(), other.as_ptr(), result, error) })
}

/// `min(max(sum + other, low), high)` in one pass, in the memory of `sum` where nobody else holds it. A bound that is absent is
/// infinite.
///
/// # Errors
/// Shapes that differ, out of memory.
pub fn add_clamped(sum: Tensor, other: &Tensor, bounds: Bounds) -> Result<Tensor, OperatorError> {
    let high = bounds.high.unwrap_or(f64::INFINITY);
    one_tensor("add_clamped", |result, error| {
        // SAFETY: as in `add`.
        unsafe { ffi::camlens_add_clamped(sum.as_ptr(), other.as_ptr(), bounds.low, high, result, error) }
    })
}

/// `[N, C, H, W]` with its channels next to each other in memory; the tensor itself where it has them so.
pub fn channels_last(tensor: &Tensor) -> Result<Tensor, OperatorError> {
    // SAFETY: the tensor is alive, and the places are ours to write.
    one_tensor("channels_last", |result, error| unsafe { ffi::camlens_channels_last(tensor.as_ptr(), result, error) })
}

pub(super) fn one_tensor(
    name: &str,
    call: impl FnOnce(*mut *mut C_tensor, *mut *mut c_char) -> c_int,
) -> Result<Tensor, OperatorError> {
    let (mut result, mut error) = (ptr::null_mut(), ptr::null_mut());
    let status = call(&raw mut result, &raw mut error);
    if status != ffi::OK {
        return Err(error_of(name, status, error));
    }
    // SAFETY: after success the place holds a tensor that is ours.
    unsafe { own(result) }.ok_or_else(|| OperatorError::Unsupported { operator: name.to_owned() })
}

/// The same for two.
pub(super) fn two_tensors(
    name: &str,
    call: impl FnOnce(*mut *mut C_tensor, *mut *mut C_tensor, *mut *mut c_char) -> c_int,
) -> Result<(Tensor, Tensor), OperatorError> {
    let mut other: *mut C_tensor = ptr::null_mut();
    let one = one_tensor(name, |one, error| call(one, &raw mut other, error))?;
    // SAFETY: after success the place holds a tensor that is ours.
    let other = unsafe { own(other) };
    Ok((one, other.ok_or_else(|| OperatorError::Unsupported { operator: name.to_owned() })?))
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
        fn a_gate_is_its_parts(
            shape in [1..3i64, 1..20i64, 1..9i64, 1..9i64],
            layouts in any::<[bool; 3]>(),
            count in 1..4usize,
            high in prop::option::of(0.1..1.0f64),
            low in prop_oneof![Just(0.0), Just(-0.5)],
            guided in any::<bool>(),
            kind in prop_oneof![Just(Kind::Float), Just(Kind::Double)],
        ) {
            let parts: Vec<Tensor> = (0..count).map(|i| random(&shape, layouts[i % 2]).to_kind(kind)).collect();
            // Some results lie right on a bound.
            let result = (random(&shape, layouts[2]) * 4.0).round().to_kind(kind) / 4.0;
            let sum = parts.iter().skip(1).fold(parts[0].copy(), |sum, part| sum + part);
            let expected = match high {
                None => result.threshold_backward(&sum, low),
                Some(high) => result.hardtanh_backward(&sum, low, high),
            };
            let expected = if guided { expected.clamp_min(0) } else { expected };
            // Held twice, so that they are not written.
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
            // What a rectifier gives, before it is rounded: a result at a bound that has no bfloat16 stays there.
            let result = random(&shape, layouts[2]).clamp(0.0, high.unwrap_or(f64::INFINITY));
            // Elsewhere rounding may carry a result to the bound, whose gate has no right answer.
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
        fn a_clamped_sum_is_its_parts(
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
        fn channels_become_neighbours(
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
    fn a_gate_takes_over_memory_that_nobody_else_holds() {
        let result = Tensor::from_slice(&[1.0f32, -1.0, 2.0]);
        let address = |tensor: &Tensor| Storage::of(tensor).address;
        let parts = [Tensor::from_slice(&[1.0f32, 2.0, -3.0]), Tensor::from_slice(&[1.0f32, 1.0, 1.0])];
        let held = parts[0].shallow_clone();
        let found = gate(&parts, &result, Bounds::RELU, true).unwrap();
        assert_eq!(address(&found), address(&parts[1]), "the first is held elsewhere");
        assert_eq!(values(&found), [2.0, 0.0, 0.0]);
        assert_eq!(values(&held), [1.0, 2.0, -3.0]);
        // A view of memory that somebody else sees.
        let base = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        let view = base.narrow(0, 1, 3);
        let found = gate(&[view], &result, Bounds::RELU, false).unwrap();
        assert_eq!(values(&found), [2.0, 0.0, 4.0]);
        assert_eq!(values(&base), [1.0, 2.0, 3.0, 4.0]);
        // One value that stands for all: its memory is shorter than it looks.
        let expanded = Tensor::from_slice(&[5.0f32]).expand([3], false);
        assert_eq!(values(&gate(&[expanded], &result, Bounds::RELU, false).unwrap()), [5.0, 0.0, 5.0]);
    }

    #[test]
    fn a_sum_takes_over_memory_that_nobody_else_holds() {
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
    fn numbers_that_are_none_pass_as_in_aten() {
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
        // Halfway between two: to the even one. Beyond the largest: infinite. NaN stays.
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
    fn what_does_not_fit_is_refused() {
        let result = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(gate(&[], &result, Bounds::RELU, false).is_err());
        let error = gate(&[Tensor::from_slice(&[1.0f32])], &result, Bounds::RELU, false).unwrap_err();
        assert!(error.to_string().contains("shape"), "{error}");
        assert!(add_clamped(Tensor::from_slice(&[1.0f32]), &result, Bounds::RELU).is_err());
    }
}
