//! From a payload to upright pixels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::webp::WebPDecoder;
use image::error::ImageError;
use image::{ColorType, ImageDecoder};

use super::jpeg::{Jpeg, JpegError, Samples};
use super::raw::{RawRows, decode_raw};
use super::{Channels, Flaw, FrameError, ImageFormat, InputTensor, Limits, Orientation, Payload, Pixels};
use super::{content, exif, png, significant_bits};

/// A decoded frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    Picture(Pixels),
    /// A model input that needs no preparation.
    Tensor(InputTensor),
}

impl Decoded {
    /// The picture; `None` for a tensor.
    pub fn picture(&self) -> Option<&Pixels> {
        match self {
            Decoded::Picture(pixels) => Some(pixels),
            Decoded::Tensor(_) => None,
        }
    }
}

/// Checks a payload without decoding it, and returns the bytes that the decoded frame will take. A payload that
/// [`decode`] accepts passes.
///
/// # Errors
/// An empty or too large payload, a file that is not a picture or not of the declared format, a JPEG that ends in its
/// header or is far too short, a wrong size in a picture's header or in the fields of a raw frame, a wrong shape of a
/// tensor.
pub(super) fn check_header(payload: &Payload, limits: &Limits) -> Result<u64, FrameError> {
    const CHANNELS: u64 = 3;
    match payload {
        Payload::Encoded { data, format, allow_damaged } => {
            let (_, size) = check_encoded(data, *format, limits)?.announced(data, *allow_damaged)?;
            // Where the header has no readable size, the decoder fails too.
            Ok(size.map_or(0, |(width, height)| u64::from(width) * u64::from(height) * CHANNELS))
        }
        Payload::Raw { data, width, height, pixel_format, stride_bytes } => {
            RawRows::check(data, *width, *height, *pixel_format, *stride_bytes, limits)?;
            Ok(u64::from(*width) * u64::from(*height) * CHANNELS)
        }
        Payload::Tensor { data, shape } => InputTensor::check_shape(data, shape).map(|_| data.len() as u64),
    }
}

/// Decodes a payload. Pixels are allocated after the header has passed `limits`. `sample_bits`: the bits that 16-bit
/// samples use where their file does not say.
///
/// Pictures become 8-bit grey or RGB, upright: the EXIF orientation is applied. As in Pillow's `convert("RGB")`, alpha
/// is dropped, palettes are looked up, and CMYK is converted without a colour profile. Of 16-bit samples the upper 8
/// bits are kept; samples that use the lower bits alone, as a PNG's sBIT chunk says, are scaled up first. Colour
/// profiles and gamma are not applied. Of a damaged JPEG what is left is read when the payload allows it; lost parts
/// are grey.
///
/// # Errors
/// [`FrameError`], which names the field.
pub fn decode(payload: &Payload, limits: &Limits, sample_bits: Option<u32>) -> Result<Decoded, FrameError> {
    match payload {
        Payload::Encoded { data, format, allow_damaged } => {
            decode_encoded(data, *format, *allow_damaged, limits, sample_bits).map(Decoded::Picture)
        }
        Payload::Raw { data, width, height, pixel_format, stride_bytes } => {
            decode_raw(data, *width, *height, *pixel_format, *stride_bytes, limits).map(Decoded::Picture)
        }
        Payload::Tensor { data, shape } => InputTensor::read(data, shape).map(Decoded::Tensor),
    }
}

const FIELD: &str = "frame.encoded.data";

fn decode_encoded(
    data: &[u8],
    declared: Option<ImageFormat>,
    allow_damaged: bool,
    limits: &Limits,
    sample_bits: Option<u32>,
) -> Result<Pixels, FrameError> {
    let file = check_encoded(data, declared, limits)?;
    // A panic of a decoder must not end the thread. The decoders' state is local to the call and is dropped by the
    // unwinding, so no half-made value survives.
    let format = file.format();
    catch_unwind(AssertUnwindSafe(|| match file {
        File::Jpeg(jpeg) => decode_jpeg(*jpeg, data, allow_damaged),
        File::Png(size) => decode_png(data, size, limits, sample_bits),
        File::WebP(size) => decode_webp(data, size, limits),
    }))
    .unwrap_or_else(|_| Err(FrameError::Malformed { format, reason: "its decoder gave up".to_owned() }))
}

