//! Tensors in wire form.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::RenderError;
use super::map::check_length;

/// The type of an element in wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    F32,
    /// Finite values beyond ±65504 become ±65504: one infinity would make every sum over the map infinite.
    F16,
    /// Affine with one scale for the whole tensor: `value = (q - zero_point) · scale`. Zero is exact.
    U8,
}

/// A tensor in wire form: row-major, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct WireTensor {
    pub element_type: ElementType,
    pub shape: Vec<u32>,
    pub data: Vec<u8>,
    /// For [`ElementType::U8`] only.
    pub scale: Option<f32>,
    /// For [`ElementType::U8`] only; 0 to 255.
    pub zero_point: Option<i32>,
}

impl WireTensor {
    /// Encodes a tensor of shape `shape`.
    ///
    /// # Errors
    /// [`RenderError::Length`] when `values` does not have as many elements as `shape` says, [`RenderError::NotFinite`]
    /// for [`ElementType::U8`] of values that are not finite.
    pub fn encode(values: &[f32], shape: &[u32], element_type: ElementType) -> Result<Self, RenderError> {
        check_length(values, shape)?;
        let (data, scale, zero_point) = match element_type {
            ElementType::F32 => (f32_bytes(values), None, None),
            ElementType::F16 => (saturating_f16_bytes(values), None, None),
            ElementType::U8 => {
                let Quantisation { scale, zero_point } = Quantisation::of(values)?;
                let step = f64::from(scale);
                let quantised = values
                    .iter()
                    .map(|&value| (nearest(f64::from(value) / step) + zero_point).clamp(0, 255) as u8)
                    .collect();
                (quantised, Some(scale), Some(zero_point))
            }
        };
        Ok(WireTensor { element_type, shape: shape.to_vec(), data, scale, zero_point })
    }

    /// Decodes the elements, as a client does.
    pub fn values(&self) -> Vec<f32> {
        match self.element_type {
            ElementType::F32 => {
                self.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
            }
            ElementType::F16 => {
                self.data.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32()).collect()
            }
            ElementType::U8 => {
                let (scale, zero_point) = (self.scale.unwrap_or(1.0), self.zero_point.unwrap_or(0));
                self.data.iter().map(|&q| (i32::from(q) - zero_point) as f32 * scale).collect()
            }
        }
    }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    let mut data = vec![0; values.len() * 4];
    write_little_endian(&mut data, values, f32::to_le_bytes);
    data
}

/// Converts with the processor's vector instructions where it has them.
fn saturating_f16_bytes(values: &[f32]) -> Vec<u8> {
    /// Values per step: the buffers of a step fit the first-level cache.
    const BLOCK: usize = 1024;
    /// The largest finite float16.
    const MAX: f32 = 65504.0;
    let mut data = vec![0; values.len() * 2];
    let (mut clamped, mut halves) = ([0.0; BLOCK], [f16::ZERO; BLOCK]);
    for (data, values) in data.chunks_mut(2 * BLOCK).zip(values.chunks(BLOCK)) {
        let (clamped, halves) = (&mut clamped[..values.len()], &mut halves[..values.len()]);
        for (clamped, &value) in clamped.iter_mut().zip(values) {
            *clamped = if value.is_infinite() { value } else { value.clamp(-MAX, MAX) };
        }
        halves.convert_from_f32_slice(clamped);
        write_little_endian(data, halves, |half| half.to_le_bytes());
    }
    data
}

/// Writes each value with `bytes`. On a little-endian processor the compiler turns the loop into a copy.
fn write_little_endian<T: Copy, const BYTES: usize>(data: &mut [u8], values: &[T], bytes: impl Fn(T) -> [u8; BYTES]) {
    for (element, &value) in data.chunks_exact_mut(BYTES).zip(values) {
        element.copy_from_slice(&bytes(value));
    }
}

/// The nearest integer, with halves rounded away from zero. Values beyond `i32` saturate, and NaN becomes 0.
fn nearest(value: f64) -> i32 {
    // The cast truncates in one instruction; `round` would be a function call on the baseline instruction set.
    (value + 0.5_f64.copysign(value)) as i32
}

struct Quantisation {
    scale: f32,
    zero_point: i32,
}

