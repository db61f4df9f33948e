//! The one place where an error becomes a status or a frame's error.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::explain::ExplainError;
use crate::frame::{ErrorKind, FrameError};
use crate::model::LabelError;
use crate::plan::PlanError;
use crate::render::RenderError;
use crate::schedule::{AdmissionError, JobError};
use crate::stream::OutOfOrder;

/// When a full server may have room again: about the time of a few frames.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The most bytes of a status's message. The trailers have it three times (once as the message, twice in the details),
/// percent-encoded or in base64, and common clients refuse trailers above 8 KiB with an error of their own.
const MAX_STATUS_MESSAGE_BYTES: usize = 1200;

/// Why a request, a stream or a frame is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One of the canonical codes.
    pub code: Code,
    /// What was wrong and what is allowed.
    pub message: String,
    /// The path of the field at fault; empty when there is none.
    pub field: String,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(code: Code, field: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), field: field.into(), retry_after: None }
    }

    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, field, message)
    }

    /// A limit is reached now; a retry may succeed.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Refusal { retry_after: Some(RETRY_AFTER), ..Self::new(Code::ResourceExhausted, "", message) }
    }

    /// A part of the protocol that this version does not have. `what` is a subject with its verb: "regions are".
    pub(super) fn not_built(field: impl Into<String>, what: &str) -> Self {
        let field = field.into();
        let message = format!("{field}: {what} not built yet; leave it out");
        Self::new(Code::Unimplemented, field, message)
    }

    /// Prefixes the field's path, in the message too.
    pub(super) fn under(mut self, prefix: &str) -> Self {
        if !self.field.is_empty() && !prefix.is_empty() {
            if self.message.starts_with(&self.field) {
                self.message = format!("{prefix}.{}", self.message);
            }
            self.field = format!("{prefix}.{}", self.field);
        }
        self
    }

    /// The status of a call, with a `google.rpc.BadRequest` for the field and a `google.rpc.RetryInfo` for the retry. A
    /// long message is truncated, so that clients accept the trailers.
    pub fn into_status(mut self) -> Status {
        if self.message.len() > MAX_STATUS_MESSAGE_BYTES {
            let end = (0..=MAX_STATUS_MESSAGE_BYTES).rev().find(|&end| self.message.is_char_boundary(end));
            self.message.truncate(end.unwrap_or(0));
            self.message.push_str(" …");
        }
        let mut details = ErrorDetails::new();
        if !self.field.is_empty() {
            details.add_bad_request_violation(&self.field, &self.message);
        }
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        let code = match error.kind() {
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::ResourceExhausted => Code::ResourceExhausted,
            ErrorKind::Unsupported => Code::InvalidArgument,
        };
        Refusal::new(code, error.field(), error.to_string())
    }
}

impl From<LabelError> for Refusal {
    fn from(error: LabelError) -> Self {
        Refusal::invalid("", error.to_string())
    }
}

impl From<&ExplainError> for Refusal {
    fn from(error: &ExplainError) -> Self {
        let message = error.to_string();
        match error {
            ExplainError::Class { .. } | ExplainError::Top { .. } => {
                Refusal::invalid("options.targets", format!("options.targets: {message}"))
            }
            ExplainError::Expected { .. } => {
                Refusal::invalid("frame.expected.class_index", format!("frame.expected.class_index: {message}"))
            }
            ExplainError::Layer(_) | ExplainError::NotSpatial { .. } => {
                Refusal::invalid("options.target_layers", format!("options.target_layers: {message}"))
            }
            ExplainError::Plan(PlanError::InputShape { .. } | PlanError::InputSize { .. }) => {
                Refusal::invalid("frame", message)
            }
            ExplainError::NotFinite => Refusal::new(Code::FailedPrecondition, "", message),
            ExplainError::Output { .. } => Refusal::new(Code::FailedPrecondition, "", message),
            error if error.is_out_of_memory() => Refusal::from(&JobError::OutOfMemory),
            // Another server can take the frame.
            error if error.is_lost() => Refusal::new(Code::Unavailable, "", message),
            ExplainError::Model(_) | ExplainError::Plan(_) | ExplainError::Operator(_) | ExplainError::Cuda(_) => {
                Refusal::new(Code::Internal, "", message)
            }
        }
    }
}

impl From<&RenderError> for Refusal {
    fn from(error: &RenderError) -> Self {
        let message = error.to_string();
        match error.field() {
            Some(field) => Refusal::invalid(field, message),
            None => Refusal::new(Code::Internal, "", message),
        }
    }
}

impl From<&JobError> for Refusal {
    fn from(error: &JobError) -> Self {
        match error {
            JobError::Frame(error) => error.clone().into(),
            JobError::NoPicture => Refusal::invalid("options.pictures", error.to_string()),
            JobError::Explain(error) => error.into(),
            JobError::Batch(error) => (&**error).into(),
            JobError::Render(error) => error.into(),
            JobError::OutOfMemory => Refusal::busy(error.to_string()),
            JobError::Broken => Refusal::new(Code::Internal, "", error.to_string()),
            JobError::Expired => Refusal::new(Code::DeadlineExceeded, "frame.time_to_live", error.to_string()),
            JobError::Stopped => Refusal::new(Code::Unavailable, "", error.to_string()),
        }
    }
}

impl From<AdmissionError> for Refusal {
    fn from(error: AdmissionError) -> Self {
        Refusal::busy(error.to_string())
    }
}

impl From<OutOfOrder> for Refusal {
    fn from(error: OutOfOrder) -> Self {
        Refusal::invalid("frame.sequence", format!("frame.sequence: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_the_field_and_the_retry() {
        let refusal = Refusal { retry_after: Some(RETRY_AFTER), ..Refusal::invalid("frame.raw.width", "too wide") };
        let status = refusal.into_status();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "too wide"));
        let details = status.get_error_details();
        let violations = &details.bad_request().expect("a bad request").field_violations;
        assert_eq!((violations[0].field.as_str(), violations[0].description.as_str()), ("frame.raw.width", "too wide"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(RETRY_AFTER));
    }

    #[test]
    fn a_long_message_is_cut_so_that_the_trailers_stay_within_what_clients_take() {
        for letter in ["x", "é", "層"] {
            let message = format!("options.target_layers: {}", letter.repeat(5000));
            let status = Refusal::invalid("options.target_layers", message).into_status();
            assert!(status.message().ends_with(" …") && status.message().contains(letter));
            let mut headers = tonic::codegen::http::HeaderMap::new();
            status.add_header(&mut headers).expect("no control characters");
            let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < 8000, "{letter}: {bytes} bytes");
        }
    }

    #[test]
    fn a_frames_limits_are_exhausted_and_its_content_is_invalid() {
        let large = FrameError::TooManyPixels { field: "frame.encoded.data", width: 50_000, height: 50_000, limit: 1 };
        assert_eq!(Refusal::from(large).code, Code::ResourceExhausted);
        let torn = FrameError::TruncatedJpeg { bytes: 10, in_header: true };
        let refusal = Refusal::from(torn);
        assert_eq!((refusal.code, refusal.field.as_str()), (Code::InvalidArgument, "frame.encoded.data"));
    }

    #[test]
    fn what_is_not_built_says_so_by_name() {
        let refusal = Refusal::not_built("frame.region", "regions are");
        assert_eq!(refusal.code, Code::Unimplemented);
        assert_eq!(refusal.under("").message, "frame.region: regions are not built yet; leave it out");
    }
}