/// A file whose header has been read. Sizes are `None` where a header has no readable one.
enum File<'a> {
    Jpeg(Box<Jpeg<'a>>),
    Png(Option<(u32, u32)>),
    WebP(Option<(u32, u32)>),
}

impl File<'_> {
    fn format(&self) -> ImageFormat {
        match self {
            File::Jpeg(_) => ImageFormat::Jpeg,
            File::Png(_) => ImageFormat::Png,
            File::WebP(_) => ImageFormat::WebP,
        }
    }

    fn size(&self) -> Option<(u32, u32)> {
        match self {
            File::Jpeg(jpeg) => Some(jpeg.size()),
            File::Png(size) | File::WebP(size) => *size,
        }
    }

    /// The format and the size.
    ///
    /// # Errors
    /// A file that is surely damaged, unless that is allowed.
    fn announced(&self, data: &[u8], allow_damaged: bool) -> Result<(ImageFormat, Option<(u32, u32)>), FrameError> {
        if let File::Jpeg(jpeg) = self
            && !allow_damaged
            && jpeg.is_too_short().map_err(|error| refused_jpeg(error, data))?
        {
            return Err(FrameError::TruncatedJpeg { bytes: data.len() as u64, in_header: false });
        }
        Ok((self.format(), self.size()))
    }
}

/// Checks the first bytes of a file, and reads its header.
fn check_encoded<'a>(data: &'a [u8], declared: Option<ImageFormat>, limits: &Limits) -> Result<File<'a>, FrameError> {
    if data.is_empty() {
        return Err(FrameError::Empty { field: FIELD });
    }
    let bytes = data.len() as u64;
    if bytes > limits.max_encoded_bytes {
        return Err(FrameError::TooManyBytes { field: FIELD, bytes, limit: limits.max_encoded_bytes });
    }
    let file = match agreed_format(data, declared)? {
        ImageFormat::Jpeg => File::Jpeg(Box::new(Jpeg::read(data).map_err(|error| refused_jpeg(error, data))?)),
        ImageFormat::Png => File::Png(png::size(data)),
        ImageFormat::WebP => File::WebP(webp_size(data)),
    };
    if let Some((width, height)) = file.size() {
        check_pixels(width, height, limits)?;
    }
    if let (File::Jpeg(_), Some((width, height))) = (&file, file.size())
        && (width == 0 || height == 0)
    {
        return Err(no_pixels(ImageFormat::Jpeg, width, height));
    }
    Ok(file)
}

/// Width and height from a WebP's first chunk: the canvas of an extended file, the picture of a simple one (RFC 9649).
fn webp_size(data: &[u8]) -> Option<(u32, u32)> {
    let chunk = data.get(20..30)?;
    match data.get(12..16)? {
        b"VP8X" => {
            let side = |at: usize| 1 + u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], 0]);
            Some((side(4), side(7)))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes([chunk[1], chunk[2], chunk[3], chunk[4]]);
            Some((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
        }
        b"VP8 " => {
            let side = |at: usize| u32::from(u16::from_le_bytes([chunk[at], chunk[at + 1]]) & 0x3FFF);
            Some((side(6), side(8)))
        }
        _ => None,
    }
}

/// The format of the first bytes, which must be the declared one.
fn agreed_format(data: &[u8], declared: Option<ImageFormat>) -> Result<ImageFormat, FrameError> {
    let found = ImageFormat::sniff(data);
    match (declared, found) {
        (Some(declared), Some(found)) if declared == found => Ok(found),
        (None, Some(found)) => Ok(found),
        (Some(declared), found) => {
            let found = found.map_or_else(|| content::name(data), |found| found.to_string());
            Err(FrameError::FormatContradicted { declared, found })
        }
        (None, None) => Err(FrameError::UnknownFormat { found: content::name(data) }),
    }
}

