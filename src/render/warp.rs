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
    let size = (map.width(), map.height());
    for_each_position(size, to_frame, width, height, |position| visit(position.sample(map)))
}

/// A position in a map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    across: Along,
    down: Along,
}

/// A position along one side of a map: between the centres of two of its pixels.
#[derive(Debug, Clone, Copy)]
struct Along {
    at: f32,
    is_inside: bool,
    first: u32,
    second: u32,
    /// How far it is from the first to the second.
    part: f32,
}

/// Calls `visit` for each pixel of the frame, row by row, with the pixel's position in a map of `map` pixels, as
/// `(width, height)`.
pub(super) fn for_each_position(
    map: (u32, u32),
    to_frame: &AffineTransform,
    width: u32,
    height: u32,
    mut visit: impl FnMut(Position),
) -> Result<(), RenderError> {
    let [a, b, c, d, e, f] = to_frame.inverse().ok_or(RenderError::NoArea)?.matrix;
    let across = |x: u32, y: u32| Along::new((a * f64::from(x) + (b * f64::from(y) + c)) as f32, map.0);
    let down = |x: u32, y: u32| Along::new((d * f64::from(x) + (e * f64::from(y) + f)) as f32, map.1);
    if b == 0.0 && d == 0.0 {
        // The pixels of a column have the same position across, those of a row the same down.
        let columns: Vec<Along> = (0..width).map(|x| across(x, 0)).collect();
        for y in 0..height {
            let down = down(0, y);
            columns.iter().for_each(|&across| visit(Position { across, down }));
        }
    } else {
        for y in 0..height {
            (0..width).for_each(|x| visit(Position { across: across(x, y), down: down(x, y) }));
        }
    }
    Ok(())
}

impl Along {
    /// `side` is the map's, in pixels. A pixel extends half a pixel around its centre.
    fn new(at: f32, side: u32) -> Self {
        // The tolerance is for rounding: the centre of a frame pixel may be on the edge of the crop.
        const EDGE: f32 = 0.5 + 1e-4;
        let last = side as f32 - 1.0;
        let within = at.clamp(0.0, last);
        let first = within as u32;
        Along {
            at,
            is_inside: at >= -EDGE && at <= last + EDGE,
            first,
            second: (first + 1).min(side - 1),
            part: within - first as f32,
        }
    }
}

impl Position {
    pub(super) fn x(&self) -> f32 {
        self.across.at
    }

    pub(super) fn y(&self) -> f32 {
        self.down.at
    }

    /// The value of the map for which the position was made, or `None` outside it.
    pub(super) fn sample(&self, map: &Map<'_>) -> Option<f32> {
        let Position { across, down } = self;
        if !across.is_inside || !down.is_inside {
            return None;
        }
        let row = |row: u32| {
            let row = row as usize * map.width() as usize;
            let (l, r) = (map.values()[row + across.first as usize], map.values()[row + across.second as usize]);
            l + (r - l) * across.part
        };
        let upper = row(down.first);
        Some(upper + (row(down.second) - upper) * down.part)
    }
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
    fn a_frame_that_is_turned_gets_the_map_turned() {
        // Pixels of the frame are (2 - y, x) of the map.
        let turned = AffineTransform { matrix: [0.0, -1.0, 2.0, 1.0, 0.0, 0.0] };
        let warped = warp(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2], &turned, 3, 2).unwrap();
        assert_eq!(warped, [5.0, 3.0, 1.0, 6.0, 4.0, 2.0]);
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
