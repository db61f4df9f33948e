//! Errors in frames. Each message names the field and says what is allowed, so that the sender can correct the frame.

use super::{Damage, ImageFormat, PixelFormat};

/// The class of a [`FrameError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The frame contradicts itself, its declaration or the model.
    InvalidArgument,
    /// The frame exceeds a limit.
    ResourceExhausted,
    /// The frame may be valid, but its format is not supported.
    Unsupported,
}

/// Why a frame is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error("{field} is empty: a frame needs content")]
    Empty { field: &'static str },
    #[error("{field} has {bytes} bytes, the limit is {limit}")]
    TooManyBytes { field: &'static str, bytes: u64, limit: u64 },
    #[error(
        "{field} is {width}×{height}, {} pixels: the limit is {limit} pixels",
        u64::from(*width) * u64::from(*height)
    )]
    TooManyPixels { field: &'static str, width: u32, height: u32, limit: u64 },
    #[error("{field} is {value}: it must be at least 1")]
    NoSize { field: &'static str, value: u32 },
    #[error(
        "frame.encoded.format says {declared}, but frame.encoded.data is {found}: leave the format out or correct it"
    )]
    FormatContradicted { declared: ImageFormat, found: String },
    #[error("frame.encoded.data is {found}: JPEG, PNG and WebP are read")]
    UnknownFormat { found: String },
    #[error(
        "frame.encoded.data is a truncated JPEG: it ends after {bytes} bytes, before the data of its pixels does{}",
        if *in_header { "" } else { "; with options.allow_damaged_frames what is left is explained, with a notice" }
    )]
    TruncatedJpeg { bytes: u64, in_header: bool },
    #[error(
        "frame.encoded.data is a damaged JPEG: {damage}; with options.allow_damaged_frames such a frame is explained, \
         with a notice"
    )]
    Damaged { damage: Damage },
    #[error("frame.encoded.data cannot be read as {format}: {reason}")]
    Malformed { format: ImageFormat, reason: String },
    #[error("frame.encoded.data is a kind of {format} that is not read: {reason}")]
    UnsupportedVariant { format: ImageFormat, reason: String },
    #[error(
        "frame.raw.stride_bytes is {stride_bytes}: {width} pixels of {pixel_format:?} need at least {row_bytes} bytes \
         a row"
    )]
    StrideTooSmall { stride_bytes: u32, width: u32, pixel_format: PixelFormat, row_bytes: u64 },
    #[error(
        "frame.raw.data has {bytes} bytes: {width}×{height} pixels of {pixel_format:?} with {stride_bytes} bytes a row \
         need {needed}{}",
        if padded == needed { String::new() } else { format!(", or {padded} with a padded last row") }
    )]
    RawLength {
        bytes: u64,
        width: u32,
        height: u32,
        pixel_format: PixelFormat,
        stride_bytes: u64,
        needed: u64,
        padded: u64,
    },
    #[error("frame.tensor.shape is {shape:?}: {allowed}")]
    TensorShape { shape: Vec<u32>, allowed: String },
    #[error("frame.tensor.data has {bytes} bytes: f32 of shape {shape:?} needs {needed}")]
    TensorLength { bytes: u64, shape: Vec<u32>, needed: String },
    #[error("frame.tensor.data holds {value} at element {index} (row-major): every element must be finite")]
    NotFinite { index: u64, value: f32 },
    #[error("a picture cannot be made into this model's input of {channels} channels: send frame.tensor")]
    NoPictures { channels: u32 },
    #[error("a frame of {width}×{height} {}", if (width, height) == (made_width, made_height) {
        format!("does not fit: the model takes {allowed}; input.resize in model.toml fits frames of any size")
    } else {
        format!(
            "becomes {made_width}×{made_height} by input.resize and input.crop of model.toml, but the model takes \
             {allowed}"
        )
    })]
    DoesNotFit { width: u32, height: u32, made_width: u32, made_height: u32, allowed: String },
}

impl FrameError {
    /// The path of the request's field that caused the error.
    pub fn field(&self) -> &str {
        match self {
            FrameError::Empty { field }
            | FrameError::TooManyBytes { field, .. }
            | FrameError::TooManyPixels { field, .. }
            | FrameError::NoSize { field, .. } => field,
            FrameError::FormatContradicted { .. } => "frame.encoded.format",
            FrameError::UnknownFormat { .. }
            | FrameError::TruncatedJpeg { .. }
            | FrameError::Damaged { .. }
            | FrameError::Malformed { .. }
            | FrameError::UnsupportedVariant { .. } => "frame.encoded.data",
            FrameError::StrideTooSmall { .. } => "frame.raw.stride_bytes",
            FrameError::RawLength { .. } => "frame.raw.data",
            FrameError::TensorShape { .. } => "frame.tensor.shape",
            FrameError::TensorLength { .. } | FrameError::NotFinite { .. } => "frame.tensor.data",
            FrameError::NoPictures { .. } | FrameError::DoesNotFit { .. } => "frame",
        }
    }

    /// The class of the error, which determines the status code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            FrameError::TooManyBytes { .. } | FrameError::TooManyPixels { .. } => ErrorKind::ResourceExhausted,
            FrameError::UnknownFormat { .. } | FrameError::UnsupportedVariant { .. } => ErrorKind::Unsupported,
            FrameError::Empty { .. }
            | FrameError::NoSize { .. }
            | FrameError::FormatContradicted { .. }
            | FrameError::TruncatedJpeg { .. }
            | FrameError::Damaged { .. }
            | FrameError::Malformed { .. }
            | FrameError::StrideTooSmall { .. }
            | FrameError::RawLength { .. }
            | FrameError::TensorShape { .. }
            | FrameError::TensorLength { .. }
            | FrameError::NotFinite { .. }
            | FrameError::NoPictures { .. }
            | FrameError::DoesNotFit { .. } => ErrorKind::InvalidArgument,
        }
    }
}