fn decode_jpeg(jpeg: Jpeg<'_>, data: &[u8], allow_damaged: bool) -> Result<Pixels, FrameError> {
    let ((width, height), orientation) = (jpeg.size(), jpeg.exif().map_or(Orientation::Upright, exif::orientation));
    let channels = if jpeg.is_gray() { Channels::Gray } else { Channels::Rgb };
    let Samples { samples, damage } = jpeg.decode().map_err(|error| refused_jpeg(error, data))?;
    match damage {
        Some(damage) if !allow_damaged => Err(FrameError::Damaged { damage }),
        _ => {
            let pixels = Pixels::from_stored(width, height, channels, samples, orientation);
            Ok(pixels.with_flaw(damage.map(Flaw::Damaged)))
        }
    }
}

fn refused_jpeg(error: JpegError, data: &[u8]) -> FrameError {
    let format = ImageFormat::Jpeg;
    match error {
        JpegError::Truncated => FrameError::TruncatedJpeg { bytes: data.len() as u64, in_header: true },
        JpegError::Malformed(reason) => FrameError::Malformed { format, reason },
        error @ JpegError::Unsupported(_) => FrameError::UnsupportedVariant { format, reason: error.to_string() },
    }
}

fn no_pixels(format: ImageFormat, width: u32, height: u32) -> FrameError {
    FrameError::Malformed { format, reason: format!("its header says {width}×{height} pixels") }
}

fn decode_png(
    data: &[u8],
    announced: Option<(u32, u32)>,
    limits: &Limits,
    sample_bits: Option<u32>,
) -> Result<Pixels, FrameError> {
    let format = ImageFormat::Png;
    let malformed = |reason| FrameError::Malformed { format, reason };
    check_size(announced.ok_or_else(|| malformed("it does not begin with its header".to_owned()))?, format, limits)?;
    let picture = png::decode(data, limits).map_err(malformed)?;
    let scaling = png::depth(data).and_then(|depth| {
        let described = sample_bits.filter(|_| depth == 16);
        Some((depth, png::significant_bits(data).or(described)?))
    });
    pixels(picture.size, picture.color, picture.samples, picture.exif, scaling)
}

fn check_pixels(width: u32, height: u32, limits: &Limits) -> Result<(), FrameError> {
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(FrameError::TooManyPixels { field: FIELD, width, height, limit: limits.max_pixels });
    }
    Ok(())
}

fn check_size((width, height): (u32, u32), format: ImageFormat, limits: &Limits) -> Result<(), FrameError> {
    check_pixels(width, height, limits)?;
    if width == 0 || height == 0 { Err(no_pixels(format, width, height)) } else { Ok(()) }
}

fn decode_webp(data: &[u8], announced: Option<(u32, u32)>, limits: &Limits) -> Result<Pixels, FrameError> {
    let format = ImageFormat::WebP;
    let refused = |error: ImageError| match error {
        ImageError::Unsupported(error) => FrameError::UnsupportedVariant { format, reason: error.to_string() },
        error => FrameError::Malformed { format, reason: error.to_string() },
    };
    let mut decoder = WebPDecoder::new(Cursor::new(data)).map_err(refused)?;
    let (width, height) = decoder.dimensions();
    check_size((width, height), format, limits)?;
    if announced.is_some_and(|size| size != (width, height)) {
        let reason = format!("its first header says another size than {width}×{height} pixels");
        return Err(FrameError::Malformed { format, reason });
    }
    let mut bounds = image::Limits::no_limits();
    bounds.max_alloc = Some(limits.decoder_bytes());
    decoder.set_limits(bounds).map_err(refused)?;
    // Unreadable metadata does not make the pixels wrong.
    let exif = decoder.exif_metadata().ok().flatten();
    let color = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(refused)?;
    pixels((width, height), color, samples, exif, None)
}

