//! From planes to grey or RGB pixels.

use fearless_simd::prelude::*;
use fearless_simd::{Simd, i32x8, u8x32};

use super::header::{Frame, Header};
use super::planes::Picture;
use super::upsample::Upsampling;

/// What the components are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Gray,
    Rgb,
    YCbCr,
    /// Ink, stored inverted, as Adobe does.
    Cmyk,
    /// The same, with the first three as YCbCr.
    Ycck,
}

impl Space {
    /// As libjpeg guesses it from the segments and the components' ids.
    pub(super) fn of(frame: &Frame, header: &Header<'_>) -> Space {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        match (ids.as_slice(), header.adobe) {
            ([_], _) => Space::Gray,
            ([_, _, _], _) if header.jfif => Space::YCbCr,
            ([_, _, _], Some(0)) => Space::Rgb,
            ([b'R', b'G', b'B'], None) => Space::Rgb,
            ([_, _, _], _) => Space::YCbCr,
            (_, None | Some(0)) => Space::Cmyk,
            _ => Space::Ycck,
        }
    }

    /// Bytes per pixel.
    pub(super) fn channels(self) -> usize {
        if self == Space::Gray { 1 } else { 3 }
    }
}

/// The picture's pixels, row by row.
#[inline(always)]
pub(super) fn pixels<S: Simd>(simd: S, picture: &Picture, space: Space) -> Vec<u8> {
    let (width, height) = (picture.width, picture.height);
    let mut pixels = vec![0; width * height * space.channels()];
    let upsamplings: Vec<Upsampling> = picture.planes.iter().map(|plane| Upsampling::of(plane, picture.mcu)).collect();
    let padded = width + 8;
    let mut sums = vec![0u16; padded];
    let mut rows = [(); 4].map(|()| vec![0u8; padded]);
    for (y, out) in pixels.chunks_exact_mut(width * space.channels()).enumerate() {
        for ((plane, upsampling), row) in picture.planes.iter().zip(&upsamplings).zip(&mut rows) {
            if *upsampling != Upsampling::None {
                upsampling.row(plane, y, &mut sums, row);
            }
        }
        let row = |index: usize| match upsamplings.get(index) {
            Some(Upsampling::None) => picture.planes[index].row(y),
            _ => &rows[index][..width],
        };
        match space {
            Space::Gray => out.copy_from_slice(row(0)),
            Space::Rgb => store(out, row(0), row(1), row(2), |r, g, b| [r, g, b]),
            Space::YCbCr => store_rgb(simd, out, row(0), row(1), row(2)),
            Space::Cmyk => {
                store(out, row(0), row(1), row(2), |c, m, y| [c, m, y]);
                darken(out, row(3));
            }
            Space::Ycck => {
                store(out, row(0), row(1), row(2), |y, cb, cr| {
                    let [r, g, b] = rgb(y, cb, cr);
                    [255 - r, 255 - g, 255 - b]
                });
                darken(out, row(3));
            }
        }
    }
    pixels
}

#[inline(always)]
fn store(out: &mut [u8], a: &[u8], b: &[u8], c: &[u8], convert: impl Fn(u8, u8, u8) -> [u8; 3]) {
    for (((pixel, &a), &b), &c) in out.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
        *pixel = convert(a, b, c);
    }
}

/// One half, in 16-bit fixed point.
const HALF: i32 = 1 << 15;
const RED_OF_CR: i32 = 91_881;
const GREEN_OF_CB: i32 = -22_554;
const GREEN_OF_CR: i32 = -46_802;
const BLUE_OF_CB: i32 = 116_130;

/// BT.601 with the full range, in 16-bit fixed point as libjpeg rounds it.
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb).wrapping_sub(128), i32::from(cr).wrapping_sub(128));
    let red = y.wrapping_add(cr.wrapping_mul(RED_OF_CR).wrapping_add(HALF) >> 16);
    let green = cb.wrapping_mul(GREEN_OF_CB).wrapping_add(cr.wrapping_mul(GREEN_OF_CR)).wrapping_add(HALF) >> 16;
    let blue = y.wrapping_add(cb.wrapping_mul(BLUE_OF_CB).wrapping_add(HALF) >> 16);
    [red.clamp(0, 255) as u8, y.wrapping_add(green).clamp(0, 255) as u8, blue.clamp(0, 255) as u8]
}

/// [`rgb`] for a row, eight pixels at a time.
#[inline(always)]
fn store_rgb<S: Simd>(simd: S, out: &mut [u8], y: &[u8], cb: &[u8], cr: &[u8]) {
    /// The first three bytes of each four.
    const PACKED: [u8; 32] =
        [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15];
    let all = |value| i32x8::splat(simd, value);
    let packed = u8x32::from_slice(simd, &PACKED);
    // Each step writes 28 bytes, of which the last four are written again by the next one.
    let steps = (out.len().saturating_sub(4)) / 24;
    for step in 0..steps {
        let load = |row: &[u8]| i32x8::from_slice(simd, &widened(&row[step * 8..step * 8 + 8]));
        let (y, cb, cr) = (load(y), load(cb) - all(128), load(cr) - all(128));
        let limit = |value: i32x8<S>| value.max(all(0)).min(all(255));
        let red = limit(y + ((cr * all(RED_OF_CR) + all(HALF)) >> 16));
        let green = limit(y + ((cb * all(GREEN_OF_CB) + cr * all(GREEN_OF_CR) + all(HALF)) >> 16));
        let blue = limit(y + ((cb * all(BLUE_OF_CB) + all(HALF)) >> 16));
        let pixels = (red | (green << 8) | (blue << 16)).to_bytes().swizzle_dyn_within_blocks(packed);
        let mut bytes = [0; 32];
        pixels.store_slice(&mut bytes);
        let out = &mut out[step * 24..step * 24 + 28];
        out[..16].copy_from_slice(&bytes[..16]);
        out[12..].copy_from_slice(&bytes[16..]);
    }
    let done = steps * 8;
    store(&mut out[done * 3..], &y[done..], &cb[done..], &cr[done..], rgb);
}

#[inline(always)]
fn widened(samples: &[u8]) -> [i32; 8] {
    let mut values = [0; 8];
    for (value, &sample) in values.iter_mut().zip(samples) {
        *value = i32::from(sample);
    }
    values
}

/// Multiplies inverted inks by the inverted black.
#[inline(always)]
fn darken(out: &mut [u8], black: &[u8]) {
    for (pixel, &light) in out.as_chunks_mut::<3>().0.iter_mut().zip(black) {
        for ink in pixel {
            // Rounded division by 255.
            let product = u32::from(*ink).wrapping_mul(u32::from(light)).wrapping_add(128);
            *ink = (product.wrapping_add(product >> 8) >> 8) as u8;
        }
    }
}
