//! Maps at the frame's resolution.

use super::map::check_length;
use super::{Map, RenderError};
use crate::frame::AffineTransform;

/// The transform from pixels of a target layer's map to pixels of the model's input, with the geometry of bilinear
/// upsampling with half-pixel centres (`align_corners=false`). Sizes are `(width, height)`.
pub fn layer_to_model(layer: (u32, u32), model: (u32, u32)) -> AffineTransform {
    let scale_x = f64::from(model.0) / f64::from(layer.0);
    let scale_y = f64::from(model.1) / f64::from(layer.1);
    AffineTransform::scale_shift(scale_x, 0.5 * scale_x - 0.5, scale_y, 0.5 * scale_y - 0.5)
}

/// Resamples maps `[C, H, W]` (or `[H, W]`) to the frame: `[C, height, width]` (or `[height, width]`). `to_frame` maps
/// pixels of the map to pixels of the frame. Values are bilinear between the map's pixel centres, and 0 where the model
/// did not look. A frame smaller than the map is sampled, not averaged.
///
/// # Errors
/// [`RenderError::Shape`] for another number of axes or a side of 0, [`RenderError::Length`] when `values` does not
/// have as many elements as `shape` says, [`RenderError::NoArea`] when `to_frame` has no inverse.
pub fn warp(
    values: &[f32],
    shape: &[u32],
    to_frame: &AffineTransform,
    width: u32,
    height: u32,
) -> Result<Vec<f32>, RenderError> {
    let (&[_, map_height, map_width] | &[map_height, map_width]) = shape else {
        return Err(RenderError::Shape { shape: shape.to_vec(), allowed: "[C, H, W] or [H, W] does" });
    };
    check_length(values, shape)?;
    let mut warped = Vec::with_capacity(
        values.len() / (map_height as usize * map_width as usize).max(1) * width as usize * height as usize,
    );
    for values in values.chunks_exact((map_height as usize * map_width as usize).max(1)) {
        let map = Map::new(values, map_height, map_width)?;
        for_each_pixel(&map, to_frame, width, height, |value| warped.push(value.unwrap_or(0.0)))?;
    }
    Ok(warped)
}

/// Calls `visit` for each pixel of the frame, row by row, with the map's value at the pixel, or `None` outside the map.
pub(super) fn for_each_pixel(
    map: &Map<'_>,
    to_frame: &AffineTransform,
    width: u32,
    height: u32,
    mut visit: impl FnMut(Option<f32>),
) -> Result<(), RenderError> {
    for_each_position(to_frame, width, height, |x, y| visit(sample(map, x, y)))
}

/// Calls `visit` for each pixel of the frame, row by row, with the pixel's position in the map.
pub(super) fn for_each_position(
    to_frame: &AffineTransform,
    width: u32,
    height: u32,
    mut visit: impl FnMut(f32, f32),
) -> Result<(), RenderError> {
    let [a, b, c, d, e, f] = to_frame.inverse().ok_or(RenderError::NoArea)?.matrix;
    for y in 0..height {
        let (row_x, row_y) = (b * f64::from(y) + c, e * f64::from(y) + f);
        for x in 0..width {
            let x = f64::from(x);
            visit((a * x + row_x) as f32, (d * x + row_y) as f32);
        }
    }
    Ok(())
}

/// The map's value at a position, or `None` outside the map. A pixel extends half a pixel around its centre.
pub(super) fn sample(map: &Map<'_>, x: f32, y: f32) -> Option<f32> {
    let (last_x, last_y) = (map.width() as f32 - 1.0, map.height() as f32 - 1.0);
    // The tolerance is for rounding: the centre of a frame pixel may be on the edge of the crop.
    const EDGE: f32 = 0.5 + 1e-4;
    if x < -EDGE || y < -EDGE || x > last_x + EDGE || y > last_y + EDGE {
        return None;
    }
    let (x, y) = (x.clamp(0.0, last_x), y.clamp(0.0, last_y));
    let (left, top) = (x as usize, y as usize);
    let (across, down) = (x - left as f32, y - top as f32);
    let width = map.width() as usize;
    let right = (left + 1).min(width - 1);
    let below = (top + 1).min(map.height() as usize - 1);
    let row = |row: usize| {
        let (l, r) = (map.values()[row * width + left], map.values()[row * width + right]);
        l + (r - l) * across
    };
    let upper = row(top);
    Some(upper + (row(below) - upper) * down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upsampling_equals_bilinear_interpolation_with_half_pixel_centres() {
        // torch.nn.functional.interpolate([[0, 1], [2, 3]], size=(4, 4), mode="bilinear", align_corners=False)
        let expected = [[0.0, 0.25, 0.75, 1.0], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2.0, 2.25, 2.75, 3.0]];
        let warped = warp(&[0.0, 1.0, 2.0, 3.0], &[2, 2], &layer_to_model((2, 2), (4, 4)), 4, 4).unwrap();
        assert_eq!(warped, expected.concat());
    }

    #[test]
    fn outside_the_crop_the_map_is_zero() {
        let shift = AffineTransform::scale_shift(1.0, 2.0, 1.0, 1.0);
        let warped = warp(&[1.0, 2.0, 5.0, 6.0], &[2, 1, 2], &shift, 5, 3).unwrap();
        let plane = |a, b| [[0.0; 5], [0.0, 0.0, a, b, 0.0], [0.0; 5]].concat();
        assert_eq!(warped, [plane(1.0, 2.0), plane(5.0, 6.0)].concat());
    }

    #[test]
    fn a_map_without_area_is_an_error() {
        let flat = AffineTransform { matrix: [0.0; 6] };
        assert_eq!(warp(&[1.0], &[1, 1], &flat, 2, 2), Err(RenderError::NoArea));
        assert!(warp(&[1.0], &[1], &AffineTransform::IDENTITY, 2, 2).is_err());
        assert!(warp(&[1.0], &[2, 1], &AffineTransform::IDENTITY, 2, 2).is_err());
    }
}