/// Decoded samples without alpha, in 8 bits. `scaling`: bits of the samples, and how many of them are used.
fn pixels(
    (width, height): (u32, u32),
    color: ColorType,
    samples: Vec<u8>,
    exif: Option<Vec<u8>>,
    scaling: Option<(u32, u32)>,
) -> Result<Pixels, FrameError> {
    let orientation = exif.map_or(Orientation::Upright, |block| exif::orientation(&block));
    let is_wide = color.bytes_per_pixel() > color.channel_count();
    let flaw = (is_wide && scaling.is_none()).then(|| unused_bits(&samples, color)).flatten();
    let (channels, stored) = match color {
        ColorType::L8 => (Channels::Gray, samples),
        ColorType::La8 => (Channels::Gray, keep(&samples, 2, [0])),
        ColorType::Rgb8 => (Channels::Rgb, samples),
        ColorType::Rgba8 => (Channels::Rgb, keep(&samples, 4, [0, 1, 2])),
        ColorType::L16 => (Channels::Gray, keep_upper(&samples, 1, [0], scaling)),
        ColorType::La16 => (Channels::Gray, keep_upper(&samples, 2, [0], scaling)),
        ColorType::Rgb16 => (Channels::Rgb, keep_upper(&samples, 3, [0, 1, 2], scaling)),
        ColorType::Rgba16 => (Channels::Rgb, keep_upper(&samples, 4, [0, 1, 2], scaling)),
        other => {
            let format = ImageFormat::WebP;
            return Err(FrameError::UnsupportedVariant { format, reason: format!("pixels of {other:?}") });
        }
    };
    let stored = match scaling {
        Some((8, significant)) => {
            let mut wide: Vec<u16> = stored.iter().map(|&sample| sample.into()).collect();
            significant_bits::scale_up(&mut wide, 8, significant);
            wide.iter().map(|&sample| sample as u8).collect()
        }
        _ => stored,
    };
    Ok(Pixels::from_stored(width, height, channels, stored, orientation).with_flaw(flaw))
}

/// Whether native 16-bit samples use the bits alone that a camera of 12 bits or fewer has. Alpha does not count.
fn unused_bits(samples: &[u8], color: ColorType) -> Option<Flaw> {
    const CAMERA_BITS: u32 = 12;
    let channels = usize::from(color.channel_count());
    let colors = channels - usize::from(color.has_alpha());
    let pixels = samples.chunks_exact(2 * channels);
    let most = pixels
        .flat_map(|pixel| pixel[..2 * colors].as_chunks::<2>().0)
        .fold(0, |most, &sample| most | u16::from_ne_bytes(sample));
    let used = u16::BITS - most.leading_zeros();
    (1..=CAMERA_BITS).contains(&used).then_some(Flaw::UnusedBits { used })
}

/// Keeps the channels `kept` of native 16-bit samples, `channels` per pixel, and of those the upper bytes.
fn keep_upper<const N: usize>(
    samples: &[u8],
    channels: usize,
    kept: [usize; N],
    scaling: Option<(u32, u32)>,
) -> Vec<u8> {
    const UPPER: usize = if cfg!(target_endian = "little") { 1 } else { 0 };
    let Some((_, significant)) = scaling else {
        return keep(samples, 2 * channels, kept.map(|channel| 2 * channel + UPPER));
    };
    let pixels = samples.chunks_exact(2 * channels);
    let mut values: Vec<u16> = pixels
        .flat_map(|pixel| kept.map(|channel| u16::from_ne_bytes([pixel[2 * channel], pixel[2 * channel + 1]])))
        .collect();
    significant_bits::scale_up(&mut values, 16, significant);
    values.iter().map(|&value| (value >> 8) as u8).collect()
}

