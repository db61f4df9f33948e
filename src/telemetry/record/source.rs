//! The source of frames: what the frames of a stream, or the one frame of a call, have in common.

use std::sync::Arc;

use parking_lot::Mutex;

use super::outcome::FrameOutcome;
use crate::telemetry::ids::SpanReference;
use crate::telemetry::metrics::ModelInstruments;

/// A stream, or a unary call.
#[derive(Debug)]
pub struct Source {
    pub call: Call,
    /// The server's name for the stream; empty for a unary call.
    pub stream_id: String,
    /// The client's name for it; may be empty.
    pub name: String,
    pub model: Arc<str>,
    pub version: i64,
    /// The stream's span, to which frames with a trace of their own are linked.
    pub span: Option<SpanReference>,
    pub(in crate::telemetry) instruments: Option<Arc<ModelInstruments>>,
    counts: Mutex<Vec<EndedFrames>>,
}

/// The method that brought the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Explain,
    ExplainStream,
}

impl Call {
    /// The fully-qualified name of the method, as in `rpc.method`.
    pub fn method(self) -> &'static str {
        match self {
            Call::Explain => "camlens.v1.ExplainService/Explain",
            Call::ExplainStream => "camlens.v1.ExplainService/ExplainStream",
        }
    }
}

/// The number of a stream's frames that have ended in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedFrames {
    /// [`FrameOutcome::name`].
    pub outcome: &'static str,
    /// The reason of a drop, the code of a failure, else empty.
    pub reason: &'static str,
    pub count: u64,
}

impl Source {
    pub(in crate::telemetry) fn new(
        call: Call,
        stream_id: String,
        name: String,
        (model, version): (&str, i64),
        span: Option<SpanReference>,
        instruments: Option<Arc<ModelInstruments>>,
    ) -> Self {
        Source { call, stream_id, name, model: model.into(), version, span, instruments, counts: Mutex::default() }
    }

    /// Counts a frame that has ended. Outcomes are few, so this stays small however long the stream runs.
    pub(in crate::telemetry) fn count(&self, outcome: &FrameOutcome) {
        let reason = match outcome {
            FrameOutcome::Dropped { reason, .. } => reason,
            FrameOutcome::Failed { .. } => outcome.status(),
            FrameOutcome::Answered | FrameOutcome::Cancelled => "",
        };
        let mut counts = self.counts.lock();
        match counts.iter_mut().find(|known| known.outcome == outcome.name() && known.reason == reason) {
            Some(known) => known.count += 1,
            None => counts.push(EndedFrames { outcome: outcome.name(), reason, count: 1 }),
        }
    }

    /// The numbers of ended frames, by outcome.
    pub fn ended_frames(&self) -> Vec<EndedFrames> {
        self.counts.lock().clone()
    }
}
