//! One frame's record for telemetry, from its acceptance to its end.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tonic::Code;

use crate::proto::v1;
use crate::schedule::{Answer, Clock};
use crate::stream::DropReason;
use crate::telemetry::{FrameOutcome, FrameRecord, FrameTrace, Progress, Source, Stage, Telemetry, Timings};

use super::refusal::Refusal;

/// A frame that has been accepted. Dropping it closes the account; a frame of which nothing else was said was cancelled.
pub(super) struct FrameAccount {
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    /// Taken when the account closes.
    record: Option<FrameRecord>,
    trace: FrameTrace,
    progress: Progress,
}

/// What an account begins with.
pub(super) struct Accepted<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) frame: &'a v1::Frame,
    /// The trace that the call itself belongs to, for a frame that names none: its two headers.
    pub(super) call: (&'a str, &'a str),
    pub(super) payload_bytes: u64,
    pub(super) policy: &'static str,
    pub(super) at: Instant,
}

impl FrameAccount {
    pub(super) fn open(telemetry: &Telemetry, clock: &Arc<dyn Clock>, accepted: Accepted<'_>) -> Self {
        let Accepted { source, frame, call, payload_bytes, policy, at } = accepted;
        let own = (frame.traceparent.as_str(), frame.tracestate.as_str());
        let (traceparent, tracestate) = if own.0.is_empty() { call } else { own };
        let trace = telemetry.place(traceparent, tracestate);
        let progress = Progress::start(at);
        let record = FrameRecord {
            trace: trace.clone(),
            source: Arc::clone(source),
            sequence: frame.sequence,
            outcome: FrameOutcome::Cancelled,
            progress: progress.clone(),
            // The same moment on the wall, however late it is said.
            accepted_at: SystemTime::now() - at.elapsed(),
            payload_bytes,
            policy,
            classes: Vec::new(),
            target_layers: Vec::new(),
            batch: None,
        };
        FrameAccount { telemetry: telemetry.clone(), clock: Arc::clone(clock), record: Some(record), trace, progress }
    }

    pub(super) fn trace_id(&self) -> String {
        self.trace.trace_id.to_string()
    }

    /// Where the frame is, for whoever carries it on.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) fn timings(&self) -> Timings {
        self.progress.timings()
    }

    pub(super) fn mark(&self, stage: Stage) {
        self.progress.mark(stage, self.clock.now());
    }

    pub(super) fn answered(&mut self, answer: &Answer) {
        let Some(record) = &mut self.record else { return };
        record.outcome = FrameOutcome::Answered;
        for target in &answer.targets {
            if !record.classes.contains(&target.class_index) {
                record.classes.push(target.class_index);
            }
            if !target.target_layer.is_empty() && !record.target_layers.contains(&target.target_layer) {
                record.target_layers.push(target.target_layer.clone());
            }
        }
    }

    pub(super) fn failed(&mut self, refusal: &Refusal) {
        self.progress.fail(self.clock.now());
        let message = refusal.message.clone();
        self.outcome(FrameOutcome::Failed { code: refusal.code as i32, message });
    }

    pub(super) fn dropped(&mut self, reason: DropReason) {
        let code = match reason {
            DropReason::Cancelled => return self.outcome(FrameOutcome::Cancelled),
            DropReason::Replaced => Code::Aborted,
            DropReason::Expired => Code::DeadlineExceeded,
            DropReason::SlowReader | DropReason::RateLimited => Code::ResourceExhausted,
            DropReason::Draining => Code::Unavailable,
            DropReason::StreamEnded => Code::Cancelled,
        };
        self.outcome(FrameOutcome::Dropped { reason: reason.name(), code: code as i32 });
    }

    fn outcome(&mut self, outcome: FrameOutcome) {
        if let Some(record) = &mut self.record {
            record.outcome = outcome;
        }
    }
}

impl Drop for FrameAccount {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.telemetry.frame(record, self.clock.now());
        }
    }
}
