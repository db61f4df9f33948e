//! Heat maps over the frame.

use super::fade::{Fade, smooth_step};
use super::heat_map::Levels;
use super::warp::for_each_position;
use super::{ColorMap, Map, RenderError, ValueRange};
use crate::frame::{AffineTransform, Channels, Pixels};

/// The default opacity of the strongest evidence.
pub const DEFAULT_OPACITY: f32 = 0.6;

/// Part of the scale from no evidence to the strongest at which the heat map reaches its full opacity.
const OPAQUE_FROM: f32 = 0.7;

/// The upright frame at its own resolution, with the heat map over it, as opaque as the evidence is strong. Pixels
/// without evidence are unchanged: where the map is 0 or less, or at the low end of `range`, and where the model did
/// not look. Towards an edge of the crop that lies inside the frame, the heat map fades out.
///
/// `to_upright` maps pixels of the map to pixels of the upright frame. `opacity` is that of the strongest evidence: 0
/// shows the frame alone, 1 hides the frame there.
///
/// # Errors
/// [`RenderError::Opacity`], [`RenderError::Range`], and [`RenderError::NoArea`] when `to_upright` has no inverse.
pub fn overlay(
    frame: &Pixels,
    map: &Map<'_>,
    to_upright: &AffineTransform,
    range: ValueRange,
    color_map: ColorMap,
    opacity: f32,
) -> Result<Pixels, RenderError> {
    if !(0.0..=1.0).contains(&opacity) {
        return Err(RenderError::Opacity { opacity });
    }
    let levels = range.levels(map)?;
    let colors = color_map.table();
    let opacities = opacities(&levels, opacity);
    let (width, height) = (frame.width(), frame.height());
    let fade = Fade::new((map.width(), map.height()), to_upright, (width, height))?;
    let mut pixels: Vec<[u8; 3]> = rgb(frame).collect();
    let mut next = pixels.iter_mut();
    for_each_position((map.width(), map.height()), to_upright, width, height, |position| {
        let Some(pixel) = next.next() else { return };
        let level = position.sample(map).map_or(0, |value| levels.of(value));
        if opacities[level] == 0.0 {
            return;
        }
        // In 256ths, so that blending is integer arithmetic.
        let over = (opacities[level] * fade.at(position.x(), position.y()) * 256.0 + 0.5) as u32;
        let color = colors[level];
        *pixel = [0, 1, 2].map(|channel| blend(pixel[channel], color[channel], over));
    })?;
    Ok(Pixels::upright(width, height, Channels::Rgb, pixels.into_flattened()))
}

/// The opacity of each level: 0 up to that of the value 0, then rising to `opacity`.
pub(super) fn opacities(levels: &Levels, opacity: f32) -> [f32; 256] {
    let nothing = levels.of(0.0);
    let span = (255 - nothing).max(1) as f32 * OPAQUE_FROM;
    std::array::from_fn(|level| opacity * smooth_step(level.saturating_sub(nothing) as f32 / span))
}

/// `over` is in 256ths. Without rounding errors at 0 and 256.
pub(super) fn blend(below: u8, above: u8, over: u32) -> u8 {
    ((u32::from(below) * (256 - over) + u32::from(above) * over + 128) >> 8) as u8
}

