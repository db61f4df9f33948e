//! The gates of rectifiers as bits. A reverse run needs no more of a rectifier's result, which takes up to 32 times the
//! memory.

use std::ptr;

use tch::{Kind, Tensor};

use super::call::{Parts, run};
use super::element::ElementType;
use super::tensor::{Operand, View, channels_last, data_mut, empty, expect, multiplied_type, refused};
use super::{Bounds, ffi};
use crate::torch::OperatorError;

/// Channels per word of bits, as in micro/gate_layout.h.
pub(super) const MASK_BITS: i64 = 64;

/// For each element of a rectifier's result `[N, C, H, W]`, whether it lies strictly between the rectifier's bounds.
#[derive(Debug)]
pub struct Gates {
    /// Int64 `[N, H, W, ceil(C / 64)]`, the first channel in the lowest bit.
    bits: Tensor,
}

impl Gates {
    /// The gates of a `result` that was clamped to `bounds`. None unless the result is channels-last and dense on the
    /// CPU, in a dtype that [`has_gemm_kernels`](super::has_gemm_kernels).
    ///
    /// # Errors
    /// Out of memory.
    pub fn of(result: &Tensor, bounds: Bounds) -> Result<Option<Self>, OperatorError> {
        let view = View::of(result);
        let Some(layer) = layer_of(&view) else { return Ok(None) };
        let mut bits = Gates::empty(&view)?;
        let [low, high] = rounded(&layer, closing(bounds));
        let (results, gates) = (view.data(), data_mut(&mut bits));
        run("gates", |error| {
            // SAFETY: both tensors are live; `layer` has the result's size, and `bits` was allocated for it.
            unsafe { ffi::camlens_gates_find(&raw const layer.0, results, low, high, gates, error) }
        })?;
        Ok(Some(Gates { bits }))
    }

    /// Gates for a result of this shape, `[N, C, H, W]`, uninitialised.
    pub(super) fn empty(result: &View<'_>) -> Result<Tensor, OperatorError> {
        let shape = result.dimensions::<4>();
        let [n, channels, height, width] = shape
            .ok_or_else(|| refused("gates", format!("a result [N, C, H, W] is expected, not {:?}", result.size())))?;
        Ok(empty(&[n, height, width, words(channels)], Kind::Int64)?)
    }

    pub(super) fn of_bits(bits: Tensor) -> Self {
        Gates { bits }
    }

    /// [`add_clamped`](super::add_clamped) and the gates of its result, in one pass. Returns the sum unchanged where
    /// [`Gates::of`] would return none.
    ///
    /// # Errors
    /// Out of memory.
    pub fn of_sum(
        sum: Tensor,
        other: &Tensor,
        bounds: Bounds,
    ) -> Result<Result<(Tensor, Self), Tensor>, OperatorError> {
        let (left, right) = (View::of(&sum), View::of(other));
        let layer = if left.is_alike(&right) && layer_of(&right).is_some() { layer_of(&left) } else { None };
        let Some(layer) = layer else { return Ok(Err(sum)) };
        let mut result = if left.is_overwritable() { sum.shallow_clone() } else { sum.f_empty_like()? };
        let mut bits = Gates::empty(&left)?;
        let limits = closing(bounds);
        let [least, most] = limits.map(|limit| limit as f32);
        let [low, high] = rounded(&layer, limits);
        let (addends, sums, gates) = ((left.data(), right.data()), data_mut(&mut result), data_mut(&mut bits));
        run("add_gates", |error| {
            // SAFETY: all tensors are live and have the size of `layer`, and `bits` was allocated for it. The result is
            // fresh, or it is `sum`, which nothing else holds and which ends here.
            unsafe {
                ffi::camlens_gates_add(
                    &raw const layer.0,
                    addends.0,
                    addends.1,
                    least,
                    most,
                    low,
                    high,
                    sums,
                    gates,
                    error,
                )
            }
        })?;
        Ok(Ok((result, Gates { bits })))
    }

    /// Passes a gradient through the rectifier: as [`gate`](super::gate()) with the result that these gates belong to.
    ///
    /// # Errors
    /// No part at all, another shape or dtype, out of memory.
    pub fn pass(&self, parts: &[Tensor], guided: bool) -> Result<Tensor, OperatorError> {
        let parts = Parts::of(parts)?;
        let first = View::of(parts.first());
        for part in [Some(parts.first()), parts.second()].into_iter().flatten() {
            let part = View::of(part);
            expect(part.is_alike(&first), "pass_gates", || {
                format!("parts of one shape and type are expected, not {:?} and {:?}", first.size(), part.size())
            })?;
            self.check("pass_gates", &part)?;
        }
        let (element, _) = multiplied_type("pass_gates", &first)?;
        let mut gradient = None;
        let left = dense_part(parts.first(), &mut gradient)?;
        let right = parts.second().map(|part| dense_part(part, &mut gradient)).transpose()?;
        let mut gradient = match gradient {
            Some(gradient) => gradient,
            None => left.f_empty_like()?,
        };
        let layer = layer(element, &View::of(&left));
        let right = right.as_ref().map_or(ptr::null(), |right| View::of(right).data());
        let (left, gates, passed) = (View::of(&left).data(), View::of(&self.bits).data(), data_mut(&mut gradient));
        run("pass_gates", |error| {
            // SAFETY: all tensors are live or null and have the size of `layer`, for which the gates were checked. The
            // gradient is fresh, or it is a part that nothing else holds.
            unsafe { ffi::camlens_gates_pass(&raw const layer.0, left, right, gates, guided, passed, error) }
        })?;
        Ok(gradient)
    }

