//! `model.toml`: what a model file cannot say about itself.
//!
//! Every key has a default; an unknown key is an error that suggests the right one.

use serde::{Deserialize, Serialize};

/// The whole of `model.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Description {
    /// One sentence for people.
    pub summary: String,
    /// The weights' licence and origin, for people.
    pub license: String,
    pub input: Preprocessing,
    pub output: OutputDescription,
    pub explain: ExplainDescription,
    pub limits: ModelLimits,
}

/// `[input]`: from an upright image of 8-bit pixels to the model's input, in this order: resize, centre crop, colour
/// order, division by 255, mean and standard deviation. The names and meanings are torchvision's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocessing {
    /// `Resize`: one number is the shorter side, two are `[height, width]`. Absent: the model's own input size when
    /// that is fixed, else the image's own size.
    pub resize: Option<Resize>,
    /// `CenterCrop` to `[height, width]`. Absent: no crop.
    pub crop: Option<[u32; 2]>,
    pub interpolation: Interpolation,
    pub color: ColorOrder,
    /// Per channel, after division by 255. One number holds for every channel. Empty: 0.
    pub mean: Vec<f32>,
    /// Per channel, after division by 255. One number holds for every channel. Empty: 1.
    pub std: Vec<f32>,
}

impl Default for Preprocessing {
    fn default() -> Self {
        Preprocessing {
            resize: None,
            crop: None,
            interpolation: Interpolation::Bilinear,
            color: ColorOrder::Rgb,
            mean: Vec::new(),
            std: Vec::new(),
        }
    }
}

/// The size that an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resize {
    /// The shorter side gets this many pixels, the longer one follows (`int(size · long / short)`).
    Shorter(u32),
    /// `[height, width]`, whatever the aspect ratio.
    Exact([u32; 2]),
}

/// How pixels are resampled, always with antialiasing, as Pillow and torchvision do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
}

/// The channels that the model takes, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorOrder {
    Rgb,
    Bgr,
    /// One channel of luma (ITU-R 601, as Pillow's `L`).
    Gray,
}

/// `[output]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputDescription {
    /// The output that holds the logits, `[N, classes]`, when the model has several. Absent: the first tensor.
    pub logits: Option<String>,
    /// A text file beside `model.toml` with one label a line, in class order.
    pub labels_file: Option<String>,
    /// Labels in class order, instead of a file.
    pub labels: Vec<String>,
}

/// `[explain]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExplainDescription {
    /// Layers that Grad-CAM looks at when a request names none. Empty: the value that enters the last spatial average.
    pub target_layers: Vec<String>,
    /// Guide the gradient through smooth activations (SiLU, GELU, Hardswish) too.
    pub guide_smooth_activations: bool,
    /// `[height, width]` of the token grid, for layers that give `[N, tokens, channels]`.
    pub token_grid: Option<[u32; 2]>,
    /// Leading tokens that are no part of the grid (a class token).
    pub class_tokens: u32,
    /// The layer gives `[N, height, width, channels]` (Swin).
    pub channels_last: bool,
    /// Run unfolded and unfused, to compare with PyTorch.
    pub exact: bool,
}

/// `[limits]`: they can only tighten the server's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelLimits {
    /// Rows that run together at most.
    pub max_batch: Option<u32>,
    /// Targets of one frame at most.
    pub max_targets: Option<u32>,
}
