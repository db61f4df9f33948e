//! The payloads to send, synthetic or read from image files, prepared before the clock starts.

use bytes::Bytes;
use clap::ValueEnum;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage};

use crate::cli::failure::Failure;
use crate::cli::source::{self, Source};
use crate::client::OutgoingFrame;
use crate::proto::v1;
use crate::proto::v1::frame::Payload;

/// Number of synthetic images, sent in rotation.
const SYNTHETIC_IMAGES: u64 = 8;
/// Most images of a source to keep in memory and send in rotation.
const MAX_IMAGES: usize = 64;
/// JPEG quality, typical of cameras.
const JPEG_QUALITY: u8 = 90;

/// Form of the image in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PayloadKind {
    /// RGB8 pixels
    Raw,
    /// The model's input as float32: the server neither decodes nor preprocesses it
    Tensor,
    /// An image file: the source's own files, or JPEG
    Encoded,
}

/// Width and height, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

/// Default size of synthetic frames: VGA.
pub const DEFAULT_SIZE: Size = Size { width: 640, height: 480 };

impl std::str::FromStr for Size {
    type Err = String;

    /// `640x480`.
    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        match sides {
            Some((width @ 1..=16384, height @ 1..=16384)) => Ok(Size { width, height }),
            _ => Err("expected WIDTHxHEIGHT, each from 1 to 16384".to_owned()),
        }
    }
}

/// Synthetic payloads, the same in every run. `channels` applies only to tensors.
pub fn synthetic(kind: PayloadKind, size: Size, channels: u32) -> Result<Vec<Payload>, Failure> {
    (0..SYNTHETIC_IMAGES)
        .map(|number| match kind {
            PayloadKind::Raw => Ok(raw(size, synthetic_image(size, number))),
            PayloadKind::Encoded => jpeg(size, &synthetic_image(size, number)),
            PayloadKind::Tensor => Ok(tensor(size, channels, &synthetic_image(size, number))),
        })
        .collect()
}

/// Payloads of an image file, a folder of images or a clip: pixels or encoded files.
pub fn of_source(kind: PayloadKind, text: &str) -> Result<Vec<Payload>, Failure> {
    let mut frames = Vec::new();
    let mut first_failure = None;
    Source::open(text)?.read(&mut |frame| {
        match payload(kind, frame) {
            Ok(payload) => frames.push(payload),
            Err(failure) => first_failure = Some(failure),
        }
        first_failure.is_none() && frames.len() < MAX_IMAGES
    })?;
    match first_failure {
        Some(failure) => Err(failure),
        None if frames.is_empty() => Err(Failure::failed(format!("{text} contains no frame"))),
        None => Ok(frames),
    }
}

/// Image bytes of a payload, without the framing of the message.
pub fn length(payload: &Payload) -> u64 {
    let data = match payload {
        Payload::Encoded(image) => &image.data,
        Payload::Raw(image) => &image.data,
        Payload::Tensor(tensor) => &tensor.data,
        Payload::SharedMemory(_) => return 0,
    };
    data.len() as u64
}

fn payload(kind: PayloadKind, frame: OutgoingFrame) -> Result<Payload, Failure> {
    let frame = if kind == PayloadKind::Raw { source::into_pixels(frame)? } else { frame };
    match (kind, frame.payload) {
        (PayloadKind::Tensor, _) => {
            Err(Failure::usage("--payload tensor sends synthetic frames and cannot be used with --source"))
        }
        (_, crate::client::Payload::Encoded(data)) => {
            Ok(Payload::Encoded(v1::EncodedImage { data, ..Default::default() }))
        }
        (PayloadKind::Encoded, crate::client::Payload::Rgb { width, height, data }) => {
            encode(Size { width, height }, &data)
        }
        (PayloadKind::Raw, crate::client::Payload::Rgb { width, height, data }) => {
            Ok(Payload::Raw(raw_message(Size { width, height }, data)))
        }
    }
}

fn raw(size: Size, image: RgbImage) -> Payload {
    Payload::Raw(raw_message(size, image.into_raw().into()))
}

fn raw_message(size: Size, data: Bytes) -> v1::RawImage {
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    v1::RawImage { data, width: size.width, height: size.height, pixel_format, ..Default::default() }
}

fn jpeg(size: Size, image: &RgbImage) -> Result<Payload, Failure> {
    encode(size, image.as_raw())
}

