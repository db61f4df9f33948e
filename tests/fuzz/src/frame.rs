//! Target for a frame's payload: header check, decoding, preprocessing.

use bytes::Bytes;
use camlens::frame::{
    Decoded, Flaw, FrameError, ImageFormat, InputSize, Limits, Payload, PixelFormat, Preparation, decode,
};
use camlens::model::description::{ColorOrder, Interpolation, Preprocessing, Resize};

/// Small, so that many pictures exceed it.
const LIMITS: Limits = Limits { max_pixels: 1 << 18, max_encoded_bytes: 1 << 20 };

/// Length of the header before the payload.
pub const HEADER_BYTES: usize = 12;

/// The bit of `variety` that lets a damaged picture file be read.
pub const ALLOW_DAMAGED: u8 = 0x40;

/// The header's first byte: the kind of the payload.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A picture file without a declared format.
    Encoded = 0,
    Declared = 1,
    Raw = 2,
    Tensor = 3,
}

/// `[kind, variety, width, height, stride, steps]`, then the payload. Sizes are 16-bit, little-endian; so is `stride`.
pub fn run(data: &[u8]) {
    let Some((header, data)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    let [kind, variety, w0, w1, h0, h1, s0, s1, size, crop, colors, numbers] = *header;
    let [width, height, stride] = [[w0, w1], [h0, h1], [s0, s1]].map(|two| u32::from(u16::from_le_bytes(two)));
    let data = Bytes::copy_from_slice(data);
    let payload = match kind % 4 {
        0 => Payload::Encoded { data, format: None, allow_damaged: variety & ALLOW_DAMAGED != 0 },
        1 => {
            let format = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP][usize::from(variety % 3)];
            Payload::Encoded { data, format: Some(format), allow_damaged: variety & ALLOW_DAMAGED != 0 }
        }
        2 => {
            let pixel_format = [PixelFormat::Rgb8, PixelFormat::Bgr8, PixelFormat::Gray8][usize::from(variety % 3)];
            // Sizes that a client may declare and no picture has.
            let width = if variety & 0x80 == 0 { width } else { width << 16 };
            Payload::Raw { data, width, height, pixel_format, stride_bytes: Some(stride).filter(|stride| *stride != 0) }
        }
        _ => {
            let channels = u32::from(variety % 5);
            let shape = match variety / 64 {
                0 => vec![channels, height, width],
                1 => vec![1, channels, height, width],
                2 => vec![u32::MAX, height << 16, width << 16],
                _ => vec![height, width],
            };
            Payload::Tensor { data, shape }
        }
    };
    let (steps, input) = steps(size, crop, colors, numbers);
    let preparation = Preparation::new(&steps, input, &LIMITS).expect("descriptions of this file are sound");
    let header = preparation.check_header(&payload, &LIMITS);
    match explainable(&preparation, &payload) {
        Ok(decoded) => {
            allowing_damage_changes_nothing(&payload);
            let announced = header.expect("what can be prepared passes the header check");
            assert!(decoded <= announced, "{decoded} bytes were announced as {announced}");
        }
        Err(error) => assert!(!error.field().is_empty() && !error.to_string().is_empty()),
    }
}

/// What is read although damage is not allowed is sound, and is read alike when damage is allowed.
fn allowing_damage_changes_nothing(payload: &Payload) {
    if let Payload::Encoded { allow_damaged: false, .. } = payload {
        let strict = decode(payload, &LIMITS, None).expect("it was decoded before");
        assert!(strict.picture().is_some_and(|pixels| !matches!(pixels.flaw(), Some(Flaw::Damaged(_)))));
        assert_eq!(decode(&payload.clone().allowing_damage(), &LIMITS, None), Ok(strict));
    }
}

/// A description and an input size that fit together.
fn steps(size: u8, crop: u8, colors: u8, numbers: u8) -> (Preprocessing, InputSize) {
    let side = |bits: u8| 1 + u32::from(bits & 0x1f);
    let resize = match size >> 6 {
        0 => None,
        1 => Some(Resize::Shorter(side(size))),
        2 => Some(Resize::Exact([side(size), side(size >> 1)])),
        _ => Some(Resize::Shorter(16384)),
    };
    let crop = (crop & 0x80 != 0).then(|| [side(crop), side(crop >> 2)]);
    let channels = [3, 1, 3, 4][usize::from(colors >> 6)];
    let color = match channels {
        3 if colors & 1 != 0 => ColorOrder::Bgr,
        1 => ColorOrder::Gray,
        _ => ColorOrder::Rgb,
    };
    let interpolation =
        [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos]
            [usize::from((colors >> 1) & 3)];
    let (mean, std) = match numbers % 3 {
        0 => (vec![], vec![]),
        1 => (vec![0.5], vec![0.25]),
        _ => (vec![0.1; channels], vec![0.9; channels]),
    };
    // The prepared frame must have the input size of the model, if that is fixed.
    let made = crop.or(match resize {
        Some(Resize::Exact(made)) => Some(made),
        _ => None,
    });
    let fixed = made.filter(|_| numbers & 0x80 != 0);
    let input = InputSize::new(channels as u32, fixed.map(|[height, _]| height), fixed.map(|[_, width]| width));
    let sample_bits = (numbers & 0x40 != 0).then(|| 8 + u32::from(numbers & 7));
    (Preprocessing { resize, crop, sample_bits, interpolation, color, mean, std }, input)
}

fn explainable(preparation: &Preparation, payload: &Payload) -> Result<u64, FrameError> {
    let decoded = preparation.decode(payload, &LIMITS)?;
    if let Decoded::Picture(pixels) = &decoded {
        if let Some(Flaw::Damaged(damage)) = pixels.flaw() {
            assert!(damage.lost >= 0.0 && damage.coarse >= 0.0 && damage.lost + damage.coarse <= 1.0 + 1e-9);
            assert!(damage.uncertain || damage.lost + damage.coarse > 0.0);
        }
        let area = u64::from(pixels.width()) * u64::from(pixels.height());
        assert!((1..=LIMITS.max_pixels).contains(&area));
    }
    let mut out = vec![f32::NAN; 7];
    let prepared = preparation.prepare(&decoded, &mut out)?;
    let (input, area) = (preparation.input(), u64::from(prepared.height) * u64::from(prepared.width));
    assert_eq!(out.len() as u64, area * u64::from(input.channels));
    assert!(input.fixed_height().is_none_or(|height| height == prepared.height));
    assert!(input.fixed_width().is_none_or(|width| width == prepared.width));
    assert!(out.iter().all(|value| value.is_finite()));
    match &decoded {
        Decoded::Picture(_) => assert!((1..=LIMITS.max_pixels).contains(&area)),
        Decoded::Tensor(tensor) => assert_eq!(tensor.values(), out),
    }
    let places = [prepared.model_to_frame.upright, prepared.model_to_frame.stored];
    assert!(places.iter().flat_map(|place| place.matrix).all(f64::is_finite));
    Ok(match &decoded {
        Decoded::Picture(pixels) => pixels.data().len() as u64,
        Decoded::Tensor(tensor) => tensor.values().len() as u64 * 4,
    })
}
