//! What follows a convolution within its node: another tensor is added, and an activation bounds the sum.

use tch::Tensor;

use crate::torch::{Bounds, OperatorError, add, add_clamped};

use crate::plan::rules::rectifiers::Gate;

#[derive(Debug, Clone, Copy)]
pub(in crate::plan) struct After<'a> {
    /// What is added, of the result's shape.
    pub other: Option<&'a Tensor>,
    pub activation: Activation,
    /// Whether it is to be told where the activation lets gradients pass.
    pub has_gate: bool,
    pub guided: bool,
}

impl After<'_> {
    /// What a convolution does of it by itself.
    pub fn at_once(&self) -> Activation {
        if self.other.is_some() { Activation::None } else { self.activation }
    }

    /// The rest, of the convolution's result. Adds first and activates then, in place: oneDNN's own fused addition was measured at more than
    /// the time of both.
    pub fn then(&self, result: Tensor) -> Result<(Tensor, Option<Gate>), OperatorError> {
        match (self.other, self.activation.bounds()) {
            (None, Some(bounds)) if self.has_gate => {
                let gate = Gate::of(&result, bounds, self.guided)?;
                Ok((result, Some(gate)))
            }
            (None, _) => Ok((result, None)),
            (Some(other), None) => Ok((add(result, other)?, None)),
            (Some(other), Some(bounds)) if self.has_gate => {
                let (result, gate) = Gate::of_sum(result, other, bounds, self.guided)?;
                Ok((result, Some(gate)))
            }
            (Some(other), Some(bounds)) => Ok((add_clamped(result, other, bounds)?, None)),
        }
    }
}

/// What follows the convolution, as far as its result tells how to come back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::plan) enum Activation {
    None,
    Relu,
    /// `min(max(·, low), high)`.
    Clamp {
        low: f64,
        high: f64,
    },
}

impl Activation {
    /// What results lie between.
    pub fn bounds(self) -> Option<Bounds> {
        match self {
            Activation::None => None,
            Activation::Relu => Some(Bounds::RELU),
            Activation::Clamp { low, high } => Some(Bounds { low, high: Some(high) }),
        }
    }
}