    /// # Errors
    /// Unless they are gates of a result of the gradient's shape, `[N, C, H, W]`.
    fn check(&self, kernel: &str, gradient: &View<'_>) -> Result<(), OperatorError> {
        let shape = gradient.dimensions::<4>();
        let [n, channels, height, width] = shape.ok_or_else(|| {
            refused(kernel, format!("a gradient [N, C, H, W] is expected, not {:?}", gradient.size()))
        })?;
        let gates = View::of(&self.bits);
        let fits = gates.size() == [n, height, width, words(channels)] && gates.is_int64() && gates.is_contiguous();
        expect(fits, kernel, || format!("the gradient has shape {:?}, its gates {:?}", gradient.size(), gates.size()))
    }
}

/// Gates that a gradient has not passed yet: the kernel that takes the gradient passes it as [`Gates::pass`] would.
#[derive(Debug, Clone, Copy)]
pub struct PendingMask<'a> {
    pub gates: &'a Gates,
    pub guided: bool,
}

impl PendingMask<'_> {
    /// The bits for a kernel that takes this gradient, null where nothing is pending, and whether they are guided.
    ///
    /// # Errors
    /// Gates of another shape.
    pub(super) fn bits(
        pending: Option<Self>,
        kernel: &str,
        gradient: &View<'_>,
    ) -> Result<(*const u64, bool), OperatorError> {
        let Some(PendingMask { gates, guided }) = pending else { return Ok((ptr::null(), false)) };
        gates.check(kernel, gradient)?;
        Ok((View::of(&gates.bits).data(), guided))
    }
}

/// The lower and the upper bound; NaN, which does not close, where there is none.
pub(super) fn closing(bounds: Bounds) -> [f64; 2] {
    [bounds.low, bounds.high.unwrap_or(f64::NAN)]
}

fn words(channels: i64) -> i64 {
    (channels + MASK_BITS - 1) / MASK_BITS
}

/// A channels-last tensor as the kernels take it.
struct Layer(ffi::GateLayer, ElementType);

fn layer(element: ElementType, view: &View<'_>) -> Layer {
    let channels = view.size().get(1).copied().unwrap_or(0);
    let pixels = if channels == 0 { 0 } else { view.elements() / channels };
    Layer(ffi::GateLayer { element: element as i32, pixels, channels }, element)
}

/// None for another layout, dtype or device than the kernels take.
fn layer_of(view: &View<'_>) -> Option<Layer> {
    let element = view.element_type().filter(|element| element.panel_width().is_some())?;
    (view.size().len() == 4 && view.is_channels_last()).then(|| layer(element, view))
}

/// What results are compared with: they were rounded after they were clamped, and so are the bounds.
fn rounded(layer: &Layer, bounds: [f64; 2]) -> [f32; 2] {
    bounds.map(|bound| layer.1.rounded(bound as f32))
}

/// A part, channels-last. `gradient` becomes the first part whose memory can be overwritten: one that nothing else
/// holds, or a copy.
fn dense_part<'a>(part: &'a Tensor, gradient: &mut Option<Tensor>) -> Result<Operand<'a>, OperatorError> {
    let is_overwritable = View::of(part).is_overwritable();
    let dense = channels_last(part)?;
    if gradient.is_none() && (is_overwritable || matches!(dense, Operand::Copied(_))) {
        *gradient = Some(dense.shallow_clone());
    }
    Ok(dense)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::{Storage, add_clamped, channels_last, gate, has_gemm_kernels};

    fn kinds() -> impl Strategy<Value = Kind> {
        let kinds = [Kind::Float, Kind::BFloat16].into_iter().filter(|kind| has_gemm_kernels(*kind));
        prop::sample::select(kinds.collect::<Vec<_>>())
    }

    /// Random numbers, some of which equal a bound.
    fn random(shape: &[i64], kind: Kind) -> Tensor {
        let numbers = (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 4.0).round() / 4.0;
        channels_last(&numbers.to_kind(kind)).unwrap()
    }

    #[test]
    fn an_infinite_bound_closes_as_in_a_gate() {
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
        fn bits_are_the_gates_of_the_results(
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
            // Held twice, so that they are not overwritten.
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
        fn a_sum_has_its_gates(shape in shapes(), bounds in bounds(), kind in kinds()) {
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
    fn memory_that_nothing_else_holds_is_taken_over() {
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
    fn nan_passes_as_in_a_gate() {
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
    fn arguments_that_do_not_match_are_refused() {
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
