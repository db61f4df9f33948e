//! Why one frame could not be explained, for whoever sent it.

use crate::explain::ExplainError;
use crate::frame::{ErrorKind, FrameError};
use crate::plan::PlanError;
use crate::render::RenderError;

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The sender: the frame or what is asked of it is wrong.
    InvalidArgument,
    /// The sender or the operator: a limit was reached.
    ResourceExhausted,
    /// Nobody here can do it.
    Unimplemented,
    /// The operator: something broke.
    Internal,
}

/// A frame's failure.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameFailure {
    pub kind: FailureKind,
    /// A path such as `frame.encoded.data`; empty when no field is to blame.
    pub field: String,
    pub message: String,
}

impl FrameFailure {
    pub fn internal(message: impl Into<String>) -> Self {
        FrameFailure { kind: FailureKind::Internal, field: String::new(), message: message.into() }
    }

    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        FrameFailure { kind: FailureKind::InvalidArgument, field: field.into(), message: message.into() }
    }
}

impl From<FrameError> for FrameFailure {
    fn from(error: FrameError) -> Self {
        let kind = match error.kind() {
            ErrorKind::InvalidArgument => FailureKind::InvalidArgument,
            ErrorKind::ResourceExhausted => FailureKind::ResourceExhausted,
            ErrorKind::Unsupported => FailureKind::Unimplemented,
        };
        FrameFailure { kind, field: error.field().to_owned(), message: error.to_string() }
    }
}

impl From<ExplainError> for FrameFailure {
    fn from(error: ExplainError) -> Self {
        use FailureKind as K;
        let (kind, field) = match &error {
            ExplainError::Class { .. } | ExplainError::Top { .. } => (K::InvalidArgument, "options.targets"),
            ExplainError::Layer(_) | ExplainError::NotSpatial { .. } => (K::InvalidArgument, "options.target_layers"),
            ExplainError::Plan(PlanError::InputShape { .. }) => (K::InvalidArgument, "frame.tensor.shape"),
            error if error.is_out_of_memory() => (K::ResourceExhausted, ""),
            _ => (K::Internal, ""),
        };
        FrameFailure { kind, field: field.to_owned(), message: error.to_string() }
    }
}

impl From<RenderError> for FrameFailure {
    fn from(error: RenderError) -> Self {
        match error.field() {
            Some(field) => FrameFailure::invalid(field, error.to_string()),
            None => FrameFailure::internal(error.to_string()),
        }
    }
}
