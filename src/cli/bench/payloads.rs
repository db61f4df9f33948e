//! The frames that are sent: made up, or read from pictures, and ready before the clock runs.

use bytes::Bytes;
use clap::ValueEnum;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage};

use crate::cli::failure::Failure;
use crate::cli::source::{self, Source};
use crate::client::OutgoingFrame;
use crate::proto::v1;
use crate::proto::v1::frame::Payload;

/// Made-up pictures that are sent in turn.
const MADE_UP: u64 = 8;
/// Pictures of a source that are kept in memory and sent in turn.
const MAX_PICTURES: usize = 64;
/// Of JPEG, as cameras have it.
const QUALITY: u8 = 90;

/// How a frame carries its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PayloadKind {
    /// RGB8 pixels
    Raw,
    /// The model's input as float32, ready: neither decoded nor preprocessed
    Tensor,
    /// A picture file: a JPEG, or the source's own files
    Encoded,
}

/// Width and height, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

/// What VGA cameras deliver.
pub const USUAL_SIZE: Size = Size { width: 640, height: 480 };

impl std::str::FromStr for Size {
    type Err = String;

    /// `640x480`.
    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        match sides {
            Some((width @ 1..=16384, height @ 1..=16384)) => Ok(Size { width, height }),
            _ => Err("WIDTHxHEIGHT is allowed, each from 1 to 16384".to_owned()),
        }
    }
}

/// Made-up frames. `channels` matters to tensors alone.
pub fn made_up(kind: PayloadKind, size: Size, channels: u32) -> Result<Vec<Payload>, Failure> {
    (0..MADE_UP)
        .map(|number| match kind {
            PayloadKind::Raw => Ok(raw(size, picture(size, number))),
            PayloadKind::Encoded => jpeg(size, &picture(size, number)),
            PayloadKind::Tensor => Ok(tensor(size, channels, &picture(size, number))),
        })
        .collect()
}

/// The frames of a picture, a folder, a clip: as pixels or as files.
pub fn of_source(kind: PayloadKind, text: &str) -> Result<Vec<Payload>, Failure> {
    let mut frames = Vec::new();
    let mut trouble = None;
    Source::open(text)?.read(&mut |frame| {
        match payload(kind, frame) {
            Ok(payload) => frames.push(payload),
            Err(failure) => trouble = Some(failure),
        }
        trouble.is_none() && frames.len() < MAX_PICTURES
    })?;
    match trouble {
        Some(failure) => Err(failure),
        None if frames.is_empty() => Err(Failure::failed(format!("{text} gave no frame"))),
        None => Ok(frames),
    }
}

/// Bytes of a frame's image on the wire, without what is around it.
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
            Err(Failure::usage("--payload tensor makes its own frames: it goes without --source"))
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

fn raw(size: Size, picture: RgbImage) -> Payload {
    Payload::Raw(raw_message(size, picture.into_raw().into()))
}

fn raw_message(size: Size, data: Bytes) -> v1::RawImage {
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    v1::RawImage { data, width: size.width, height: size.height, pixel_format, ..Default::default() }
}

fn jpeg(size: Size, picture: &RgbImage) -> Result<Payload, Failure> {
    encode(size, picture.as_raw())
}

fn encode(size: Size, pixels: &[u8]) -> Result<Payload, Failure> {
    let mut data = Vec::new();
    JpegEncoder::new_with_quality(&mut data, QUALITY)
        .encode(pixels, size.width, size.height, ExtendedColorType::Rgb8)
        .map_err(|error| Failure::failed(format!("cannot make a JPEG: {error}")))?;
    Ok(Payload::Encoded(v1::EncodedImage { data: data.into(), ..Default::default() }))
}

/// `[channels, height, width]`, about as large as normalised pixels are: -1 to 1.
fn tensor(size: Size, channels: u32, picture: &RgbImage) -> Payload {
    let colours = (0..channels as usize).flat_map(|channel| picture.pixels().map(move |pixel| pixel.0[channel % 3]));
    let data: Vec<u8> = colours.flat_map(|byte| (f32::from(byte) / 127.5 - 1.0).to_le_bytes()).collect();
    Payload::Tensor(v1::Tensor {
        element_type: v1::ElementType::Float32 as i32,
        shape: vec![channels, size.height, size.width],
        data: data.into(),
        ..Default::default()
    })
}

/// Something like a picture, another one for each number: shades, a disc that moves, and a camera's noise.
fn picture(Size { width, height }: Size, number: u64) -> RgbImage {
    let (w, h) = (f64::from(width), f64::from(height));
    let turn = number as f64 / MADE_UP as f64 * std::f64::consts::TAU;
    let (disc_x, disc_y) = (w * (0.5 + 0.3 * turn.cos()), h * (0.5 + 0.3 * turn.sin()));
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
    fn made_up_frames_are_of_the_size_asked_for_and_differ() {
        let size = Size { width: 20, height: 10 };
        let frames = made_up(PayloadKind::Raw, size, 3).expect("pixels");
        assert_eq!(frames.len() as u64, MADE_UP);
        assert!(frames.iter().all(|frame| length(frame) == 600));
        assert_ne!(frames[0], frames[1]);
        assert_eq!(frames, made_up(PayloadKind::Raw, size, 3).expect("pixels"), "the same in every run");
        let tensors = made_up(PayloadKind::Tensor, size, 1).expect("numbers");
        let Payload::Tensor(tensor) = &tensors[0] else { panic!("a tensor") };
        assert_eq!((tensor.shape.as_slice(), tensor.data.len()), (&[1, 10, 20][..], 800));
    }

    #[test]
    fn a_made_up_jpeg_is_one() {
        let size = Size { width: 33, height: 21 };
        let frames = made_up(PayloadKind::Encoded, size, 3).expect("files");
        let Payload::Encoded(file) = &frames[0] else { panic!("a file") };
        let decoded = image::load_from_memory(&file.data).expect("a sound file");
        assert_eq!((decoded.width(), decoded.height()), (33, 21));
    }

    #[test]
    fn pictures_are_sent_as_files_or_decoded() {
        let photograph = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo-assets/photographs/coffee.png");
        let file = std::fs::read(photograph).expect("it is bundled");
        let encoded = of_source(PayloadKind::Encoded, photograph).expect("a picture");
        assert_eq!(length(&encoded[0]), file.len() as u64);
        let raw = of_source(PayloadKind::Raw, photograph).expect("a picture");
        let Payload::Raw(raw) = &raw[0] else { panic!("pixels") };
        assert_eq!(raw.data.len() as u32, raw.width * raw.height * 3);
        assert!(of_source(PayloadKind::Tensor, photograph).is_err());
    }

    #[test]
    fn sizes_are_read_and_refused() {
        assert_eq!("640x480".parse(), Ok(USUAL_SIZE));
        for text in ["640", "0x4", "640x", "20000x1", "axb"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
