//! Errors of rendering.

/// Why a tensor or a picture cannot be rendered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RenderError {
    #[error("a tensor of shape {shape:?} has {needed} elements, {elements} are there")]
    Length { shape: Vec<u32>, needed: String, elements: usize },
    #[error("a tensor of shape {shape:?} makes no picture: {allowed}")]
    Shape { shape: Vec<u32>, allowed: &'static str },
    #[error(
        "tensors.element_type is uint8, but element {index} of the map is {value}: only finite values are quantised"
    )]
    NotFinite { index: usize, value: f32 },
    #[error("pictures.opacity is {opacity}: it must be 0 to 1")]
    Opacity { opacity: f32 },
    #[error("pictures.quality is {quality}: it must be 1 to 100")]
    Quality { quality: u32 },
    #[error("pictures.fixed_range is {low} to {high}: both must be finite and the first one the lower")]
    Range { low: f32, high: f32 },
    #[error(
        "pictures.format is JPEG, which holds at most 65535 pixels a side: the picture is {width}×{height}; ask for PNG"
    )]
    TooLargeForJpeg { width: u32, height: u32 },
    #[error("the model's input covers no area of the frame")]
    NoArea,
    #[error("the picture could not be encoded: {reason}")]
    Encoder { reason: String },
}

impl RenderError {
    /// The option of the request that caused the error, if one did.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            RenderError::NotFinite { .. } => Some("options.tensors.element_type"),
            RenderError::Opacity { .. } => Some("options.pictures.opacity"),
            RenderError::Quality { .. } => Some("options.pictures.quality"),
            RenderError::Range { .. } => Some("options.pictures.fixed_range"),
            RenderError::TooLargeForJpeg { .. } => Some("options.pictures.format"),
            RenderError::Length { .. }
            | RenderError::Shape { .. }
            | RenderError::NoArea
            | RenderError::Encoder { .. } => None,
        }
    }
}
