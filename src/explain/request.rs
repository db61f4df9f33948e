//! What is asked of the explainer.

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

/// Which maps are computed; nothing else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Maps {
    pub guided_grad_cam: bool,
    pub grad_cam: bool,
    pub guided_backprop: bool,
}

impl Maps {
    /// Whether Grad-CAM has to be computed, for itself or for the product.
    pub fn needs_grad_cam(self) -> bool {
        self.grad_cam || self.guided_grad_cam
    }

    /// Whether the gradient has to be taken back to the input.
    pub fn needs_guided_gradient(self) -> bool {
        self.guided_backprop || self.guided_grad_cam
    }

    /// No map at all: predictions alone.
    pub fn is_empty(self) -> bool {
        !(self.guided_grad_cam || self.grad_cam || self.guided_backprop)
    }
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
