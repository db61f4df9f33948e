//! Errors of an explanation.

use crate::model::{LayerError, LayoutProblem, ModelError};
use crate::plan::PlanError;
use crate::torch::OperatorError;
use crate::torch::cuda::CudaError;

/// Why a frame could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("class {class} does not exist: the model has {classes} classes, 0 to {}", classes - 1)]
    Class { class: u32, classes: u32 },
    #[error("top {count} is out of range: 1 to {classes} are allowed")]
    Top { count: u32, classes: u32 },
    #[error("class {class} does not exist: the model has {classes} classes, 0 to {}", classes.saturating_sub(1))]
    Expected { class: u32, classes: u32 },
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The layer exists, but its value is not proved to be the map that a CAM needs.
    #[error("layer {layer} has shape {shape:?}: {problem}; layers that are spatial: {candidates}")]
    NotSpatial { layer: String, shape: Vec<i64>, problem: LayoutProblem, candidates: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The score is a class's logit, so the output must be `[N, classes]`.
    #[error(
        "the model's output has shape {shape:?}, and a classifier's logits are [N, classes]: if another output holds \
         them, name it as output.logits in model.toml"
    )]
    Output { shape: Vec<i64> },
    #[error("the model gave a logit that is infinite or not a number; are the pixels and weights in range?")]
    NotFinite,
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Cuda(CudaError),
}

impl From<CudaError> for ExplainError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Failed(error) => ExplainError::Operator(error),
            other => ExplainError::Cuda(other),
        }
    }
}

impl From<tch::TchError> for ExplainError {
    fn from(error: tch::TchError) -> Self {
        ExplainError::Operator(error.into())
    }
}

impl ExplainError {
    /// Whether the device or the host was out of memory. A smaller batch may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            ExplainError::Operator(error) => matches!(error, OperatorError::OutOfMemory { .. }),
            ExplainError::Plan(error) => error.is_out_of_memory(),
            _ => false,
        }
    }

    /// Whether the device fails until the process ends.
    pub fn is_lost(&self) -> bool {
        matches!(self, ExplainError::Cuda(CudaError::Lost(_)))
    }

    /// Whether the run was stopped by its interrupt, which is not a failure.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, ExplainError::Plan(PlanError::Interrupted))
    }
}
