//! The inverse cosine transform: the accurate integer algorithm of Loeffler, Ligtenberg and Moschytz (ICASSP 1989),
//! with 13-bit constants as in other decoders, so that pixels agree bit for bit.

use fearless_simd::prelude::*;
use fearless_simd::{Simd, i32x8};

use super::blocks::Block;

/// Fraction bits of the constants.
const CONSTANT_BITS: u32 = 13;
/// Fraction bits that the first pass leaves for the second.
const KEPT_BITS: u32 = 2;

/// Transforms a block and writes its 8 × 8 samples to `plane` from `at` on, rows `stride` apart.
#[inline(always)]
pub(super) fn full<S: Simd>(simd: S, block: &Block, steps: &[i32; 64], plane: &mut [u8], at: usize, stride: usize) {
    let mut rows = [i32x8::splat(simd, 0); 8];
    for (row, (coefficients, steps)) in
        rows.iter_mut().zip(block.as_chunks::<8>().0.iter().zip(steps.as_chunks::<8>().0))
    {
        let mut values = [0; 8];
        for (value, &coefficient) in values.iter_mut().zip(coefficients) {
            *value = i32::from(coefficient);
        }
        *row = i32x8::from_slice(simd, &values) * i32x8::from_slice(simd, steps);
    }
    let columns = transposed(pass(simd, rows, CONSTANT_BITS - KEPT_BITS));
    // Lanes are rows now, and vectors are columns.
    let mut samples = pass(simd, columns, CONSTANT_BITS + KEPT_BITS + 3);
    for column in &mut samples {
        *column = (*column + i32x8::splat(simd, 128)).max(i32x8::splat(simd, 0)).min(i32x8::splat(simd, 255));
    }
    let [c0, c1, c2, c3, c4, c5, c6, c7] = samples;
    let left = c0 | (c1 << 8) | (c2 << 16) | (c3 << 24);
    let right = c4 | (c5 << 8) | (c6 << 16) | (c7 << 24);
    let (top, bottom) = left.interleave(right);
    let mut words = [0; 16];
    top.store_slice(&mut words[..8]);
    bottom.store_slice(&mut words[8..]);
    let mut line = at;
    for pair in words.as_chunks::<2>().0 {
        let row = (pair[0] as u32 as u64 | (pair[1] as u32 as u64) << 32).to_le_bytes();
        plane[line..line + 8].copy_from_slice(&row);
        line += stride;
    }
}

/// The transform of a block with nothing but its mean.
#[inline(always)]
pub(super) fn flat(mean: i16, step: i32, plane: &mut [u8], at: usize, stride: usize) {
    let value = i32::from(mean).wrapping_mul(step).wrapping_mul(1 << KEPT_BITS).wrapping_add(16) >> 5;
    let sample = value.saturating_add(128).clamp(0, 255) as u8;
    let mut line = at;
    for _ in 0..8 {
        plane[line..line + 8].fill(sample);
        line += stride;
    }
}

/// One pass over eight columns, with `shift` fraction bits rounded away.
#[inline(always)]
fn pass<S: Simd>(simd: S, input: [i32x8<S>; 8], shift: u32) -> [i32x8<S>; 8] {
    let [i0, i1, i2, i3, i4, i5, i6, i7] = input;
    let by = |value: i32x8<S>, constant: i32| value * i32x8::splat(simd, constant);

    let z = by(i2 + i6, 4433);
    let even2 = z - by(i6, 15137);
    let even3 = z + by(i2, 6270);
    let rounding = i32x8::splat(simd, 1 << (shift - 1));
    let even0 = ((i0 + i4) << CONSTANT_BITS) + rounding;
    let even1 = ((i0 - i4) << CONSTANT_BITS) + rounding;
    let (e0, e3) = (even0 + even3, even0 - even3);
    let (e1, e2) = (even1 + even2, even1 - even2);

    let z5 = by(i7 + i3 + i5 + i1, 9633);
    let z3 = z5 - by(i7 + i3, 16069);
    let z4 = z5 - by(i5 + i1, 3196);
    let z1 = by(i7 + i1, 7373);
    let z2 = by(i5 + i3, 20995);
    let o0 = by(i7, 2446) - z1 + z3;
    let o1 = by(i5, 16819) - z2 + z4;
    let o2 = by(i3, 25172) - z2 + z3;
    let o3 = by(i1, 12299) - z1 + z4;

    let mut sums = [e0 + o3, e1 + o2, e2 + o1, e3 + o0, e3 - o0, e2 - o1, e1 - o2, e0 - o3];
    for sum in &mut sums {
        *sum >>= shift;
    }
    sums
}

#[inline(always)]
fn transposed<S: Simd>(m: [i32x8<S>; 8]) -> [i32x8<S>; 8] {
    // Three perfect shuffles of the 64 values, which are a rotation of the index's six bits by three.
    #[inline(always)]
    fn shuffled<S: Simd>(m: [i32x8<S>; 8]) -> [i32x8<S>; 8] {
        let (a, b) = m[0].interleave(m[4]);
        let (c, d) = m[1].interleave(m[5]);
        let (e, f) = m[2].interleave(m[6]);
        let (g, h) = m[3].interleave(m[7]);
        [a, b, c, d, e, f, g, h]
    }
    shuffled(shuffled(shuffled(m)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fearless_simd::{Level, dispatch};

    fn samples(block: &Block, steps: &[i32; 64]) -> [u8; 64] {
        let mut plane = [0; 64];
        dispatch!(Level::new(), simd => full(simd, block, steps, &mut plane, 0, 8));
        plane
    }

    /// The transform as T.81, A.3.3 writes it.
    fn exact(block: &Block, steps: &[i32; 64]) -> Vec<f64> {
        let cosine = |x: usize, u: usize| {
            let scale = if u == 0 { (0.5f64).sqrt() } else { 1.0 };
            scale * ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos()
        };
        let sample = |at: usize| {
            let (y, x) = (at / 8, at % 8);
            let terms =
                (0..64).map(|k| f64::from(block[k]) * f64::from(steps[k]) * cosine(y, k / 8) * cosine(x, k % 8));
            (terms.sum::<f64>() / 4.0 + 128.0).clamp(0.0, 255.0)
        };
        (0..64).map(sample).collect()
    }

    #[test]
    fn samples_are_the_rounded_transform() {
        let mut state = 1u32;
        let mut random = |most: i32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as i32 % (2 * most + 1) - most
        };
        for round in 0..200 {
            let mut block = [0; 64];
            let steps: [i32; 64] = std::array::from_fn(|k| 1 + (k as i32 * 7 + round) % 20);
            for (k, coefficient) in block.iter_mut().enumerate() {
                *coefficient = random(300 / (1 + k as i32) + 1) as i16;
            }
            let wanted = exact(&block, &steps);
            for (sample, wanted) in samples(&block, &steps).iter().zip(&wanted) {
                assert!((f64::from(*sample) - wanted).abs() < 1.0, "{sample} is not {wanted}");
            }
        }
    }

    #[test]
    fn a_block_with_only_a_mean_is_flat_either_way() {
        let steps = [3; 64];
        for mean in -400..400 {
            let mut block = [0; 64];
            block[0] = mean;
            let mut plane = [0; 64];
            flat(mean, steps[0], &mut plane, 0, 8);
            assert_eq!(samples(&block, &steps), plane, "{mean}");
        }
    }

    #[test]
    fn coefficients_of_any_size_do_no_harm() {
        for value in [i16::MIN, i16::MAX] {
            samples(&[value; 64], &[65_535; 64]);
            flat(value, 65_535, &mut [0; 64], 0, 8);
        }
    }
}
