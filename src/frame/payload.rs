//! What a frame may arrive as.

use std::fmt;

use bytes::Bytes;

/// One frame's content, as its sender gave it.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A picture file.
    Encoded {
        data: Bytes,
        /// What the sender says it is. `None`: read from the data's first bytes.
        format: Option<ImageFormat>,
    },
    /// Rows of pixels, top to bottom, without a header.
    Raw {
        data: Bytes,
        width: u32,
        height: u32,
        pixel_format: PixelFormat,
        /// Bytes from one row's start to the next one's. `None`: rows follow each other without a gap.
        stride_bytes: Option<u32>,
    },
    /// A model input that is ready: f32, little-endian, row-major, `[C, H, W]` or `[1, C, H, W]`. Used untouched.
    Tensor { data: Bytes, shape: Vec<u32> },
}

impl Payload {
    /// The content, as it was sent.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Encoded { data, .. } | Payload::Raw { data, .. } | Payload::Tensor { data, .. } => data,
        }
    }
}

/// The picture files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    Jpeg,
    Png,
    /// An animation counts as its first picture.
    WebP,
}

impl ImageFormat {
    /// The format that the first bytes announce.
    pub fn sniff(data: &[u8]) -> Option<ImageFormat> {
        if data.starts_with(&[0xFF, 0xD8, 0xFF]) {
            Some(ImageFormat::Jpeg)
        } else if data.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(ImageFormat::Png)
        } else if data.len() >= 12 && data.starts_with(b"RIFF") && &data[8..12] == b"WEBP" {
            Some(ImageFormat::WebP)
        } else {
            None
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::Png => "PNG",
            ImageFormat::WebP => "WebP",
        })
    }
}

/// How the bytes of a raw frame's pixel follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Rgb8,
    Bgr8,
    Gray8,
}

impl PixelFormat {
    /// Bytes of one pixel.
    pub fn bytes_per_pixel(self) -> u32 {
        match self {
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => 3,
            PixelFormat::Gray8 => 1,
        }
    }
}

/// What a frame may cost at most. Checked against headers and sizes, before anything is allocated for the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width × height of a frame, and of the picture that a free model size makes of it.
    pub max_pixels: u64,
    /// Bytes of a picture file.
    pub max_encoded_bytes: u64,
}

impl Default for Limits {
    /// 64 megapixels, 32 MiB: more than a 60-megapixel camera's JPEG.
    fn default() -> Self {
        Limits { max_pixels: 64_000_000, max_encoded_bytes: 32 << 20 }
    }
}
