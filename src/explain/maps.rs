//! The maps that can be asked for.

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

/// A map of one class at one layer, or the input that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// `[C, H, W]`.
    GuidedGradCam,
    /// `[H, W]`.
    GradCam,
    /// `[C, H, W]`.
    GuidedBackprop,
    /// The model's input, `[C, H, W]`.
    Input,
}
