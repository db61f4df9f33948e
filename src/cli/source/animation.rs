//! The frames of an animated WebP, decoded by the client.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use image::AnimationDecoder;
use image::codecs::webp::WebPDecoder;

use super::file_name;
use crate::cli::failure::Failure;
use crate::client::{OutgoingFrame, Payload};

/// Whether the file is a WebP with more than one frame.
pub fn is_animated(path: &Path) -> bool {
    let decoder = File::open(path).ok().and_then(|file| WebPDecoder::new(BufReader::new(file)).ok());
    decoder.is_some_and(|decoder| decoder.has_animation())
}

/// Passes each decoded frame to `take` until it returns `false`.
pub fn read(path: &Path, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Result<(), Failure> {
    let decoding = |error: image::ImageError| Failure::failed(format!("cannot decode {}: {error}", path.display()));
    let file = File::open(path).map_err(|error| Failure::from_io("open", path, &error))?;
    let decoder = WebPDecoder::new(BufReader::new(file)).map_err(decoding)?;
    let clip = file_name(path);
    let mut position = Duration::ZERO;
    for (index, frame) in decoder.into_frames().enumerate() {
        let frame = frame.map_err(decoding)?;
        let shown_for = Duration::from(frame.delay());
        let picture = image::DynamicImage::ImageRgba8(frame.into_buffer()).into_rgb8();
        let (width, height) = picture.dimensions();
        let payload = Payload::Rgb { width, height, data: Bytes::from(picture.into_raw()) };
        if !take(OutgoingFrame {
            position: Some(position),
            ..OutgoingFrame::new(format!("{clip}#{}", index + 1), payload)
        }) {
            break;
        }
        position += shown_for;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;

    /// A lossless WebP file of `width` × `height` pixels in one colour.
    fn still(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let picture = image::RgbImage::from_pixel(width, height, image::Rgb(colour));
        let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
        encoder
            .encode(picture.as_raw(), width, height, image::ExtendedColorType::Rgb8)
            .expect("writing to memory does not fail");
        bytes
    }

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut bytes = name.to_vec();
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(content);
        bytes.extend(vec![0; content.len() % 2]);
        bytes
    }

    fn animated(width: u32, height: u32, colours: &[[u8; 3]]) -> Vec<u8> {
        let u24 = |value: u32| value.to_le_bytes()[..3].to_vec();
        let extended = [vec![0b10, 0, 0, 0], u24(width - 1), u24(height - 1)].concat();
        let mut content = [b"WEBP".to_vec(), chunk(b"VP8X", &extended), chunk(b"ANIM", &[0; 6])].concat();
        for &colour in colours {
            let header = [u24(0), u24(0), u24(width - 1), u24(height - 1), u24(40), vec![0b10]].concat();
            content.extend(chunk(b"ANMF", &[header, still(width, height, colour)[12..].to_vec()].concat()));
        }
        chunk(b"RIFF", &content)
    }

    #[test]
    fn the_frames_of_an_animation_are_raw_pixels() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("clip.webp");
        std::fs::write(&path, animated(4, 2, &[[255, 0, 0], [0, 0, 255]])).expect("a small file");
        let source = Source::open(&path.to_string_lossy()).expect("an animated WebP");
        assert_eq!(source, Source::AnimatedWebp(path));
        let mut frames = Vec::new();
        source
            .read(&mut |frame| {
                frames.push(frame);
                true
            })
            .expect("two frames");
        let rgb = |colour: [u8; 3]| Payload::Rgb { width: 4, height: 2, data: Bytes::from(colour.repeat(8)) };
        let found = frames.into_iter().map(|frame| (frame.name, frame.payload, frame.position));
        assert_eq!(
            found.collect::<Vec<_>>(),
            [
                ("clip.webp#1".to_owned(), rgb([255, 0, 0]), Some(Duration::ZERO)),
                ("clip.webp#2".to_owned(), rgb([0, 0, 255]), Some(Duration::from_millis(40))),
            ]
        );
    }

    #[test]
    fn a_still_webp_is_a_picture() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("still.webp");
        std::fs::write(&path, still(4, 2, [1, 2, 3])).expect("a small file");
        assert_eq!(Source::open(&path.to_string_lossy()).expect("a picture"), Source::Pictures(vec![path]));
    }
}
