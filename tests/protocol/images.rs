//! Valid and invalid frames.

use std::path::Path;

use camlens::proto::v1;
use camlens::proto::v1::frame::Payload;

use super::server::SIDE;

/// Pixels that depend on the sequence number alone.
fn pixels(sequence: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|n| ((n * 37 + sequence * 101 + n * n / 7) % 256) as u8).collect()
}

pub fn with(sequence: u64, payload: Payload) -> v1::Frame {
    v1::Frame { sequence, payload: Some(payload), ..Default::default() }
}

/// A valid frame of raw pixels, 40 by 30.
pub fn frame(sequence: u64) -> v1::Frame {
    let data = pixels(sequence, 40 * 30 * 3).into();
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    with(sequence, Payload::Raw(v1::RawImage { data, width: 40, height: 30, pixel_format, ..Default::default() }))
}

/// A frame of raw noise, `side` by `side`: no file of it is small.
#[allow(dead_code, reason = "used by tests/protocol")]
pub fn noise(sequence: u64, side: u32) -> v1::Frame {
    let noise = |n: u32| (n.wrapping_mul(2_654_435_761).wrapping_add(sequence as u32 * 97) >> 24) as u8;
    let data: Vec<u8> = (0..side * side * 3).map(noise).collect();
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    let raw = v1::RawImage { data: data.into(), width: side, height: side, pixel_format, ..Default::default() };
    with(sequence, Payload::Raw(raw))
}

/// A model input whose every element is `value`.
pub fn tensor(sequence: u64, shape: [u32; 3], value: f32) -> v1::Frame {
    let count = shape.iter().product::<u32>() as usize;
    let data: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), count).flatten().collect();
    with(sequence, Payload::Tensor(v1::Tensor { shape: shape.to_vec(), data: data.into(), ..Default::default() }))
}

pub fn sound_tensor(sequence: u64) -> v1::Frame {
    tensor(sequence, [3, SIDE, SIDE], 0.5)
}

pub fn encoded(sequence: u64, data: Vec<u8>) -> v1::Frame {
    with(sequence, Payload::Encoded(v1::EncodedImage { data: data.into(), ..Default::default() }))
}

pub fn jpeg() -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing/444.jpg");
    std::fs::read(file).expect("the fixture is there")
}

/// [`jpeg`] without its second half.
pub fn damaged_jpeg() -> Vec<u8> {
    let whole = jpeg();
    whole[..whole.len() / 2].to_vec()
}

/// A PNG whose header declares 50,000 by 50,000 pixels, without any pixel data.
pub fn huge_png() -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let side = 50_000u32.to_be_bytes();
    let mut header = b"IHDR".to_vec();
    header.extend([side, side].concat());
    header.extend([8, 2, 0, 0, 0]);
    for chunk in [header, b"IDAT".to_vec(), b"IEND".to_vec()] {
        file.extend((chunk.len() as u32 - 4).to_be_bytes());
        file.extend(&chunk);
        file.extend(crc32(&chunk).to_be_bytes());
    }
    file
}

/// CRC-32, the checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
