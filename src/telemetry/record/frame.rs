//! The record of a frame that has ended.

use std::sync::Arc;
use std::time::SystemTime;

use super::outcome::{Agreement, FrameOutcome};
use super::progress::Progress;
use super::source::Source;
use crate::telemetry::ids::SpanReference;
use crate::telemetry::sampling::FrameTrace;

/// A frame that has ended.
#[derive(Debug, Clone)]
pub struct FrameRecord {
    pub trace: FrameTrace,
    /// What it has in common with the other frames of its stream.
    pub source: Arc<Source>,
    pub sequence: u64,
    pub outcome: FrameOutcome,
    /// Its stages, by the monotonic clock; closed.
    pub progress: Progress,
    /// The moment of its acceptance on the wall clock.
    pub accepted_at: SystemTime,
    /// When the client says that it was taken.
    pub captured_at: Option<SystemTime>,
    /// As it was sent.
    pub payload_bytes: u64,
    /// What the stream does when there are too many frames: `latest`, `block`, `reject`. Empty for the unary call.
    pub policy: &'static str,
    /// The classes that were explained, in the order asked for; empty when it was not answered.
    pub classes: Vec<u32>,
    /// The layers that the classes were explained at, each once.
    pub target_layers: Vec<String>,
    /// Whether the model predicted what the client expected, if it expected something and the frame was explained.
    pub agreement: Option<Agreement>,
    /// The rows of the batch that it was in, and the batch's span; filled in when the frame's trace is kept.
    pub batch: Option<(u32, SpanReference)>,
}
