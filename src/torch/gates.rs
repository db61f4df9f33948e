//! Rectifiers' gates as bits, on the CPU: a reverse run needs no more of a rectifier's result, which takes up to 32 times as much memory.

use std::ptr;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::kernels::{one_tensor, two_tensors, with_two};
use super::linear::has_products;
use super::{Bounds, OperatorError, ffi};

/// Where the numbers of a rectifier's result `[N, C, H, W]` lie within its bounds.
#[derive(Debug)]
pub struct Gates {
    /// `[N, H, W, ceil(C / 64)]`, the first channel's bit the lowest.
    bits: Tensor,
}

impl Gates {
    /// Of a `result` that was clamped to `bounds`. None where it does not lie with its channels next to each other on the CPU, or is of a
    /// dtype that has [no products](has_products).
    ///
    /// # Errors
    /// Out of memory.
    pub fn of(result: &Tensor, bounds: Bounds) -> Result<Option<Self>, OperatorError> {
        if !are_covered(result) {
            return Ok(None);
        }
        let [low, high] = closing(bounds);
        let bits = one_tensor("gates", |bits, error| {
            // SAFETY: the tensor is alive, and the places are ours to write.
            unsafe { ffi::camlens_gates(result.as_ptr(), low, high, bits, error) }
        })?;
        Ok(Some(Gates { bits }))
    }

    pub(super) fn of_bits(bits: Tensor) -> Self {
        Gates { bits }
    }

    /// [`add_clamped`](super::add_clamped) and the gates of what it gives, in one pass. The sum comes back where that is not covered, as in
    /// [`Gates::of`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn of_sum(
        sum: Tensor,
        other: &Tensor,
        bounds: Bounds,
    ) -> Result<Result<(Tensor, Self), Tensor>, OperatorError> {
        let is_alike = sum.size() == other.size() && sum.f_kind()? == other.f_kind()?;
        if !is_alike || !are_covered(&sum) || !are_covered(other) {
            return Ok(Err(sum));
        }
        let [low, high] = closing(bounds);
        let (result, bits) = two_tensors("add_gates", |result, bits, error| {
            // SAFETY: both tensors are alive, and the places are ours to write. Memory is written only where `sum` alone holds it, and
            // `sum` ends here.
            unsafe { ffi::camlens_add_gates(sum.as_ptr(), other.as_ptr(), low, high, result, bits, error) }
        })?;
        Ok(Ok((result, Gates { bits })))
    }

    /// Takes a gradient back: as [`gate`](super::gate()) with the result that these are the gates of.
    ///
    /// # Errors
    /// No part at all, another shape or dtype, out of memory.
    pub fn pass(&self, parts: &[Tensor], guided: bool) -> Result<Tensor, OperatorError> {
        with_two(parts, |parts, count| {
            one_tensor("pass_gates", |gradient, error| {
                // SAFETY: `count` of the parts are live tensors, as are the bits; the places are ours to write.
                unsafe { ffi::camlens_pass_gates(parts, count, self.bits.as_ptr(), guided, gradient, error) }
            })
        })
    }
}

/// Gates that a gradient has not come through yet: what takes it passes it as [`Gates::pass`] would, on the way.
#[derive(Debug, Clone, Copy)]
pub struct Ahead<'a> {
    pub gates: &'a Gates,
    pub guided: bool,
}

/// The bits, null where there are none, and whether they are guided.
pub(super) fn pointers(ahead: Option<Ahead<'_>>) -> (*const C_tensor, bool) {
    ahead.map_or((ptr::null(), false), |ahead| (ahead.gates.bits.as_ptr(), ahead.guided))
}

/// The lower and the upper bound; NaN where there is none.
pub(super) fn closing(bounds: Bounds) -> [f64; 2] {
    [bounds.low, bounds.high.unwrap_or(f64::NAN)]
}

