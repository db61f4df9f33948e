//! Maps as layers that a page draws over the frame by itself: opacity and colours are then the page's choice.

use super::fade::Fade;
use super::light::lit;
use super::overlay::opacities;
use super::warp::{for_each_position, layer_to_model};
use super::{Map, RenderError, ValueRange};
use crate::frame::AffineTransform;

/// The part of the upright frame that a map covers, in parts of the frame's width and height. Its corners may lie
/// outside the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Area {
    /// That of a map of `map` pixels in an upright frame of `frame` pixels, both as `(width, height)`.
    pub fn of(map: (u32, u32), to_upright: &AffineTransform, frame: (u32, u32)) -> Area {
        let (x0, y0) = to_upright.apply(-0.5, -0.5);
        let (x1, y1) = to_upright.apply(f64::from(map.0) - 0.5, f64::from(map.1) - 0.5);
        let (width, height) = (f64::from(frame.0), f64::from(frame.1));
        Area {
            left: (x0.min(x1) + 0.5) / width,
            top: (y0.min(y1) + 0.5) / height,
            width: (x1 - x0).abs() / width,
            height: (y1 - y0).abs() / height,
        }
    }
}

/// A heat map as [`overlay`](super::overlay()) draws it, without colours: `[height, width]` each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatLayer {
    pub width: u32,
    pub height: u32,
    /// Entries of the colour map.
    pub levels: Vec<u8>,
    /// Opacities in 255ths, for an overlay of opacity 1.
    pub opacities: Vec<u8>,
}

/// The light of [`light`](super::light()): 0 is dark, 255 fully lit. `[height, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LightLayer {
    pub width: u32,
    pub height: u32,
    pub lit: Vec<u8>,
}

/// The map, sampled so that no side has more than `most` pixels.
///
/// # Errors
/// [`RenderError::Range`], and [`RenderError::NoArea`] when `to_upright` has no inverse.
pub fn heat_layer(
    map: &Map<'_>,
    to_upright: &AffineTransform,
    frame: (u32, u32),
    range: ValueRange,
    most: u32,
) -> Result<HeatLayer, RenderError> {
    let scale = range.levels(map)?;
    let covers = opacities(&scale, 1.0);
    let fade = Fade::new((map.width(), map.height()), to_upright, frame)?;
    let (width, height) = at_most(map, most);
    let (mut levels, mut opacities) = (Vec::new(), Vec::new());
    let size = (map.width(), map.height());
    for_each_position(size, &layer_to_model(size, (width, height)), width, height, |position| {
        let level = position.sample(map).map_or(0, |value| scale.of(value));
        levels.push(level as u8);
        opacities.push(in_255ths(covers[level] * fade.at(position.x(), position.y())));
    })?;
    Ok(HeatLayer { width, height, levels, opacities })
}

/// The light of Guided Grad-CAM `[C, H, W]`, sampled so that no side has more than `most` pixels.
///
/// # Errors
/// As [`light`](super::light()).
pub fn light_layer(
    values: &[f32],
    shape: [u32; 3],
    to_upright: &AffineTransform,
    frame: (u32, u32),
    range: ValueRange,
    most: u32,
) -> Result<LightLayer, RenderError> {
    let light = lit(values, shape, range)?;
    let map = Map::new(&light, shape[1], shape[2])?;
    let fade = Fade::new((map.width(), map.height()), to_upright, frame)?;
    let (width, height) = at_most(&map, most);
    let mut lit = Vec::new();
    let size = (map.width(), map.height());
    for_each_position(size, &layer_to_model(size, (width, height)), width, height, |position| {
        lit.push(in_255ths(position.sample(&map).unwrap_or(0.0) * fade.at(position.x(), position.y())));
    })?;
    Ok(LightLayer { width, height, lit })
}

fn at_most(map: &Map<'_>, most: u32) -> (u32, u32) {
    let longer = map.width().max(map.height());
    let side = |side: u32| if longer <= most { side } else { (side * most).div_ceil(longer) };
    (side(map.width()), side(map.height()))
}

fn in_255ths(share: f32) -> u8 {
    (share * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Channels, Pixels};
    use crate::render::{ColorMap, overlay};

    #[test]
    fn the_area_of_a_centre_crop_is_the_middle_of_the_frame() {
        let crop = AffineTransform::scale_shift(2.0, 50.5, 2.0, 0.5);
        let area = Area::of((50, 50), &crop, (200, 100));
        assert_eq!(area, Area { left: 0.25, top: 0.0, width: 0.5, height: 1.0 });
    }

    #[test]
    fn a_layer_drawn_at_its_own_size_is_the_overlay() {
        let values: Vec<f32> = (0..20 * 20).map(|at| (at % 20) as f32 * (at / 20) as f32).collect();
        let map = Map::new(&values, 20, 20).unwrap();
        // The frame goes on left and right of the map.
        let to_upright = AffineTransform::scale_shift(1.0, 10.0, 1.0, 0.0);
        let layer = heat_layer(&map, &to_upright, (40, 20), ValueRange::OfTheMap, 20).unwrap();
        let frame = Pixels::upright(40, 20, Channels::Gray, vec![0; 800]);
        let picture = overlay(&frame, &map, &to_upright, ValueRange::OfTheMap, ColorMap::Turbo, 1.0).unwrap();
        let table = ColorMap::Turbo.table();
        for (at, (&level, &opacity)) in layer.levels.iter().zip(&layer.opacities).enumerate() {
            let pixel = &picture.data()[((at / 20) * 40 + 10 + at % 20) * 3..][..3];
            for (channel, &drawn) in pixel.iter().enumerate() {
                let expected = u32::from(table[usize::from(level)][channel]) * u32::from(opacity) / 255;
                assert!(u32::from(drawn).abs_diff(expected) <= 2, "pixel {at}: {drawn}, not {expected}");
            }
        }
    }

    #[test]
    fn a_layer_is_never_larger_than_asked() {
        let values = vec![1.0; 3 * 30 * 60];
        let layer = light_layer(&values, [3, 30, 60], &AffineTransform::IDENTITY, (60, 30), ValueRange::OfTheMap, 16);
        let layer = layer.unwrap();
        assert_eq!((layer.width, layer.height, layer.lit.len()), (16, 8, 128));
        assert!(layer.lit.iter().all(|&lit| lit == 255), "everything is equally strong");
    }
}
