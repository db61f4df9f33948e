//! The forms in which a frame arrives.

use std::fmt;

use bytes::Bytes;

/// The content of a frame as it was sent.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A picture file.
    Encoded {
        data: Bytes,
        /// The declared format. `None`: the first bytes of the data decide.
        format: Option<ImageFormat>,
        /// Whether a JPEG that was damaged on its way is read as far as it goes, instead of being refused.
        allow_damaged: bool,
    },
    /// Rows of pixels, top to bottom, without a header.
    Raw {
        data: Bytes,
        width: u32,
        height: u32,
        pixel_format: PixelFormat,
        /// Bytes from the start of one row to the start of the next. `None`: rows are contiguous.
        stride_bytes: Option<u32>,
    },
    /// A model input, used unchanged: f32, little-endian, row-major, `[C, H, W]` or `[1, C, H, W]`.
    Tensor { data: Bytes, shape: Vec<u32> },
}

impl Payload {
    /// A picture file whose format its first bytes tell, and which must not be damaged.
    pub fn encoded(data: impl Into<Bytes>) -> Payload {
        Payload::Encoded { data: data.into(), format: None, allow_damaged: false }
    }

    /// Lets a damaged picture file be read as far as it goes.
    pub fn allowing_damage(mut self) -> Payload {
        if let Payload::Encoded { allow_damaged, .. } = &mut self {
            *allow_damaged = true;
        }
        self
    }

    /// The bytes as they were sent.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Encoded { data, .. } | Payload::Raw { data, .. } | Payload::Tensor { data, .. } => data,
        }
    }
}

/// The supported formats of picture files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    Jpeg,
    Png,
    /// Of an animation the first picture is read.
    WebP,
}

impl ImageFormat {
    /// The format that the first bytes indicate.
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

/// The order of the bytes of a raw frame's pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    Rgb8,
    Bgr8,
    Gray8,
}

impl PixelFormat {
    /// Bytes per pixel.
    pub fn bytes_per_pixel(self) -> u32 {
        match self {
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => 3,
            PixelFormat::Gray8 => 1,
        }
    }
}

/// The largest frame. Checked against headers and sizes before anything is allocated for the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width × height of a frame, and of the model's input where the model takes any size.
    pub max_pixels: u64,
    /// Bytes of a picture file.
    pub max_encoded_bytes: u64,
}

impl Limits {
    /// The most memory that a decoder may take: the largest picture allowed as 16-bit RGBA, and its metadata.
    pub(super) fn decoder_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(16 << 20)
    }
}

impl Default for Limits {
    /// 64 megapixels and 32 MiB, which is more than the JPEG of a 60-megapixel camera takes.
    fn default() -> Self {
        Limits { max_pixels: 64_000_000, max_encoded_bytes: 32 << 20 }
    }
}
