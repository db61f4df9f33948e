//! Frames at the size of a page.

use crate::frame::{AffineTransform, Pixels, resized};

/// The upright frame with a longer side of at most `most` pixels, and `to_upright` for it. A smaller frame is copied.
pub fn shrunk(frame: &Pixels, to_upright: &AffineTransform, most: u32) -> (Pixels, AffineTransform) {
    let (width, height) = (frame.width(), frame.height());
    let longer = width.max(height);
    if longer <= most.max(1) {
        return (Pixels::upright(width, height, frame.channels(), frame.data().to_vec()), *to_upright);
    }
    let side = |side: u32| ((u64::from(side) * u64::from(most) / u64::from(longer)) as u32).max(1);
    let (small_width, small_height) = (side(width), side(height));
    let scale = |small: u32, large: u32| f64::from(small) / f64::from(large);
    let (x, y) = (scale(small_width, width), scale(small_height, height));
    let to_small = AffineTransform::scale_shift(x, 0.5 * x - 0.5, y, 0.5 * y - 0.5);
    (resized(frame, small_width, small_height), to_upright.then(&to_small))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Channels;

    #[test]
    fn the_shrunk_frame_keeps_its_shape_and_its_map() {
        let frame = Pixels::upright(400, 200, Channels::Rgb, [10, 20, 30].repeat(400 * 200));
        let (small, to_small) = shrunk(&frame, &AffineTransform::IDENTITY, 100);
        assert_eq!((small.width(), small.height(), small.data()), (100, 50, &[10, 20, 30].repeat(100 * 50)[..]));
        assert_eq!(to_small.apply(-0.5, -0.5), (-0.5, -0.5));
        assert_eq!(to_small.apply(399.5, 199.5), (99.5, 49.5));
        assert_eq!(shrunk(&frame, &AffineTransform::IDENTITY, 400).0, frame);
        let line = Pixels::upright(1, 1000, Channels::Gray, vec![7; 1000]);
        assert_eq!(shrunk(&line, &AffineTransform::IDENTITY, 10).0.data(), [7; 10]);
    }
}
