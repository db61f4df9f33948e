//! Resizing as in Pillow: antialiased, in 8 bits, first along rows, then along columns.

use std::borrow::Cow;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::window::Window;
use super::{Channels, Pixels};
use crate::model::description::Interpolation;

/// The visible part of a resized picture: `rows.visible · columns.visible` pixels, `[H, W, C]`.
///
/// Pillow resizes along rows first and rounds each pass to 8 bits. The resizer's own order for bytes is the other one,
/// so each pass is a call of its own. Each call gets the exact extent of the window, so the result is the crop of the
/// whole resized picture, which is never computed.
pub(super) fn resample(pixels: &Pixels, columns: Window, rows: Window, interpolation: Interpolation) -> Cow<'_, [u8]> {
    if columns.keeps_all() && rows.keeps_all() {
        return Cow::Borrowed(pixels.data());
    }
    let Some(filter) = filter(interpolation) else { return Cow::Owned(nearest(pixels, columns, rows)) };
    let convolve = match pixels.channels() {
        Channels::Gray => convolve::<U8>,
        Channels::Rgb => convolve::<U8x3>,
    };
    let channels = pixels.channels().count();
    let line_bytes = columns.source as usize * channels;
    let (first_row, end_row) = rows_needed(rows);
    let lines = &pixels.data()[first_row as usize * line_bytes..end_row as usize * line_bytes];
    let line_count = end_row - first_row;

    let narrowed = if columns.keeps_pixels() {
        let (first, visible) = (columns.first as usize * channels, columns.visible as usize * channels);
        let mut kept = Vec::with_capacity(visible * line_count as usize);
        lines.chunks_exact(line_bytes).for_each(|line| kept.extend_from_slice(&line[first..first + visible]));
        kept
    } else {
        let (left, width) = extent(columns);
        let part = Part { left, top: 0.0, width, height: f64::from(line_count) };
        convolve(lines, [columns.source, line_count], part, filter, [columns.visible, line_count])
    };
    if rows.keeps_pixels() {
        return Cow::Owned(narrowed);
    }
    let (top, height) = extent(rows);
    let part = Part { left: 0.0, top: top - f64::from(first_row), width: f64::from(columns.visible), height };
    Cow::Owned(convolve(&narrowed, [columns.visible, line_count], part, filter, [columns.visible, rows.visible]))
}

/// The whole picture at another size, bilinear and antialiased. It is upright, and has no flaw.
///
/// # Panics
/// When a side is 0.
pub fn resized(pixels: &Pixels, width: u32, height: u32) -> Pixels {
    let window = |source, resized| Window::centred(source, resized, None);
    let (columns, rows) = (window(pixels.width(), width), window(pixels.height(), height));
    let data = resample(pixels, columns, rows, Interpolation::Bilinear).into_owned();
    Pixels::upright(width, height, pixels.channels(), data)
}

/// The filter of an interpolation; `None` for the nearest pixel, which is not a convolution.
fn filter(interpolation: Interpolation) -> Option<FilterType> {
    match interpolation {
        Interpolation::Nearest => None,
        Interpolation::Bilinear => Some(FilterType::Bilinear),
        // Keys' cubic with a = -0.5, as in Pillow.
        Interpolation::Bicubic => Some(FilterType::CatmullRom),
        Interpolation::Lanczos => Some(FilterType::Lanczos3),
    }
}

/// Start and length of the window, in pixels of the picture.
fn extent(window: Window) -> (f64, f64) {
    let scale = f64::from(window.source) / f64::from(window.resized);
    if window.visible == window.resized {
        return (0.0, f64::from(window.source));
    }
    (f64::from(window.first) * scale, f64::from(window.visible) * scale)
}

/// Half the width of Lanczos's filter, in pixels of the smaller picture. The other filters are narrower.
const WIDEST_SUPPORT: f64 = 3.0;

/// The rows that any filter reads, from the first to one past the last.
fn rows_needed(rows: Window) -> (u32, u32) {
    if rows.keeps_pixels() {
        return (rows.first, rows.first + rows.visible);
    }
    let scale = f64::from(rows.source) / f64::from(rows.resized);
    let reach = WIDEST_SUPPORT * scale.max(1.0) + 1.0;
    let (start, length) = extent(rows);
    let first = (start - reach).floor().max(0.0) as u32;
    let end = (start + length + reach).ceil().min(f64::from(rows.source)) as u32;
    (first, end)
}

/// A part of a picture, in pixels from its upper left corner.
struct Part {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// A part of a picture of `size` pixels, resized to `resized`. Both sizes are width and height.
///
/// Generic over the pixels, because `Resizer::resize` would compile every filter for all of the library's pixel types.
fn convolve<P: PixelTrait>(data: &[u8], size: [u32; 2], part: Part, filter: FilterType, resized: [u32; 2]) -> Vec<u8> {
    let [width, height] = size;
    let [resized_width, resized_height] = resized;
    let source = TypedImageRef::<P>::from_buffer(width, height, data).expect("a picture has its pixels' bytes");
    let mut bytes = vec![0; resized_width as usize * resized_height as usize * size_of::<P>()];
    let mut made = TypedImage::<P>::from_buffer(resized_width, resized_height, &mut bytes).expect("the bytes fit");
    // By rounding, `extent` may end beyond the picture.
    let part_width = part.width.min(f64::from(width) - part.left);
    let part_height = part.height.min(f64::from(height) - part.top);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(part.left, part.top, part_width, part_height)
        .use_alpha(false);
    Resizer::new().resize_typed(&source, &mut made, &options).expect("the part lies in the picture");
    bytes
}

/// The pixel at each centre, as in Pillow's affine scaling.
fn nearest(pixels: &Pixels, columns: Window, rows: Window) -> Vec<u8> {
    let channels = pixels.channels().count();
    let line_bytes = columns.source as usize * channels;
    let at = |window: Window| {
        let scale = f64::from(window.source) / f64::from(window.resized);
        (window.first..window.first + window.visible)
            .map(move |made| ((((f64::from(made) + 0.5) * scale) as u32).min(window.source - 1)) as usize)
    };
    let columns: Vec<usize> = at(columns).map(|column| column * channels).collect();
    let mut made = Vec::with_capacity(columns.len() * rows.visible as usize * channels);
    for row in at(rows) {
        let line = &pixels.data()[row * line_bytes..][..line_bytes];
        for &column in &columns {
            made.extend_from_slice(&line[column..column + channels]);
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_equals_that_part_of_the_whole_resized_picture() {
        let (width, height) = (97u32, 61u32);
        let data: Vec<u8> = (0..width * height * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let pixels = Pixels::upright(width, height, Channels::Rgb, data);
        for interpolation in
            [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos]
        {
            for (resized_width, resized_height) in [(40, 30), (200, 150), (97, 30), (40, 61), (97, 61)] {
                let all = resample(
                    &pixels,
                    Window::centred(width, resized_width, None),
                    Window::centred(height, resized_height, None),
                    interpolation,
                );
                let columns = Window::centred(width, resized_width, Some(21));
                let rows = Window::centred(height, resized_height, Some(18));
                let part = resample(&pixels, columns, rows, interpolation);
                let expected: Vec<u8> = (rows.first..rows.first + rows.visible)
                    .flat_map(|row| {
                        let start = ((row * resized_width + columns.first) * 3) as usize;
                        &all[start..start + columns.visible as usize * 3]
                    })
                    .copied()
                    .collect();
                let off = part.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(off <= Some(1), "{interpolation:?} {resized_width}×{resized_height}: off by {off:?}");
                assert_eq!(part.len(), expected.len());
            }
        }
    }
}