fn encode(size: Size, pixels: &[u8]) -> Result<Payload, Failure> {
    let mut data = Vec::new();
    JpegEncoder::new_with_quality(&mut data, JPEG_QUALITY)
        .encode(pixels, size.width, size.height, ExtendedColorType::Rgb8)
        .map_err(|error| Failure::failed(format!("cannot encode a JPEG: {error}")))?;
    Ok(Payload::Encoded(v1::EncodedImage { data: data.into(), ..Default::default() }))
}

/// `[channels, height, width]`, with values from -1 to 1, the range of normalised pixels.
fn tensor(size: Size, channels: u32, image: &RgbImage) -> Payload {
    let colours = (0..channels as usize).flat_map(|channel| image.pixels().map(move |pixel| pixel.0[channel % 3]));
    let data: Vec<u8> = colours.flat_map(|byte| (f32::from(byte) / 127.5 - 1.0).to_le_bytes()).collect();
    Payload::Tensor(v1::Tensor {
        element_type: v1::ElementType::Float32 as i32,
        shape: vec![channels, size.height, size.width],
        data: data.into(),
        ..Default::default()
    })
}

/// A synthetic image, different for each number: gradients, a disc at another position, and noise like a camera's.
fn synthetic_image(Size { width, height }: Size, number: u64) -> RgbImage {
    let (w, h) = (f64::from(width), f64::from(height));
    let angle = number as f64 / SYNTHETIC_IMAGES as f64 * std::f64::consts::TAU;
    let (disc_x, disc_y) = (w * (0.5 + 0.3 * angle.cos()), h * (0.5 + 0.3 * angle.sin()));
    let radius = 0.15 * w.min(h);
    let mut noise = 0x9e37_79b9_u32.wrapping_mul(number as u32 + 1) | 1;
    RgbImage::from_fn(width, height, |x, y| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        let (across, down) = (f64::from(x) / w, f64::from(y) / h);
        let (from_x, from_y) = (f64::from(x) - disc_x, f64::from(y) - disc_y);
        let inside = from_x * from_x + from_y * from_y < radius * radius;
        let shades = if inside { [230.0, 80.0, 40.0] } else { [200.0 * across, 200.0 * down, 90.0] };
        let grain = f64::from(noise >> 24) / 16.0;
        image::Rgb(shades.map(|shade| (shade + grain) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synthetic_frames_have_the_requested_size_and_differ() {
        let size = Size { width: 20, height: 10 };
        let frames = synthetic(PayloadKind::Raw, size, 3).expect("pixels");
        assert_eq!(frames.len() as u64, SYNTHETIC_IMAGES);
        assert!(frames.iter().all(|frame| length(frame) == 600));
        assert_ne!(frames[0], frames[1]);
        assert_eq!(frames, synthetic(PayloadKind::Raw, size, 3).expect("pixels"), "the same in every run");
        let tensors = synthetic(PayloadKind::Tensor, size, 1).expect("numbers");
        let Payload::Tensor(tensor) = &tensors[0] else { panic!("a tensor") };
        assert_eq!((tensor.shape.as_slice(), tensor.data.len()), (&[1, 10, 20][..], 800));
    }

    #[test]
    fn an_encoded_synthetic_frame_is_a_decodable_jpeg() {
        let size = Size { width: 33, height: 21 };
        let frames = synthetic(PayloadKind::Encoded, size, 3).expect("files");
        let Payload::Encoded(file) = &frames[0] else { panic!("a file") };
        let decoded = image::load_from_memory(&file.data).expect("a valid JPEG");
        assert_eq!((decoded.width(), decoded.height()), (33, 21));
    }

    #[test]
    fn images_of_a_source_are_sent_as_files_or_as_pixels() {
        let photograph = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo-assets/photographs/coffee.png");
        let file = std::fs::read(photograph).expect("it is bundled");
        let encoded = of_source(PayloadKind::Encoded, photograph).expect("an image");
        assert_eq!(length(&encoded[0]), file.len() as u64);
        let raw = of_source(PayloadKind::Raw, photograph).expect("an image");
        let Payload::Raw(raw) = &raw[0] else { panic!("pixels") };
        assert_eq!(raw.data.len() as u32, raw.width * raw.height * 3);
        assert!(of_source(PayloadKind::Tensor, photograph).is_err());
    }

    #[test]
    fn sizes_are_parsed_or_refused() {
        assert_eq!("640x480".parse(), Ok(DEFAULT_SIZE));
        for text in ["640", "0x4", "640x", "20000x1", "axb"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
