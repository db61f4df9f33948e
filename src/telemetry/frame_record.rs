//! What telemetry is told about a frame, once, when it has ended.

use std::sync::Arc;
use std::time::SystemTime;

use super::sampling::FrameTrace;
use super::stage::Timings;

/// How a frame ended: each accepted frame ends in exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameOutcome {
    Answered,
    /// Ended without an answer and without a fault of its own. `reason` is the protocol's, in lower case: `replaced`,
    /// `expired`, `slow_reader`, …
    Dropped {
        reason: &'static str,
    },
    /// `code` is a google.rpc.Code.
    Failed {
        code: i32,
        message: String,
    },
    /// The client took it back, or its stream died.
    Cancelled,
}

impl FrameOutcome {
    /// The word in spans, metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            FrameOutcome::Answered => "answered",
            FrameOutcome::Dropped { .. } => "dropped",
            FrameOutcome::Failed { .. } => "failed",
            FrameOutcome::Cancelled => "cancelled",
        }
    }
}

/// The name of a google.rpc.Code, as the specification spells it; `UNKNOWN` for a number that is none.
pub fn status_name(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|index| NAMES.get(index)).copied().unwrap_or("UNKNOWN")
}

/// A frame that has ended.
#[derive(Debug, Clone)]
pub struct FrameRecord {
    pub trace: FrameTrace,
    /// Shared by the frames of a stream; empty for a frame of the unary call.
    pub stream_id: Arc<str>,
    /// The client's name for the stream; may be empty.
    pub source: Arc<str>,
    pub sequence: u64,
    /// Shared by the frames of a model.
    pub model: Arc<str>,
    pub version: i64,
    pub outcome: FrameOutcome,
    /// Monotonic: when the frame was accepted and what it went through.
    pub timings: Timings,
    /// The same moment as `timings.accepted()` on the wall clock.
    pub accepted_at: SystemTime,
    /// Rows that ran together with this frame, itself included; 0 when it never reached the device.
    pub batch_size: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_are_those_of_the_codes() {
        for code in 0..=16 {
            let debug = format!("{:?}", tonic::Code::from(code));
            let spelled: String = status_name(code).split('_').map(capitalised).collect();
            assert_eq!(spelled, debug);
        }
        assert_eq!((status_name(17), status_name(-1)), ("UNKNOWN", "UNKNOWN"));
    }

    fn capitalised(word: &str) -> String {
        if word == "OK" {
            return "Ok".to_owned();
        }
        let (first, rest) = word.split_at(1);
        format!("{first}{}", rest.to_lowercase())
    }
}