/// The frame's pixels as RGB, row by row.
pub(super) fn rgb(frame: &Pixels) -> impl Iterator<Item = [u8; 3]> {
    let channels = frame.channels();
    frame.data().chunks_exact(channels.count()).map(move |pixel| match channels {
        Channels::Gray => [pixel[0]; 3],
        Channels::Rgb => [pixel[0], pixel[1], pixel[2]],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAYS: AffineTransform = AffineTransform::IDENTITY;

    fn gray_frame() -> Pixels {
        Pixels::upright(3, 1, Channels::Gray, vec![10, 100, 200])
    }

    fn overlaid(values: &[f32; 3], range: ValueRange, opacity: f32) -> Result<Pixels, RenderError> {
        let map = Map::new(values, 1, 3).unwrap();
        overlay(&gray_frame(), &map, &STAYS, range, ColorMap::Jet, opacity)
    }

    /// A frame of noise, and the pixels of the picture that differ from it, as `(x, y)`.
    fn changed(width: u32, height: u32, values: &[f32], side: u32, to_upright: &AffineTransform) -> Vec<(u32, u32)> {
        let noise: Vec<u8> = (0..width * height * 3).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let frame = Pixels::upright(width, height, Channels::Rgb, noise);
        let map = Map::new(values, side, side).unwrap();
        let picture = overlay(&frame, &map, to_upright, ValueRange::OfTheMap, ColorMap::Turbo, 1.0).unwrap();
        let pairs = frame.data().chunks_exact(3).zip(picture.data().chunks_exact(3));
        pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| (at as u32 % width, at as u32 / width)).collect()
    }

    #[test]
    fn where_the_map_is_zero_the_frame_is_unchanged() {
        // The right half of the map is evidence, the left half is none.
        let values: Vec<f32> = (0..16 * 16).map(|at| if at % 16 < 8 { 0.0 } else { 1.0 }).collect();
        let changed = changed(64, 64, &values, 16, &AffineTransform::scale_shift(4.0, 1.5, 4.0, 1.5));
        assert!(changed.iter().all(|&(x, _)| x >= 29), "between the centres of the columns 7 and 8");
        assert_eq!(changed.iter().filter(|&&(x, _)| x >= 36).count(), 28 * 64, "all of the evidence");
    }

    #[test]
    fn no_value_at_or_below_zero_covers_the_frame_whatever_the_range() {
        let range = ValueRange::Fixed { low: -1.0, high: 1.0 };
        let picture = overlaid(&[-0.5, 0.0, 1.0], range, 1.0).unwrap();
        assert_eq!(picture.data()[..6], [10, 10, 10, 100, 100, 100]);
        assert_eq!(picture.data()[6..], ColorMap::Jet.table()[255]);
    }

    #[test]
    fn stronger_evidence_covers_more_of_the_frame() {
        let levels = ValueRange::Fixed { low: 0.0, high: 1.0 }.levels(&Map::new(&[0.0], 1, 1).unwrap()).unwrap();
        let opacities = opacities(&levels, 0.6);
        assert_eq!((opacities[0], opacities[255]), (0.0, 0.6));
        assert!(opacities.is_sorted());
    }

    #[test]
    fn outside_the_crop_the_frame_is_unchanged_and_the_border_is_soft() {
        // Evidence everywhere but in one corner, and a frame that goes on left and right of the crop.
        let mut values = [1.0; 20 * 20];
        values[0] = 0.0;
        let inside = changed(120, 60, &values, 20, &AffineTransform::scale_shift(3.0, 31.0, 3.0, 1.0));
        assert!(inside.iter().all(|&(x, _)| (30..90).contains(&x)));
        assert!(inside.contains(&(60, 0)) && inside.contains(&(60, 59)), "the frame's own edges are covered");

        let frame = Pixels::upright(120, 60, Channels::Gray, vec![200; 120 * 60]);
        let map = Map::new(&values, 20, 20).unwrap();
        let to_upright = AffineTransform::scale_shift(3.0, 31.0, 3.0, 1.0);
        let picture = overlay(&frame, &map, &to_upright, ValueRange::OfTheMap, ColorMap::Jet, 0.6).unwrap();
        let row: Vec<u8> = picture.data()[40 * 120 * 3..41 * 120 * 3].chunks_exact(3).map(|pixel| pixel[2]).collect();
        let steepest = row.windows(2).map(|pair| pair[0].abs_diff(pair[1])).max();
        assert!(steepest <= Some(60), "no step from pixel to pixel is as large as the whole change of 120: {row:?}");
        assert_eq!(row[60], 80, "blue of 200 under 60 % of jet's dark red");
    }

    #[test]
    fn opacity_leads_from_the_frame_to_the_heat_map() {
        let jet = ColorMap::Jet.table();
        let values = [0.0, 0.5, 1.0];
        let picture = |opacity| overlaid(&values, ValueRange::OfTheMap, opacity).unwrap();
        assert_eq!(picture(0.0).data(), [10, 10, 10, 100, 100, 100, 200, 200, 200]);
        assert_eq!(picture(1.0).data()[6..], jet[255]);
        assert_eq!(picture(0.5).data()[6..], [164, 100, 100]);
        for opacity in [-0.1, 1.1, f32::NAN] {
            let error = overlaid(&values, ValueRange::OfTheMap, opacity).unwrap_err();
            assert_eq!(error.field(), Some("options.pictures.opacity"));
        }
    }

    #[test]
    fn a_map_without_evidence_leaves_the_frame_as_it_is() {
        let frame = [[10; 3], [100; 3], [200; 3]].concat();
        for values in [[0.0; 3], [f32::NAN; 3]] {
            assert_eq!(overlaid(&values, ValueRange::OfTheMap, 1.0).unwrap().data(), frame);
        }
    }
}
