//! PNG files: their chunks, and their samples. https://www.w3.org/TR/png-3/

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};

use image::ColorType;
use png::{BitDepth, DecodeOptions, Decoder, DecodingError, Transformations};

use super::Limits;

const SIGNATURE: usize = 8;

/// The chunk that ends a file.
const END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// A decoded file. `samples` are row-major, 16-bit ones in native order.
pub(super) struct Picture {
    pub(super) size: (u32, u32),
    pub(super) color: ColorType,
    pub(super) samples: Vec<u8>,
    pub(super) exif: Option<Vec<u8>>,
}

/// Decodes a file. Fewer than 8 bits are scaled up to 8, palettes are looked up. Every checksum must be right, the one
/// of the compressed stream too. The chunk that ends a file may be missing.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn decode(data: &[u8], limits: &Limits) -> Result<Picture, String> {
    let whole = with_end(data);
    let mut options = DecodeOptions::default();
    options.set_ignore_checksums(false);
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = Decoder::new_with_options(Cursor::new(&*whole), options);
    decoder.set_limits(png::Limits { bytes: usize::try_from(limits.decoder_bytes()).unwrap_or(usize::MAX) });
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(sentence)?;
    let color = color(reader.output_color_type())?;
    let bytes = reader.output_buffer_size().ok_or("its size is too large")?;
    let mut samples = vec![0; bytes];
    reader.next_frame(&mut samples).map_err(sentence)?;
    if color.bytes_per_pixel() > color.channel_count() {
        for sample in samples.as_chunks_mut::<2>().0 {
            *sample = u16::from_be_bytes(*sample).to_ne_bytes();
        }
    }
    let info = reader.info();
    Ok(Picture { size: info.size(), color, samples, exif: info.exif_metadata.as_ref().map(|block| block.to_vec()) })
}

fn color((color, depth): (png::ColorType, BitDepth)) -> Result<ColorType, String> {
    match (color, depth) {
        (png::ColorType::Grayscale, BitDepth::Eight) => Ok(ColorType::L8),
        (png::ColorType::Grayscale, BitDepth::Sixteen) => Ok(ColorType::L16),
        (png::ColorType::GrayscaleAlpha, BitDepth::Eight) => Ok(ColorType::La8),
        (png::ColorType::GrayscaleAlpha, BitDepth::Sixteen) => Ok(ColorType::La16),
        (png::ColorType::Rgb, BitDepth::Eight) => Ok(ColorType::Rgb8),
        (png::ColorType::Rgb, BitDepth::Sixteen) => Ok(ColorType::Rgb16),
        (png::ColorType::Rgba, BitDepth::Eight) => Ok(ColorType::Rgba8),
        (png::ColorType::Rgba, BitDepth::Sixteen) => Ok(ColorType::Rgba16),
        (color, depth) => Err(format!("its pixels are {color:?} of {} bits", depth as u8)),
    }
}

fn sentence(error: DecodingError) -> String {
    match error {
        DecodingError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            "it ends before the data of its pixels does".to_owned()
        }
        DecodingError::LimitsExceeded => "its chunks take more memory than a picture of the largest size".to_owned(),
        DecodingError::Format(error) => error.to_string().trim_end_matches('.').to_owned(),
        error => error.to_string(),
    }
}

/// Width and height from the header. The decoder would read up to the first pixels.
pub(super) fn size(data: &[u8]) -> Option<(u32, u32)> {
    match (data.get(12..16), data.get(16..24)) {
        (Some(b"IHDR"), Some(&[a, b, c, d, e, f, g, h])) => {
            Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
        }
        _ => None,
    }
}

/// Bits of the samples of a file that is neither of fewer bits nor of a palette: these are scaled up, or were.
pub(super) fn depth(data: &[u8]) -> Option<u32> {
    match data.get(24..26)? {
        &[depth @ (8 | 16), 0 | 2 | 4 | 6] => Some(depth.into()),
        _ => None,
    }
}

/// The most significant bits that the sBIT chunk names for a colour channel. `None`: there is no such chunk.
pub(super) fn significant_bits(data: &[u8]) -> Option<u32> {
    let before_pixels = Chunks::of(data).take_while(|chunk| chunk.kind != *b"IDAT");
    let sbit = { before_pixels }.find(|chunk| chunk.kind == *b"sBIT")?.content;
    // One number for grey, three for colours; then one for alpha.
    sbit.iter().take(if sbit.len() < 3 { 1 } else { 3 }).copied().max().map(u32::from)
}

