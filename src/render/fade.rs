//! How evidence fades out at the edges of the crop.

use super::RenderError;
use crate::frame::AffineTransform;

/// Part of the map's width, or height, over which evidence fades out.
const MARGIN: f32 = 0.06;
/// A frame that extends beyond the map by less than this part of the map's side ends with it.
const NEGLIGIBLE: f64 = 0.01;

/// A factor that falls to 0 towards those edges of the map beyond which the frame goes on: what the model did not see
/// begins without a visible border. At an edge of the map that is an edge of the frame, it stays 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fade {
    across: Side,
    down: Side,
}

/// One axis of the map, in its pixels.
#[derive(Debug, Clone, Copy)]
struct Side {
    length: f32,
    /// Whether the frame goes on before the first pixel, and after the last one.
    goes_on: (bool, bool),
}

impl Fade {
    /// Of a map of `map` pixels in a frame of `frame` pixels, both as `(width, height)`.
    ///
    /// # Errors
    /// [`RenderError::NoArea`] when `to_frame` has no inverse.
    pub(super) fn new(map: (u32, u32), to_frame: &AffineTransform, frame: (u32, u32)) -> Result<Fade, RenderError> {
        let to_map = to_frame.inverse().ok_or(RenderError::NoArea)?;
        let (right, bottom) = (f64::from(frame.0) - 0.5, f64::from(frame.1) - 0.5);
        let corners = [(-0.5, -0.5), (right, -0.5), (-0.5, bottom), (right, bottom)].map(|(x, y)| to_map.apply(x, y));
        let side = |length: u32, positions: [f64; 4]| {
            let length = f64::from(length);
            let beyond = NEGLIGIBLE * length + 0.5;
            let goes_on = (
                positions.iter().any(|&position| position < -beyond),
                positions.iter().any(|&position| position > length - 1.0 + beyond),
            );
            Side { length: length as f32, goes_on }
        };
        Ok(Fade { across: side(map.0, corners.map(|(x, _)| x)), down: side(map.1, corners.map(|(_, y)| y)) })
    }

    /// The factor at a position of the map, 0 to 1.
    pub(super) fn at(&self, x: f32, y: f32) -> f32 {
        self.across.at(x) * self.down.at(y)
    }
}

impl Side {
    fn at(&self, position: f32) -> f32 {
        let before = if self.goes_on.0 { position + 0.5 } else { f32::INFINITY };
        let after = if self.goes_on.1 { self.length - 0.5 - position } else { f32::INFINITY };
        smooth_step(before.min(after) / (MARGIN * self.length))
    }
}

/// 0 up to 0, 1 from 1 on, and a cubic without a bend between them.
pub(super) fn smooth_step(at: f32) -> f32 {
    let at = at.clamp(0.0, 1.0);
    at * at * (3.0 - 2.0 * at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_edges_inside_the_frame_fade() {
        // 100 × 100 pixels of the map, in the middle of a frame of 200 × 100.
        let shift = AffineTransform::scale_shift(1.0, 50.0, 1.0, 0.0);
        let fade = Fade::new((100, 100), &shift, (200, 100)).unwrap();
        assert_eq!([fade.at(-0.5, 50.0), fade.at(99.5, 50.0)], [0.0; 2], "left and right");
        assert_eq!([fade.at(50.0, -0.5), fade.at(50.0, 99.5), fade.at(50.0, 50.0)], [1.0; 3], "top, bottom, middle");
        assert_eq!(fade.at(2.5, 50.0), 0.5);
    }

    #[test]
    fn a_crop_that_is_smaller_by_a_rounding_does_not_fade() {
        let almost = AffineTransform::scale_shift(1.0, 0.4, 1.0, 0.4);
        let fade = Fade::new((100, 100), &almost, (101, 101)).unwrap();
        assert_eq!(fade.at(0.0, 0.0), 1.0);
        assert_eq!(Fade::new((1, 1), &AffineTransform { matrix: [0.0; 6] }, (1, 1)).unwrap_err(), RenderError::NoArea);
    }
}