impl Quantisation {
    /// 255 steps over the range of the values and zero. The error is at most half a step, and at most one step at the
    /// ends of the range, since zero must be a step.
    ///
    /// # Errors
    /// [`RenderError::NotFinite`] with the first value that is not finite.
    fn of(values: &[f32]) -> Result<Self, RenderError> {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(RenderError::NotFinite { index, value: values[index] });
        }
        let low = f64::from(values.iter().copied().fold(0.0, f32::min));
        let high = f64::from(values.iter().copied().fold(0.0, f32::max));
        if low == high {
            return Ok(Quantisation { scale: 1.0, zero_point: 0 });
        }
        // The scale must be a normal number: a subnormal one could round to zero.
        let scale = (((high - low) / 255.0) as f32).max(f32::MIN_POSITIVE);
        let zero_point = (-low / f64::from(scale)).round().clamp(0.0, 255.0) as i32;
        Ok(Quantisation { scale, zero_point })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[f32], element_type: ElementType) -> Vec<f32> {
        WireTensor::encode(values, &[values.len() as u32], element_type).unwrap().values()
    }

    #[test]
    fn f32_is_exact_and_little_endian() {
        let tensor = WireTensor::encode(&[1.0, -2.5], &[1, 2], ElementType::F32).unwrap();
        assert_eq!(tensor.data, [0, 0, 0x80, 0x3F, 0, 0, 0x20, 0xC0]);
        assert_eq!((tensor.shape.as_slice(), tensor.scale, tensor.zero_point), (&[1, 2][..], None, None));
    }

    #[test]
    fn f16_saturates_instead_of_becoming_infinite() {
        assert_eq!(round_trip(&[1e9, -1e9, 65504.0, 0.5], ElementType::F16), [65504.0, -65504.0, 65504.0, 0.5]);
    }

    #[test]
    fn f16_rounds_each_value_as_the_conversion_of_one_does() {
        let values: Vec<f32> = (0..5_000).map(|at| (at as f32 - 2_500.0) * 0.37).collect();
        let expected: Vec<f32> = values.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
        assert_eq!(round_trip(&values, ElementType::F16), expected);
        let special = round_trip(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0], ElementType::F16);
        assert!(special[0].is_nan() && special[1] == f32::INFINITY && special[2] == f32::NEG_INFINITY);
        assert!(special[3].is_sign_negative());
    }

    #[test]
    fn halves_are_rounded_away_from_zero() {
        let rounded: Vec<i32> = [0.5, 1.5, -0.5, -2.5, 0.49, -0.49, f64::NAN].map(nearest).to_vec();
        assert_eq!(rounded, [1, 2, -1, -3, 0, 0, 0]);
    }

    #[test]
    fn an_all_zero_map_stays_zero() {
        for element_type in [ElementType::F32, ElementType::F16, ElementType::U8] {
            assert_eq!(round_trip(&[0.0; 3], element_type), [0.0; 3]);
        }
        assert!(round_trip(&[], ElementType::U8).is_empty());
    }

    #[test]
    fn very_wide_and_very_narrow_ranges_stay_finite() {
        for values in [[f32::MAX / 2.0, f32::MIN / 2.0, 0.0], [1e-45, -1e-45, 0.0]] {
            let back = round_trip(&values, ElementType::U8);
            assert!(back.iter().all(|value| value.is_finite()), "{back:?}");
            assert_eq!(back[2], 0.0);
        }
    }

    #[test]
    fn what_cannot_be_quantised_or_counted_is_refused() {
        let error = WireTensor::encode(&[0.0, f32::NAN], &[2], ElementType::U8).unwrap_err();
        assert!(error.to_string().contains("element 1 of the map is NaN"), "{error}");
        let error = WireTensor::encode(&[0.0; 3], &[2, 2], ElementType::F32).unwrap_err();
        assert_eq!(error.to_string(), "a tensor of shape [2, 2] has 4 elements, 3 are there");
        assert!(WireTensor::encode(&[], &[u32::MAX; 9], ElementType::F32).is_err());
    }

    proptest! {
        #[test]
        fn quantised_values_come_back_within_a_step_and_zero_exactly(
            mut values in prop::collection::vec(-1e6f32..1e6, 1..200), scale in -20i32..20,
        ) {
            let factor = 2f32.powi(scale);
            values.iter_mut().for_each(|value| *value *= factor);
            values.push(0.0);
            let tensor = WireTensor::encode(&values, &[values.len() as u32], ElementType::U8).unwrap();
            let step = tensor.scale.unwrap();
            let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
            let back = tensor.values();
            prop_assert_eq!(back.last(), Some(&0.0));
            for (value, back) in values.iter().zip(back) {
                let inside = *value > low + step && *value < high - step;
                let bound = step * if inside { 0.5001 } else { 1.0001 };
                prop_assert!((value - back).abs() <= bound, "{} came back as {}, step {}", value, back, step);
            }
        }
    }
}
