//! The activation that a convolution takes in.

use crate::torch::Bounds;

/// An activation whose derivative its result gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    None,
    Relu,
    /// `min(max(·, low), high)`.
    Clamp {
        low: f64,
        high: f64,
    },
}

impl Activation {
    /// The bounds of the activation's results.
    pub fn bounds(self) -> Option<Bounds> {
        match self {
            Activation::None => None,
            Activation::Relu => Some(Bounds::RELU),
            Activation::Clamp { low, high } => Some(Bounds { low, high: Some(high) }),
        }
    }
}
