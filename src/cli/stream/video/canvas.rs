//! The pictures of a video: a frame, and its explanation at its right.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::cli::failure::Failure;
use crate::client::Payload;

/// Largest height of the video, in pixels: twice the width of a frame must stay within what players decode.
const MAX_HEIGHT: u32 = 1080;
const MAX_PANEL_WIDTH: u32 = 1920;

/// A picture with room for two panels of the same size. H.264 wants even numbers of rows and columns.
pub struct Canvas {
    panel_width: u32,
    image: RgbImage,
}

impl Canvas {
    /// A canvas whose panels have the size of `frame`, or are smaller where that is too large for a video.
    pub fn for_frames_like(frame: &RgbImage) -> Self {
        let (width, height) = fitted(frame.dimensions(), (MAX_PANEL_WIDTH, MAX_HEIGHT));
        let (width, height) = (width.next_multiple_of(2), height.next_multiple_of(2));
        Canvas { panel_width: width, image: RgbImage::new(2 * width, height) }
    }

    pub fn width(&self) -> u32 {
        self.image.width()
    }

    pub fn height(&self) -> u32 {
        self.image.height()
    }

    /// RGB, in rows without padding.
    pub fn bytes(&self) -> &[u8] {
        self.image.as_raw()
    }

    /// Shows `frame` at the left and `explanation` at the right, each as large as its panel allows.
    pub fn draw(&mut self, frame: &RgbImage, explanation: &RgbImage) {
        self.panel(frame, 0);
        self.panel(explanation, self.panel_width);
    }

    fn panel(&mut self, picture: &RgbImage, left: u32) {
        let panel = (self.panel_width, self.image.height());
        let size = fitted_up(picture.dimensions(), panel);
        let resized;
        let picture = if size == picture.dimensions() {
            picture
        } else {
            resized = imageops::resize(picture, size.0, size.1, FilterType::Triangle);
            &resized
        };
        if size != panel {
            let black = RgbImage::from_pixel(panel.0, panel.1, Rgb([0; 3]));
            imageops::replace(&mut self.image, &black, left.into(), 0);
        }
        let (x, y) = (left + (panel.0 - size.0) / 2, (panel.1 - size.1) / 2);
        imageops::replace(&mut self.image, picture, x.into(), y.into());
    }
}

/// The pixels of a frame.
pub fn pixels(payload: &Payload) -> Result<RgbImage, Failure> {
    match payload {
        Payload::Encoded(data) => decode(data, "a frame"),
        Payload::Rgb { width, height, data } => RgbImage::from_raw(*width, *height, data.to_vec())
            .ok_or_else(|| Failure::failed(format!("a frame of {width}×{height} pixels has {} bytes", data.len()))),
    }
}

/// Decodes a picture file; `what` names it.
pub fn decode(data: &[u8], what: &str) -> Result<RgbImage, Failure> {
    let decoded = image::load_from_memory(data);
    decoded
        .map(image::DynamicImage::into_rgb8)
        .map_err(|error| Failure::failed(format!("cannot decode {what}: {error}")))
}

/// `size` scaled down to fit into `most`, if it is larger.
fn fitted(size: (u32, u32), most: (u32, u32)) -> (u32, u32) {
    if size.0 <= most.0 && size.1 <= most.1 { size } else { fitted_up(size, most) }
}

/// `size` scaled to fit into `most`; a size that is short of it by the one pixel of an even number is left alone.
fn fitted_up(size: (u32, u32), most: (u32, u32)) -> (u32, u32) {
    if most.0 - size.0.min(most.0) <= 1 && most.1 - size.1.min(most.1) <= 1 && size.0 <= most.0 && size.1 <= most.1 {
        return size;
    }
    let factor = (f64::from(most.0) / f64::from(size.0)).min(f64::from(most.1) / f64::from(size.1));
    let scaled = |side: u32, most: u32| ((f64::from(side) * factor).round() as u32).clamp(1, most);
    (scaled(size.0, most.0), scaled(size.1, most.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: u32, height: u32, shade: u8) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb([shade; 3]))
    }

    #[test]
    fn frame_and_explanation_are_side_by_side_without_scaling() {
        let frame = plain(5, 3, 10);
        let mut canvas = Canvas::for_frames_like(&frame);
        assert_eq!((canvas.width(), canvas.height()), (12, 4));
        canvas.draw(&frame, &plain(5, 3, 200));
        let row: Vec<u8> = canvas.bytes()[..36].iter().step_by(3).copied().collect();
        assert_eq!(row, [10, 10, 10, 10, 10, 0, 200, 200, 200, 200, 200, 0]);
    }

    #[test]
    fn a_picture_of_another_shape_is_scaled_and_leaves_nothing_of_the_one_before() {
        let frame = plain(8, 4, 10);
        let mut canvas = Canvas::for_frames_like(&frame);
        canvas.draw(&frame, &plain(8, 4, 90));
        canvas.draw(&frame, &plain(224, 224, 200));
        let row: Vec<u8> = canvas.bytes()[..48].iter().step_by(3).copied().collect();
        assert_eq!(row[8..], [0, 0, 200, 200, 200, 200, 0, 0]);
    }

    #[test]
    fn large_frames_become_smaller_and_keep_their_shape() {
        let canvas = Canvas::for_frames_like(&plain(3840, 2160, 0));
        assert_eq!((canvas.width(), canvas.height()), (3840, 1080));
        assert_eq!(fitted((1000, 4000), (1920, 1080)), (270, 1080));
    }

    #[test]
    fn pixels_that_do_not_fit_their_size_are_an_error() {
        let data = vec![0; 5].into();
        assert!(pixels(&Payload::Rgb { width: 2, height: 1, data }).is_err());
        assert!(pixels(&Payload::Encoded(b"no picture".to_vec().into())).is_err());
    }
}