/// Keeps the bytes `kept` of each pixel of `pixel_bytes` bytes.
fn keep<const N: usize>(samples: &[u8], pixel_bytes: usize, kept: [usize; N]) -> Vec<u8> {
    samples.chunks_exact(pixel_bytes).flat_map(|pixel| kept.map(|at| pixel[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ErrorKind;
    use bytes::Bytes;
    use image::{DynamicImage, ImageBuffer, Luma, Rgb};
    use proptest::prelude::*;

    fn encoded(picture: &DynamicImage, format: image::ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    fn gradient() -> DynamicImage {
        DynamicImage::ImageRgb8(ImageBuffer::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, (x + y) as u8])))
    }

    fn read(data: Vec<u8>, format: Option<ImageFormat>) -> Result<Pixels, FrameError> {
        let payload = Payload::Encoded { data: Bytes::from(data), format, allow_damaged: false };
        match decode(&payload, &Limits::default(), None)? {
            Decoded::Picture(pixels) => Ok(pixels),
            Decoded::Tensor(_) => panic!("a picture file gave a tensor"),
        }
    }

    /// A PNG that ends after its header.
    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut data = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        data.extend(width.to_be_bytes());
        data.extend(height.to_be_bytes());
        data.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
        data
    }

    #[test]
    fn a_lossless_file_gives_its_pixels_back() {
        for format in [image::ImageFormat::Png, image::ImageFormat::WebP] {
            let pixels = read(encoded(&gradient(), format), None).unwrap();
            assert_eq!((pixels.width(), pixels.height(), pixels.channels()), (40, 30, Channels::Rgb));
            assert_eq!(pixels.data(), gradient().as_bytes());
        }
    }

    #[test]
    fn a_png_that_lacks_its_end_alone_is_read() {
        let whole = encoded(&gradient(), image::ImageFormat::Png);
        for missing in 1..=12 {
            let pixels = read(whole[..whole.len() - missing].to_vec(), None).unwrap();
            assert_eq!(pixels.data(), gradient().as_bytes(), "{missing} bytes are missing");
        }
        for missing in [13, 20, whole.len() / 2] {
            assert!(read(whole[..whole.len() - missing].to_vec(), None).is_err(), "{missing} bytes are missing");
        }
    }

    #[test]
    fn of_sixteen_bits_the_upper_eight_are_kept() {
        let gray: ImageBuffer<Luma<u16>, _> =
            ImageBuffer::from_fn(3, 1, |x, _| Luma([[0x00FF, 0x1234, 0xFFFF][x as usize]]));
        let pixels = read(encoded(&DynamicImage::ImageLuma16(gray), image::ImageFormat::Png), None).unwrap();
        assert_eq!((pixels.channels(), pixels.data()), (Channels::Gray, &[0x00, 0x12, 0xFF][..]));
    }

    #[test]
    fn samples_of_few_bits_are_scaled_up_as_the_description_says_or_there_is_a_flaw() {
        let gray: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_fn(3, 1, |x, _| Luma([[0, 2048, 4095][x as usize]]));
        let file = Payload::encoded(encoded(&DynamicImage::ImageLuma16(gray), image::ImageFormat::Png));
        let read = |bits| match decode(&file, &Limits::default(), bits).unwrap() {
            Decoded::Picture(pixels) => (pixels.data().to_vec(), pixels.flaw()),
            Decoded::Tensor(_) => panic!("a picture file gave a tensor"),
        };
        assert_eq!(read(None), (vec![0, 8, 15], Some(Flaw::UnusedBits { used: 12 })));
        assert_eq!(read(Some(12)), (vec![0, 128, 255], None));
    }

    #[test]
    fn a_declared_format_that_the_content_contradicts_is_refused_with_both() {
        let error = read(encoded(&gradient(), image::ImageFormat::Png), Some(ImageFormat::Jpeg)).unwrap_err();
        assert_eq!((error.field(), error.kind()), ("frame.encoded.format", ErrorKind::InvalidArgument));
        assert!(error.to_string().contains("says JPEG, but frame.encoded.data is PNG"), "{error}");
        assert!(read(encoded(&gradient(), image::ImageFormat::Png), Some(ImageFormat::Png)).is_ok());
    }

    #[test]
    fn content_that_is_not_read_is_named() {
        let error = read(b"GIF89a\x01\0\x01\0".to_vec(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "frame.encoded.data is a GIF picture: JPEG, PNG and WebP are read");
        let error = read(b"hello".to_vec(), None).unwrap_err();
        assert!(error.to_string().contains("begins with 68 65 6c 6c"), "{error}");
        assert_eq!(read(Vec::new(), None).unwrap_err(), FrameError::Empty { field: "frame.encoded.data" });
    }

    #[test]
    fn a_header_of_a_huge_picture_is_refused_with_its_size_and_the_limit() {
        let error = read(png_header(50_000, 50_000), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        assert_eq!(
            error.to_string(),
            "frame.encoded.data is 50000×50000, 2500000000 pixels: the limit is 64000000 pixels"
        );
    }

    #[test]
    fn errors_in_the_header_are_found_without_decoding_and_later_errors_are_not() {
        let check = |data: Vec<u8>, format| {
            check_header(&Payload::Encoded { data: data.into(), format, allow_damaged: false }, &Limits::default())
                .map_err(|e| e.to_string())
        };
        let png = encoded(&gradient(), image::ImageFormat::Png);
        assert_eq!(check(png.clone(), None), Ok(40 * 30 * 3));
        assert_eq!(check(png[..200].to_vec(), None), Ok(40 * 30 * 3), "only decoding can tell");
        let jpeg = encoded(&gradient(), image::ImageFormat::Jpeg);
        assert_eq!(check(jpeg[..jpeg.len() - 9].to_vec(), None), Ok(40 * 30 * 3), "only decoding can tell");
        let scan = jpeg.windows(2).position(|marker| marker == b"\xFF\xDA").expect("a scan");
        assert!(check(jpeg[..scan + 20].to_vec(), None).is_err_and(|error| error.contains("allow_damaged_frames")));
        assert!(
            check(jpeg[..30].to_vec(), None).is_err_and(|error| error.ends_with("before the data of its pixels does"))
        );
        assert!(check(png, Some(ImageFormat::Jpeg)).is_err_and(|error| error.contains("says JPEG")));
        assert!(check(png_header(50_000, 50_000), None).is_err_and(|error| error.contains("2500000000 pixels")));
        assert!(check(b"GIF89a".to_vec(), None).is_err_and(|error| error.contains("PNG and WebP are read")));
        assert!(check(Vec::new(), None).is_err_and(|error| error.contains("empty")));
        let tensor = Payload::Tensor { data: f32::NAN.to_le_bytes().to_vec().into(), shape: vec![1, 1, 1] };
        assert!(
            check_header(&tensor, &Limits::default()).is_ok() && decode(&tensor, &Limits::default(), None).is_err()
        );
    }

    #[test]
    fn a_header_tells_the_size_that_the_decoder_finds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing");
        let mut seen = std::collections::BTreeSet::new();
        let mut check = |name: String, data: Vec<u8>| {
            let Some(format) = ImageFormat::sniff(&data) else { return };
            let size = check_encoded(&data, None, &Limits::default()).expect("a sound file").size();
            let pixels = read(data, None).expect("a sound file");
            assert_eq!(size, Some(pixels.stored_size()), "{name}");
            seen.insert(format!("{format:?}"));
        };
        for format in [image::ImageFormat::Jpeg, image::ImageFormat::Png, image::ImageFormat::WebP] {
            check(format!("{format:?}"), encoded(&gradient(), format));
        }
        for file in std::fs::read_dir(folder).expect("the fixtures are there") {
            let path = file.expect("a file").path();
            check(path.display().to_string(), std::fs::read(&path).expect("it can be read"));
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn more_bytes_than_the_limit_are_refused() {
        let limits = Limits { max_encoded_bytes: 10, ..Limits::default() };
        let data = Bytes::from(encoded(&gradient(), image::ImageFormat::Png));
        let error = decode(&Payload::encoded(data), &limits, None).unwrap_err();
        assert_eq!((error.field(), error.kind()), ("frame.encoded.data", ErrorKind::ResourceExhausted));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        for format in [image::ImageFormat::Jpeg, image::ImageFormat::Png, image::ImageFormat::WebP] {
            let whole = encoded(&gradient(), format);
            assert!(read(whole.clone(), None).is_ok());
            // A PNG's pixels are complete before its last, empty chunk, and a JPEG's before its end marker.
            let least = match format {
                image::ImageFormat::Png => 13,
                image::ImageFormat::Jpeg => 3,
                _ => 1,
            };
            for length in 0..=whole.len() - least {
                let result = read(whole[..length].to_vec(), None);
                assert!(result.is_err(), "{length} of {} bytes of {format:?} were read", whole.len());
            }
        }
        let lossy = include_bytes!("../../tests/fixtures/preprocessing/lossy.webp");
        for length in (0..lossy.len()).step_by(7) {
            assert!(read(lossy[..length].to_vec(), None).is_err(), "{length} of {} bytes were read", lossy.len());
        }
    }

    #[test]
    fn a_damaged_jpeg_is_refused_with_the_share_that_was_lost_or_read_when_that_is_allowed() {
        let whole = encoded(&gradient(), image::ImageFormat::Jpeg);
        let cut = Payload::encoded(whole[..whole.len() - 100].to_vec());
        let error = decode(&cut, &Limits::default(), None).unwrap_err();
        assert_eq!((error.field(), error.kind()), ("frame.encoded.data", ErrorKind::InvalidArgument));
        let message = error.to_string();
        assert!(message.contains("is a damaged JPEG: it ends early, and ") && message.contains("% of the picture was"));
        assert!(message.contains("options.allow_damaged_frames"), "{message}");
        let decoded = decode(&cut.allowing_damage(), &Limits::default(), None).unwrap();
        let pixels = decoded.picture().expect("a picture");
        let Some(Flaw::Damaged(damage)) = pixels.flaw() else { panic!("it is said") };
        assert!(damage.cut && (0.0..0.9).contains(&damage.lost), "{damage:?}");
        let sound = Payload::encoded(whole).allowing_damage();
        assert_eq!(decode(&sound, &Limits::default(), None).unwrap().picture().expect("a picture").flaw(), None);
    }

    #[test]
    fn what_is_allowed_to_be_damaged_passes_the_header_check_if_it_can_be_decoded() {
        let whole = encoded(&gradient(), image::ImageFormat::Jpeg);
        let (mut refused, mut read) = (0, 0);
        for length in 0..whole.len() {
            for payload in [
                Payload::encoded(whole[..length].to_vec()),
                Payload::encoded(whole[..length].to_vec()).allowing_damage(),
            ] {
                match (check_header(&payload, &Limits::default()), decode(&payload, &Limits::default(), None)) {
                    (Err(_), Ok(_)) => panic!("{length} bytes are decoded, and refused by their header"),
                    (Err(_), Err(_)) => refused += 1,
                    (Ok(_), result) => read += usize::from(result.is_ok()),
                }
            }
        }
        assert!(refused > 600 && read > 100, "{refused} {read}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn arbitrary_bytes_never_panic(start in 0usize..4, rest in prop::collection::vec(any::<u8>(), 0..600)) {
            let magic: &[u8] = [&b""[..], b"\xFF\xD8\xFF", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8L"][start];
            let data = Bytes::from([magic, &rest].concat());
            let limits = Limits { max_pixels: 1 << 20, max_encoded_bytes: 1 << 20 };
            if let Ok(Decoded::Picture(pixels)) = decode(&Payload::encoded(data), &limits, None) {
                prop_assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= limits.max_pixels);
            }
        }

        #[test]
        fn a_damaged_file_never_panics(
            kind in 0usize..3,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let format = [image::ImageFormat::Jpeg, image::ImageFormat::Png, image::ImageFormat::WebP][kind];
            let mut data = encoded(&gradient(), format);
            for (at, byte) in damage {
                let at = at.index(data.len());
                data[at] = byte;
            }
            let limits = Limits { max_pixels: 1 << 20, max_encoded_bytes: 1 << 20 };
            let payload = Payload::encoded(data);
            if let Ok(Decoded::Picture(pixels)) = decode(&payload, &limits, None) {
                prop_assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= limits.max_pixels);
            }
        }
    }
}
