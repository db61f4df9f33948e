//! One frame's record for telemetry, from its acceptance to its end.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tonic::Code;

use crate::schedule::{Answer, Clock};
use crate::stream::DropReason;
use crate::telemetry::{Agreement, FrameOutcome, FrameRecord, FrameTrace, Progress, Source, Stage, Telemetry, Timings};

use super::refusal::Refusal;
use super::transport::calls::TraceHeaders;

/// The account of an accepted frame. Dropping it closes the account; a frame without another outcome was cancelled.
pub(super) struct FrameAccount {
    telemetry: Telemetry,
    clock: Arc<dyn Clock>,
    /// Taken when the account closes.
    record: Option<FrameRecord>,
    trace: FrameTrace,
    progress: Progress,
}

/// What is known of every frame, whether or not it can be explained.
pub(super) struct FrameHeader {
    pub(super) sequence: u64,
    /// The trace that the client gave the frame. Empty: the frame gets a new trace.
    pub(super) trace: TraceHeaders,
    pub(super) payload_bytes: u64,
    pub(super) accepted_at: Instant,
    /// When the client says that the frame was taken.
    pub(super) captured_at: Option<SystemTime>,
}

impl FrameAccount {
    /// `policy` is the stream's, by its name; empty for a frame that belongs to no stream.
    pub(super) fn open(
        telemetry: &Telemetry,
        clock: &Arc<dyn Clock>,
        source: &Arc<Source>,
        policy: &'static str,
        header: &FrameHeader,
    ) -> Self {
        let &FrameHeader { sequence, ref trace, payload_bytes, accepted_at, captured_at } = header;
        let trace = telemetry.place(&trace.traceparent, &trace.tracestate);
        let progress = Progress::start(accepted_at);
        let record = FrameRecord {
            trace: trace.clone(),
            source: Arc::clone(source),
            sequence,
            outcome: FrameOutcome::Cancelled,
            progress: progress.clone(),
            // The wall-clock time of the acceptance, even when the account is opened later.
            accepted_at: SystemTime::now() - accepted_at.elapsed(),
            captured_at,
            payload_bytes,
            policy,
            classes: Vec::new(),
            target_layers: Vec::new(),
            agreement: None,
            batch: None,
        };
        FrameAccount { telemetry: telemetry.clone(), clock: Arc::clone(clock), record: Some(record), trace, progress }
    }

    pub(super) fn trace_id(&self) -> String {
        self.trace.trace_id.to_string()
    }

    /// The frame's stages; the engine goes on marking them.
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
        record.agreement = answer.agreement.map(|found| match found.agrees {
            true => Agreement::Agrees,
            false => Agreement::Disagrees,
        });
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
