//! One frame's record for telemetry, from its acceptance to its end.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::model::Metadata;
use crate::proto::v1;
use crate::schedule::Clock;
use crate::telemetry::{FrameOutcome, FrameRecord, FrameTrace, Stage, Telemetry, Timings};

/// What the frames of a stream, or of one call, have in common.
#[derive(Debug, Clone)]
pub(super) struct SourceName {
    /// Empty for the unary call.
    pub(super) stream_id: Arc<str>,
    pub(super) source: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) version: i64,
}

impl SourceName {
    pub(super) fn new(stream_id: &str, source: &str, model: &Metadata) -> Self {
        SourceName {
            stream_id: stream_id.into(),
            source: source.into(),
            model: model.name.as_str().into(),
            version: model.version,
        }
    }
}

/// A frame that has been accepted. Dropping it closes the account; a frame of which nothing else was said was cancelled.
#[derive(Debug)]
pub(super) struct FrameAccount {
    telemetry: Telemetry,
    record: FrameRecord,
}

impl FrameAccount {
    pub(super) fn open(telemetry: &Telemetry, of: &SourceName, frame: &v1::Frame, accepted: Instant) -> Self {
        FrameAccount {
            telemetry: telemetry.clone(),
            record: FrameRecord {
                trace: telemetry.place(&frame.traceparent, &frame.tracestate),
                stream_id: Arc::clone(&of.stream_id),
                source: Arc::clone(&of.source),
                sequence: frame.sequence,
                model: Arc::clone(&of.model),
                version: of.version,
                outcome: FrameOutcome::Cancelled,
                timings: Timings::start(accepted),
                accepted_at: SystemTime::now(),
                batch_size: 0,
            },
        }
    }

    pub(super) fn trace(&self) -> &FrameTrace {
        &self.record.trace
    }

    pub(super) fn timings(&self) -> &Timings {
        &self.record.timings
    }

    pub(super) fn outcome(&mut self, outcome: FrameOutcome) {
        self.record.outcome = outcome;
    }

    /// What the engine has measured.
    pub(super) fn answered(&mut self, timings: Timings, batch_size: u32) {
        self.record.timings = timings;
        self.record.batch_size = batch_size;
        self.record.outcome = FrameOutcome::Answered;
    }

    pub(super) fn mark(&mut self, stage: Stage, clock: &dyn Clock) {
        self.record.timings.mark(stage, clock.now());
    }
}

impl Drop for FrameAccount {
    fn drop(&mut self) {
        self.telemetry.frame(self.record.clone());
    }
}
