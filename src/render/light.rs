//! Guided Grad-CAM as light: the frame, dimmed except where the map is strong.

use super::fade::{Fade, smooth_step};
use super::map::check_length;
use super::overlay::{blend, rgb};
use super::warp::for_each_position;
use super::{Map, RenderError, ValueRange};
use crate::frame::{AffineTransform, Channels, Pixels};

/// The default darkness where there is no evidence.
pub const DEFAULT_DARKNESS: f32 = 0.75;

/// The standard deviation of the glow around strong pixels, as part of the map's shorter side. Guided Grad-CAM is a
/// map of edges: without a glow, the inside of what has those edges would be dark.
const GLOW: f32 = 0.035;
/// Part of the pixels whose magnitude is above the one that is fully lit, when the map has its own range.
const BRIGHTEST: f32 = 0.01;
/// The glow that is fully lit, as part of the brightest one.
const FULL_LIGHT: f32 = 0.6;
/// The brightest glow of a fixed range, as part of that around pixels which are all fully lit. Edges are thin: their
/// glow is weaker than they are.
const GLOW_OF_EDGES: f32 = 0.4;

/// The upright frame at its own resolution: as it is where Guided Grad-CAM is strong, dimmed where it is weak, by
/// `darkness` where it is 0 and where the model did not look. No pixel becomes brighter.
///
/// `values` is Guided Grad-CAM, `[C, H, W]`. A pixel's strength is the largest magnitude among its channels; strengths
/// are blurred a little, so that what is between lit edges is lit, too. With a fixed `range`, its upper end is the
/// strength that is fully lit, and its lower end is not used. `to_upright` maps pixels of the map to pixels of the
/// upright frame. `darkness` is 0 (the frame as it is) to 1 (black).
///
/// # Errors
/// [`RenderError::Shape`] and [`RenderError::Length`] for a map that is none, [`RenderError::Opacity`],
/// [`RenderError::Range`], and [`RenderError::NoArea`] when `to_upright` has no inverse.
pub fn light(
    frame: &Pixels,
    values: &[f32],
    shape: [u32; 3],
    to_upright: &AffineTransform,
    range: ValueRange,
    darkness: f32,
) -> Result<Pixels, RenderError> {
    if !(0.0..=1.0).contains(&darkness) {
        return Err(RenderError::Opacity { opacity: darkness });
    }
    let lit = lit(values, shape, range)?;
    let lit = Map::new(&lit, shape[1], shape[2])?;
    let (width, height) = (frame.width(), frame.height());
    let fade = Fade::new((lit.width(), lit.height()), to_upright, (width, height))?;
    let mut pixels: Vec<[u8; 3]> = rgb(frame).collect();
    let mut next = pixels.iter_mut();
    for_each_position((lit.width(), lit.height()), to_upright, width, height, |position| {
        let Some(pixel) = next.next() else { return };
        let lit = position.sample(&lit).map_or(0.0, |lit| lit * fade.at(position.x(), position.y()));
        // In 256ths, so that blending is integer arithmetic.
        let dark = (darkness * (1.0 - lit) * 256.0 + 0.5) as u32;
        *pixel = pixel.map(|channel| blend(channel, 0, dark));
    })?;
    Ok(Pixels::upright(width, height, Channels::Rgb, pixels.into_flattened()))
}

