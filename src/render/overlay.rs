//! Heat maps over the frame.

use super::warp::for_each_pixel;
use super::{ColorMap, Map, RenderError, ValueRange};
use crate::frame::{AffineTransform, Channels, Pixels};

/// The default opacity: half frame, half heat map.
pub const DEFAULT_OPACITY: f32 = 0.5;

/// The upright frame at its own resolution, with the heat map over the part that the model saw. Pixels outside that
/// part are unchanged.
///
/// `to_upright` maps pixels of the map to pixels of the upright frame. `opacity` is 0 (the frame alone) to 1 (the heat
/// map alone).
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
    // In 256ths, so that blending is integer arithmetic.
    let over = (opacity * 256.0).round() as u32;
    let blend = |below: u8, color: u8| ((u32::from(below) * (256 - over) + u32::from(color) * over + 128) >> 8) as u8;
    let channels = frame.channels();
    let mut below = frame.data().chunks_exact(channels.count()).map(|pixel| match channels {
        Channels::Gray => [pixel[0]; 3],
        Channels::Rgb => [pixel[0], pixel[1], pixel[2]],
    });
    let mut data = Vec::with_capacity(frame.width() as usize * frame.height() as usize * 3);
    for_each_pixel(map, to_upright, frame.width(), frame.height(), |value| {
        let Some(pixel) = below.next() else { return };
        let Some(value) = value else { return data.extend_from_slice(&pixel) };
        let color = colors[levels.of(value)];
        data.extend_from_slice(&[0, 1, 2].map(|channel| blend(pixel[channel], color[channel])));
    })?;
    Ok(Pixels::upright(frame.width(), frame.height(), Channels::Rgb, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray_frame() -> Pixels {
        Pixels::upright(3, 1, Channels::Gray, vec![10, 100, 200])
    }

    fn overlaid(opacity: f32) -> Result<Pixels, RenderError> {
        let map = Map::new(&[0.0, 1.0], 1, 2).unwrap();
        let shift = AffineTransform::scale_shift(1.0, 1.0, 1.0, 0.0);
        overlay(&gray_frame(), &map, &shift, ValueRange::OfTheMap, ColorMap::Jet, opacity)
    }

    #[test]
    fn the_frame_stays_uncoloured_outside_the_crop() {
        assert_eq!(overlaid(1.0).unwrap().data()[..3], [10, 10, 10]);
    }

    #[test]
    fn opacity_leads_from_the_frame_to_the_heat_map() {
        let jet = ColorMap::Jet.table();
        assert_eq!(overlaid(0.0).unwrap().data(), [10, 10, 10, 100, 100, 100, 200, 200, 200]);
        assert_eq!(overlaid(1.0).unwrap().data()[3..], [jet[0], jet[255]].concat());
        assert_eq!(overlaid(0.5).unwrap().data()[3..6], [50, 50, 114]);
        for opacity in [-0.1, 1.1, f32::NAN] {
            assert_eq!(overlaid(opacity).unwrap_err().field(), Some("options.pictures.opacity"));
        }
    }

    #[test]
    fn a_map_without_evidence_colours_the_crop_uniformly() {
        let map = Map::new(&[0.0; 2], 1, 2).unwrap();
        let stays = AffineTransform::IDENTITY;
        let picture = overlay(&gray_frame(), &map, &stays, ValueRange::OfTheMap, ColorMap::Jet, 1.0).unwrap();
        let cold = ColorMap::Jet.table()[0];
        assert_eq!(picture.data(), [cold, cold, [200; 3]].concat());
    }
}
