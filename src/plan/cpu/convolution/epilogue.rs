//! The epilogue of a convolution: another tensor is added, and an activation bounds the sum.

use std::fmt;

use tch::Tensor;

use crate::plan::convolution::Activation;
use crate::plan::rules::rectifiers::Gate;
use crate::torch::{OperatorError, add, add_clamped};

#[derive(Debug, Clone, Copy)]
pub(in crate::plan) struct Epilogue<'a> {
    /// The tensor to add, of the result's shape.
    pub other: Option<&'a Tensor>,
    pub activation: Activation,
    /// Whether to return the mask of elements where the activation passes gradients.
    pub wants_gate: bool,
    pub guided: bool,
}

/// All that a kernel's time depends on.
impl fmt::Display for Epilogue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Epilogue { other, activation, wants_gate, guided } = self;
        write!(f, "{activation:?} {} {wants_gate} {guided}", other.is_some())
    }
}

impl Epilogue<'_> {
    /// The part of the epilogue that every kernel applies by itself.
    pub fn fused_activation(&self) -> Activation {
        if self.other.is_some() { Activation::None } else { self.activation }
    }

    /// Applies the rest of the epilogue to the convolution's result, in place: the addition, then the activation.
    /// oneDNN's own fused addition was measured to take longer than both.
    pub fn apply(&self, result: Tensor) -> Result<(Tensor, Option<Gate>), OperatorError> {
        match (self.other, self.activation.bounds()) {
            (None, Some(bounds)) if self.wants_gate => {
                let gate = Gate::of(&result, bounds, self.guided)?;
                Ok((result, Some(gate)))
            }
            (None, _) => Ok((result, None)),
            (Some(other), None) => Ok((add(result, other)?, None)),
            (Some(other), Some(bounds)) if self.wants_gate => {
                let (result, gate) = Gate::of_sum(result, other, bounds, self.guided)?;
                Ok((result, Some(gate)))
            }
            (Some(other), Some(bounds)) => Ok((add_clamped(result, other, bounds)?, None)),
        }
    }
}
