//! What is asked of the explainer.

use crate::explain::Maps;
pub use crate::plan::Mode;

/// How the maps are scaled and fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Convention {
    /// Guided gradient × upsampled Grad-CAM, nothing normalised: Captum's `GuidedGradCam` with bilinear interpolation.
    #[default]
    Captum,
    /// Grad-CAM min–max scaled, averaged over the target layers, min–max scaled again: pytorch-grad-cam's.
    PytorchGradCam,
}

/// What the rows of a batch have in common: rows run together when this, the model and the input's size are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Method {
    /// Layer names; empty: the model's default.
    pub target_layers: Vec<String>,
    pub convention: Convention,
    pub maps: Maps,
    pub mode: Mode,
}

/// Which classes of a row are explained. Labels are resolved to indices before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    Class(u32),
    /// The `k` highest logits.
    Top(u32),
}