fn are_covered(numbers: &Tensor) -> bool {
    let [rows, channels, height, width] = *numbers.size().as_slice() else { return false };
    let stride = numbers.stride();
    let dense = [height * width * channels, 1, width * channels, channels];
    // Where there is one place, the next one lies anywhere.
    let lies_so = |(size, axis): (i64, usize)| size == 1 || stride[axis] == dense[axis];
    numbers.device() == Device::Cpu
        && numbers.f_kind().is_ok_and(has_products)
        && [rows, channels, height, width].into_iter().zip(0..).all(lies_so)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::torch::{Storage, add_clamped, channels_last, gate};

    fn kinds() -> impl Strategy<Value = Kind> {
        let kinds = [Kind::Float, Kind::BFloat16].into_iter().filter(|kind| has_products(*kind));
        prop::sample::select(kinds.collect::<Vec<_>>())
    }

    /// Random numbers, some of which lie right on a bound.
    fn random(shape: &[i64], kind: Kind) -> Tensor {
        let numbers = (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 4.0).round() / 4.0;
        channels_last(&numbers.to_kind(kind)).unwrap()
    }

    #[test]
    fn a_bound_that_is_infinite_closes_as_in_a_gate() {
        let result = Tensor::from_slice(&[f32::INFINITY, f32::NEG_INFINITY, 1.0, 2.0]).view([1, 1, 2, 2]);
        let given = result.ones_like();
        for bounds in [Bounds { low: f64::NEG_INFINITY, high: Some(f64::INFINITY) }, Bounds::RELU] {
            let expected = gate(&[given.shallow_clone()], &result, bounds, false).unwrap();
            let found = Gates::of(&result, bounds).unwrap().unwrap().pass(&[given.shallow_clone()], false).unwrap();
            assert!(found.equal(&expected));
        }
    }

    fn bounds() -> impl Strategy<Value = Bounds> {
        let low = prop_oneof![Just(0.0), Just(-0.5), Just(f64::NEG_INFINITY)];
        (low, prop::option::of(0.25..1.0f64)).prop_map(|(low, high)| Bounds { low, high })
    }

    fn shapes() -> impl Strategy<Value = [i64; 4]> {
        [0..3i64, 1..150i64, 1..9i64, 1..9i64]
    }

    proptest! {
        #[test]
        fn bits_tell_what_results_tell(
            shape in shapes(),
            bounds in bounds(),
            count in 1..4usize,
            are_contiguous in any::<bool>(),
            guided in any::<bool>(),
            kind in kinds(),
        ) {
            let parts: Vec<Tensor> = (0..count).map(|_| random(&shape, kind)).collect();
            let parts = if are_contiguous { parts.iter().map(Tensor::contiguous).collect() } else { parts };
            let result = random(&shape, kind);
            // Held twice, so that they are not written.
            let held: Vec<Tensor> = parts.iter().map(Tensor::shallow_clone).collect();
            let before: Vec<Tensor> = parts.iter().map(Tensor::copy).collect();
            let expected = gate(&parts, &result, bounds, guided).unwrap();
            let gates = Gates::of(&result, bounds).unwrap().unwrap();
            let found = gates.pass(&parts, guided).unwrap();
            prop_assert!(found.equal(&expected));
            prop_assert!(held.iter().zip(&before).all(|(now, before)| now.equal(before)));
            drop(held);
            prop_assert!(gates.pass(&parts, guided).unwrap().equal(&expected));
        }

        #[test]
        fn a_sum_tells_its_gates(shape in shapes(), bounds in bounds(), kind in kinds()) {
            let [sum, other, given] = [(); 3].map(|()| random(&shape, kind));
            let expected = add_clamped(sum.copy(), &other, bounds).unwrap();
            let (held, before) = (sum.shallow_clone(), sum.copy());
            let (found, gates) = Gates::of_sum(sum, &other, bounds).unwrap().unwrap();
            prop_assert!(found.equal(&expected) && held.equal(&before));
            let of_result = Gates::of(&expected, bounds).unwrap().unwrap();
            prop_assert!(gates.bits.equal(&of_result.bits));
            let passed = gate(&[given.shallow_clone()], &expected, bounds, true).unwrap();
            prop_assert!(gates.pass(&[given], true).unwrap().equal(&passed));
        }
    }

    #[test]
    fn memory_that_nobody_else_holds_is_taken_over() {
        let address = |tensor: &Tensor| Storage::of(tensor).address;
        let random = || random(&[1, 8, 3, 3], Kind::Float);
        let (sum, other) = (random(), random());
        let of_sum = address(&sum);
        let (result, gates) = Gates::of_sum(sum, &other, Bounds::RELU).unwrap().unwrap();
        assert_eq!(address(&result), of_sum);
        let parts = [random(), random()];
        let held = parts[0].shallow_clone();
        assert_eq!(address(&gates.pass(&parts, true).unwrap()), address(&parts[1]), "the first is held elsewhere");
        drop(held);
    }

    #[test]
    fn numbers_that_are_none_pass_as_in_a_gate() {
        let line = |numbers: &[f32]| {
            channels_last(&Tensor::from_slice(numbers).view([1, 1, 1, -1]).permute([0, 3, 1, 2])).unwrap()
        };
        let nan = f32::NAN;
        let (gradient, result) = (line(&[nan, nan, 1.0, -1.0, 2.0]), line(&[1.0, 0.0, nan, nan, f32::INFINITY]));
        let gates = Gates::of(&result, Bounds::RELU).unwrap().unwrap();
        let found: Vec<f32> = Vec::try_from(gates.pass(&[gradient], true).unwrap().view(-1)).unwrap();
        assert!(found[0].is_nan());
        assert_eq!(found[1..], [0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let result = random(&[1, 8, 3, 3], Kind::Float);
        let gates = Gates::of(&result, Bounds::RELU).unwrap().unwrap();
        assert!(gates.pass(&[], true).is_err());
        let text = |given: Tensor| gates.pass(&[given], true).unwrap_err().to_string();
        assert!(text(random(&[1, 80, 3, 3], Kind::Float)).contains("gates"));
        assert!(text(random(&[1, 8, 3, 4], Kind::Float)).contains("gates"));
        assert!(text(result.to_kind(Kind::Double)).contains("instructions"));
        assert!(Gates::of(&result.contiguous(), Bounds::RELU).unwrap().is_none());
        assert!(Gates::of(&result.to_kind(Kind::Double), Bounds::RELU).unwrap().is_none());
        let sum = Gates::of_sum(result, &random(&[1, 8, 3, 1], Kind::Float), Bounds::RELU).unwrap();
        assert_eq!(sum.unwrap_err().size(), [1, 8, 3, 3]);
    }
}