/// How much of the light each pixel of Guided Grad-CAM gets, `[H, W]`, 0 to 1. `values` is `[C, H, W]`.
///
/// # Errors
/// [`RenderError::Shape`], [`RenderError::Length`] and [`RenderError::Range`].
pub(super) fn lit(values: &[f32], shape: [u32; 3], range: ValueRange) -> Result<Vec<f32>, RenderError> {
    let [channels, height, width] = shape;
    if shape.contains(&0) {
        return Err(RenderError::Shape { shape: shape.to_vec(), allowed: "no side may be 0" });
    }
    check_length(values, &shape)?;
    let area = height as usize * width as usize;
    let magnitude = |value: f32| if value.is_finite() { value.abs() } else { 0.0 };
    let mut strengths: Vec<f32> = values[..area].iter().map(|&value| magnitude(value)).collect();
    for plane in values[area..area * channels as usize].chunks_exact(area) {
        strengths.iter_mut().zip(plane).for_each(|(most, &value)| *most = most.max(magnitude(value)));
    }
    let full = match range {
        ValueRange::Fixed { low, high } if !(low.is_finite() && high.is_finite() && low < high) => {
            return Err(RenderError::Range { low, high });
        }
        ValueRange::Fixed { high, .. } => high,
        ValueRange::OfTheMap => {
            let rank = ((1.0 - BRIGHTEST) * area as f32) as usize;
            *strengths.clone().select_nth_unstable_by(rank.min(area - 1), f32::total_cmp).1
        }
    };
    if full <= 0.0 {
        return Ok(vec![0.0; area]);
    }
    strengths.iter_mut().for_each(|strength| *strength = (*strength / full).min(1.0));
    let radius = (GLOW * height.min(width) as f32).round() as usize;
    let glow = blur(&strengths, width as usize, radius);
    let brightest = match range {
        ValueRange::Fixed { .. } => GLOW_OF_EDGES,
        ValueRange::OfTheMap => glow.iter().copied().fold(0.0, f32::max),
    };
    Ok(glow.into_iter().map(|glow| smooth_step(glow / (FULL_LIGHT * brightest))).collect())
}

/// Three box filters of `radius` in each direction, whose cascade is close to a Gaussian. Values outside are 0.
fn blur(values: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let mut blurred = values.to_vec();
    for _ in 0..3 {
        blurred = transposed(&box_filter(&blurred, width, radius), width);
        let height = blurred.len() / width;
        blurred = transposed(&box_filter(&blurred, height, radius), height);
    }
    blurred
}

/// The mean of `2 · radius + 1` values in each row.
fn box_filter(values: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let share = 1.0 / (2 * radius + 1) as f32;
    let mut filtered = Vec::with_capacity(values.len());
    for row in values.chunks_exact(width) {
        // In f64, so that a running sum of values that come and go ends at 0 again.
        let mut sum: f64 = row.iter().take(radius).map(|&value| f64::from(value)).sum();
        for at in 0..width {
            sum += row.get(at + radius).map_or(0.0, |&value| f64::from(value));
            filtered.push((sum as f32 * share).max(0.0));
            sum -= at.checked_sub(radius).map_or(0.0, |gone| f64::from(row[gone]));
        }
    }
    filtered
}

fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values[column..].iter().step_by(width).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAYS: AffineTransform = AffineTransform::IDENTITY;
    const SIDE: u32 = 64;

    /// A gradient with strong edges in a square in the middle, `[3, 64, 64]`, and nothing elsewhere.
    fn square(strength: f32) -> Vec<f32> {
        let inside = |at: u32| (28..36).contains(&(at % SIDE)) && (28..36).contains(&(at / SIDE));
        let sign = |at: u32| if at.is_multiple_of(2) { strength } else { -strength };
        (0..3 * SIDE * SIDE).map(|at| if inside(at % (SIDE * SIDE)) { sign(at) } else { 0.0 }).collect()
    }

    fn noise(width: u32, height: u32) -> Pixels {
        let data = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Pixels::upright(width, height, Channels::Rgb, data)
    }

    fn drawn(frame: &Pixels, values: &[f32], to_upright: &AffineTransform, darkness: f32) -> Pixels {
        light(frame, values, [3, SIDE, SIDE], to_upright, ValueRange::OfTheMap, darkness).unwrap()
    }

    fn pixel(picture: &Pixels, x: u32, y: u32) -> [u8; 3] {
        let at = (y * picture.width() + x) as usize * 3;
        [picture.data()[at], picture.data()[at + 1], picture.data()[at + 2]]
    }

    #[test]
    fn what_is_strong_is_as_it_was_and_what_is_nothing_is_dark() {
        let frame = noise(SIDE, SIDE);
        let picture = drawn(&frame, &square(5.0), &STAYS, 0.75);
        for (x, y) in [(31, 31), (33, 30), (30, 33)] {
            assert_eq!(pixel(&picture, x, y), pixel(&frame, x, y), "in the square");
        }
        for (x, y) in [(0, 0), (63, 0), (10, 50)] {
            let dark = pixel(&frame, x, y).map(|channel| (u32::from(channel) * 64 + 128) >> 8);
            assert_eq!(pixel(&picture, x, y).map(u32::from), dark, "far from it");
        }
        let brighter = frame.data().iter().zip(picture.data()).filter(|(before, after)| after > before).count();
        assert_eq!(brighter, 0, "light adds nothing to the frame");
    }

    #[test]
    fn without_darkness_the_frame_is_unchanged() {
        let frame = noise(SIDE, SIDE);
        assert_eq!(drawn(&frame, &square(1.0), &STAYS, 0.0).data(), frame.data());
        let error = light(&frame, &square(1.0), [3, SIDE, SIDE], &STAYS, ValueRange::OfTheMap, 1.5).unwrap_err();
        assert_eq!(error.field(), Some("options.pictures.opacity"));
    }

    #[test]
    fn a_map_without_evidence_lights_nothing() {
        let frame = Pixels::upright(SIDE, SIDE, Channels::Gray, vec![200; (SIDE * SIDE) as usize]);
        for nothing in [0.0, f32::NAN, f32::INFINITY] {
            let picture = drawn(&frame, &vec![nothing; (3 * SIDE * SIDE) as usize], &STAYS, 1.0);
            assert!(picture.data().iter().all(|&channel| channel == 0), "{nothing}");
        }
    }

    #[test]
    fn the_scale_is_the_maps_own_unless_it_is_fixed() {
        let lit_by = |strength, range| lit(&square(strength), [3, SIDE, SIDE], range).unwrap();
        assert_eq!(lit_by(1.0, ValueRange::OfTheMap), lit_by(4.0, ValueRange::OfTheMap));
        let fixed = ValueRange::Fixed { low: 0.0, high: 4.0 };
        let [weak, strong] = [0.4, 4.0].map(|strength| lit_by(strength, fixed).into_iter().fold(0.0, f32::max));
        assert!(weak < 0.5 && strong == 1.0, "{weak} and {strong}");
        for range in [ValueRange::Fixed { low: 1.0, high: 1.0 }, ValueRange::Fixed { low: 0.0, high: f32::NAN }] {
            assert!(lit(&square(1.0), [3, SIDE, SIDE], range).is_err());
        }
    }

    #[test]
    fn outside_the_crop_it_is_dark_and_the_border_is_soft() {
        let frame = Pixels::upright(2 * SIDE, SIDE, Channels::Gray, vec![200; (2 * SIDE * SIDE) as usize]);
        let everywhere = vec![1.0; (3 * SIDE * SIDE) as usize];
        let shift = AffineTransform::scale_shift(1.0, 32.0, 1.0, 0.0);
        let picture = drawn(&frame, &everywhere, &shift, 0.5);
        let row: Vec<u8> = (0..2 * SIDE).map(|x| pixel(&picture, x, SIDE / 2)[0]).collect();
        assert_eq!((row[0], row[31], row[64], row[96]), (100, 100, 200, 100));
        let steepest = row.windows(2).map(|pair| pair[0].abs_diff(pair[1])).max();
        assert!(steepest < Some(50), "no step is half of the whole change: {row:?}");
    }

    #[test]
    fn a_map_that_is_none_is_refused() {
        let frame = noise(2, 2);
        for (values, shape) in [(&[1.0][..], [1, 1, 2]), (&[], [0, 1, 1]), (&[], [1, 0, 1])] {
            assert!(light(&frame, values, shape, &STAYS, ValueRange::OfTheMap, 0.5).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn the_blur_keeps_the_sum_and_spreads_evenly() {
        let mut values = vec![0.0; 41 * 31];
        values[15 * 41 + 20] = 1.0;
        let blurred = blur(&values, 41, 2);
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let (across, down) = (blurred[15 * 41 + 18], blurred[13 * 41 + 20]);
        assert!((across - down).abs() <= 1e-6 * across.abs(), "the same across and down");
        assert_eq!(blurred[0], 0.0);
    }
}