/// The file with the chunk that ends it, if that alone is missing.
fn with_end(data: &[u8]) -> Cow<'_, [u8]> {
    let mut chunks = Chunks::of(data);
    let mut has_pixels = false;
    for chunk in &mut chunks {
        if chunk.kind == *b"IEND" {
            return Cow::Borrowed(data);
        }
        has_pixels |= chunk.kind == *b"IDAT";
    }
    let rest = chunks.rest;
    let is_whole = rest.is_empty() || (rest.len() < END.len() && END.starts_with(rest));
    if has_pixels && is_whole {
        return Cow::Owned([&data[..data.len() - rest.len()], &END].concat());
    }
    Cow::Borrowed(data)
}

/// The whole chunks of a file. `rest` is what follows them.
struct Chunks<'a> {
    rest: &'a [u8],
}

struct Chunk<'a> {
    kind: [u8; 4],
    content: &'a [u8],
}

impl<'a> Chunks<'a> {
    fn of(data: &'a [u8]) -> Self {
        Chunks { rest: data.get(SIGNATURE..).unwrap_or_default() }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    /// A length, a kind, as many bytes, and a checksum.
    fn next(&mut self) -> Option<Chunk<'a>> {
        let (length, after) = self.rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (content, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        let (_checksum, rest) = after.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(Chunk { kind: *kind, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8], content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[..], kind, content, &[0; 4]].concat()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        [&b"\x89PNG\r\n\x1a\n"[..], &chunks.concat()].concat()
    }

    #[test]
    fn the_chunk_of_significant_bits_is_found_before_the_pixels_only() {
        let (text, pixels) = (chunk(b"tEXt", b"sBIT"), chunk(b"IDAT", b""));
        let sbit = |bits: &[u8]| chunk(b"sBIT", bits);
        assert_eq!(significant_bits(&file(&[text.clone(), sbit(&[12]), pixels.clone()])), Some(12));
        assert_eq!(significant_bits(&file(&[sbit(&[5, 6, 5, 8])])), Some(6));
        assert_eq!(significant_bits(&file(&[sbit(&[5, 8])])), Some(5));
        assert_eq!(significant_bits(&file(&[text, pixels, sbit(&[12])])), None);
        assert_eq!(significant_bits(&file(&[vec![0xFF; 12]])), None);
    }

    #[test]
    fn an_end_is_added_after_whole_chunks_with_pixels_only() {
        let (header, pixels) = (chunk(b"IHDR", &[0; 13]), chunk(b"IDAT", &[1, 2]));
        let whole = file(&[header.clone(), pixels.clone(), END.to_vec()]);
        assert_eq!(with_end(&whole), whole);
        let cut = whole.len() - END.len();
        for left in 0..END.len() {
            assert_eq!(with_end(&whole[..cut + left]), whole, "{left} bytes of the last chunk are there");
        }
        assert_eq!(*with_end(&whole[..cut - 1]), whole[..cut - 1], "a chunk of pixels is cut");
        let without_pixels = file(&[header]);
        assert_eq!(with_end(&without_pixels), without_pixels);
    }

    #[test]
    fn a_stream_whose_checksum_is_wrong_is_refused_though_its_chunk_is_right() {
        let mut encoded = Vec::new();
        let mut encoder = png::Encoder::new(&mut encoded, 5, 4);
        encoder.set_color(png::ColorType::Grayscale);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&(0..20).collect::<Vec<u8>>()).unwrap();
        writer.finish().unwrap();
        assert_eq!(decode(&encoded, &Limits::default()).unwrap().samples, (0..20).collect::<Vec<u8>>());
        // The last byte of the stream's own checksum, and the chunk's checksum made anew.
        let pixels = Chunks::of(&encoded).find(|chunk| chunk.kind == *b"IDAT").unwrap().content;
        let end = pixels.as_ptr_range().end as usize - encoded.as_ptr() as usize;
        let begin = end - pixels.len() - 4;
        encoded[end - 1] ^= 1;
        let checksum = crc(&encoded[begin..end]);
        encoded[end..end + 4].copy_from_slice(&checksum.to_be_bytes());
        let error = decode(&encoded, &Limits::default()).map(|picture| picture.samples).unwrap_err();
        assert!(error.contains("Corrupt deflate stream"), "{error}");
    }

    #[test]
    fn a_file_that_ends_early_says_so() {
        let mut encoded = Vec::new();
        let mut encoder = png::Encoder::new(&mut encoded, 64, 64);
        encoder.set_color(png::ColorType::Rgb);
        let noise: Vec<u8> = (0..64 * 64 * 3u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        encoder.write_header().unwrap().write_image_data(&noise).unwrap();
        let error = decode(&encoded[..encoded.len() / 2], &Limits::default()).map(|picture| picture.size).unwrap_err();
        assert_eq!(error, "it ends before the data of its pixels does");
    }

    /// CRC-32 of https://www.w3.org/TR/png-3/#D-CRCAppendix, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    }
}
