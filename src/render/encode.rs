//! Picture files.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::RenderError;
use crate::frame::{Channels, Pixels};

/// The default JPEG quality.
pub const DEFAULT_QUALITY: u32 = 90;

/// The file formats of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PictureFormat {
    Png,
    /// `quality` is 1 to 100.
    Jpeg {
        quality: u32,
    },
}

/// Encodes a picture. The file has no orientation: the pixels are upright.
///
/// # Errors
/// [`RenderError::TooLargeForJpeg`] when a side of a JPEG exceeds 65,535 pixels, [`RenderError::Quality`] when the
/// quality is not 1 to 100, [`RenderError::Encoder`] when the encoder fails.
pub fn encode(picture: &Pixels, format: PictureFormat) -> Result<Vec<u8>, RenderError> {
    match format {
        PictureFormat::Png => png(picture),
        PictureFormat::Jpeg { quality } => {
            let level = u8::try_from(quality).ok().filter(|level| (1..=100).contains(level));
            jpeg(picture, level.ok_or(RenderError::Quality { quality })?)
        }
    }
}

fn png(picture: &Pixels) -> Result<Vec<u8>, RenderError> {
    let color = match picture.channels() {
        Channels::Gray => ExtendedColorType::L8,
        Channels::Rgb => ExtendedColorType::Rgb8,
    };
    let mut file = Vec::new();
    let written = PngEncoder::new(&mut file).write_image(picture.data(), picture.width(), picture.height(), color);
    written.map_err(|error| RenderError::Encoder { reason: error.to_string() })?;
    Ok(file)
}

/// Encodes a picture as a JPEG whose colours have the resolution of its brightness: edges of a colour map stay sharp.
/// `quality` is 1 to 100.
///
/// # Errors
/// [`RenderError::TooLargeForJpeg`] and [`RenderError::Encoder`].
fn jpeg(picture: &Pixels, quality: u8) -> Result<Vec<u8>, RenderError> {
    let (width, height) = (picture.width(), picture.height());
    let too_large = |_| RenderError::TooLargeForJpeg { width, height };
    let sides = (u16::try_from(width).map_err(too_large)?, u16::try_from(height).map_err(too_large)?);
    let color = match picture.channels() {
        Channels::Gray => ColorType::Luma,
        Channels::Rgb => ColorType::Rgb,
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, quality);
    encoder.set_sampling_factor(SamplingFactor::F_1_1);
    let written = encoder.encode(picture.data(), sides.0, sides.1, color);
    written.map_err(|error| RenderError::Encoder { reason: error.to_string() })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Decoded, Limits, Payload, decode};

    fn picture(channels: Channels) -> Pixels {
        let data = (0..30 * 20 * channels.count()).map(|at| (at / 7) as u8).collect();
        Pixels::upright(30, 20, channels, data)
    }

    fn read(file: Vec<u8>) -> Pixels {
        match decode(&Payload::encoded(file), &Limits::default(), None) {
            Ok(Decoded::Picture(pixels)) => pixels,
            other => panic!("no picture: {other:?}"),
        }
    }

    #[test]
    fn a_png_gives_the_picture_back_and_a_jpeg_nearly() {
        for channels in [Channels::Gray, Channels::Rgb] {
            let picture = picture(channels);
            assert_eq!(read(encode(&picture, PictureFormat::Png).unwrap()), picture);
            let jpeg = read(encode(&picture, PictureFormat::Jpeg { quality: DEFAULT_QUALITY }).unwrap());
            let off: u32 = jpeg.data().iter().zip(picture.data()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            assert!(off < 6 * picture.data().len() as u32, "{channels:?}: off by {off}");
        }
    }

    #[test]
    fn lower_quality_is_smaller_and_what_is_no_quality_is_refused() {
        let size = |quality| encode(&picture(Channels::Rgb), PictureFormat::Jpeg { quality }).map(|file| file.len());
        assert!(size(1).unwrap() < size(100).unwrap());
        for quality in [0, 101, 256 + 90] {
            assert_eq!(size(quality), Err(RenderError::Quality { quality }));
        }
    }

    #[test]
    fn a_picture_too_large_for_jpeg_is_refused() {
        let line = Pixels::upright(65_536, 1, Channels::Gray, vec![0; 65_536]);
        let error = encode(&line, PictureFormat::Jpeg { quality: 90 }).unwrap_err();
        assert_eq!(error.field(), Some("options.pictures.format"));
        assert!(encode(&line, PictureFormat::Png).is_ok());
    }
}
