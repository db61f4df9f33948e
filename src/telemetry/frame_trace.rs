//! A frame's record as OpenTelemetry spans: the frame, and under it one span per stage, with their true times.
//!
//! The spans are built when the frame has ended, under ids settled when it was accepted. A tracer could do neither:
//! it gives out its own ids, and it must decide at the start what is only known at the end.

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::frame_record::{FrameOutcome, FrameRecord, status_name};
use super::sampling::{FrameTrace, new_span_id};
use super::trace_context;

/// The name of the span that stands for the whole frame.
pub const FRAME_SPAN: &str = "camlens.frame";

/// Who measured: the scope of every span.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("camlens").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// The spans of one frame, the frame's own first.
pub fn spans(record: &FrameRecord, scope: &InstrumentationScope) -> Vec<SpanData> {
    let trace = &record.trace;
    let state = trace_state(&trace.trace_state);
    let stages = record.timings.stages();
    let mut spans = Vec::with_capacity(1 + stages.len());
    spans.push(SpanData {
        span_context: context(trace, trace.span_id, state.clone()),
        parent_span_id: trace.parent_id.map_or(SpanId::INVALID, span_id),
        parent_span_is_remote: trace.parent_id.is_some(),
        span_kind: SpanKind::Server,
        name: FRAME_SPAN.into(),
        start_time: record.accepted_at,
        end_time: record.accepted_at + record.timings.total(),
        attributes: attributes(record),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status(&record.outcome),
        instrumentation_scope: scope.clone(),
    });
    spans.extend(stages.iter().map(|timing| SpanData {
        span_context: context(trace, new_span_id(), state.clone()),
        parent_span_id: span_id(trace.span_id),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: timing.stage.name().into(),
        start_time: record.accepted_at + timing.start,
        end_time: record.accepted_at + timing.start + timing.duration,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    }));
    spans
}

fn attributes(record: &FrameRecord) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("camlens.outcome", record.outcome.name()),
        KeyValue::new("camlens.model.name", record.model.clone()),
        KeyValue::new("camlens.model.version", record.version),
        // OpenTelemetry has no unsigned attribute; a sequence beyond 2^63 is shown as the largest there is.
        KeyValue::new("camlens.frame.sequence", i64::try_from(record.sequence).unwrap_or(i64::MAX)),
    ];
    if !record.stream_id.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.id", record.stream_id.clone()));
    }
    if !record.source.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.source", record.source.clone()));
    }
    if record.batch_size > 0 {
        attributes.push(KeyValue::new("camlens.batch.size", i64::from(record.batch_size)));
    }
    match &record.outcome {
        FrameOutcome::Dropped { reason } => attributes.push(KeyValue::new("camlens.drop.reason", *reason)),
        FrameOutcome::Failed { code, .. } => {
            attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(*code)));
            attributes.push(KeyValue::new("error.type", status_name(*code)));
        }
        FrameOutcome::Answered | FrameOutcome::Cancelled => {}
    }
    attributes
}

/// Only a failure is an error: a frame that a newer one replaced ended as it should.
fn status(outcome: &FrameOutcome) -> Status {
    match outcome {
        FrameOutcome::Failed { message, .. } => Status::error(message.clone()),
        FrameOutcome::Answered | FrameOutcome::Dropped { .. } | FrameOutcome::Cancelled => Status::Unset,
    }
}

fn context(trace: &FrameTrace, span: trace_context::SpanId, state: TraceState) -> SpanContext {
    let trace_id = TraceId::from_bytes(trace.trace_id.bytes());
    SpanContext::new(trace_id, span_id(span), TraceFlags::new(trace.flags.byte()), false, state)
}

fn span_id(id: trace_context::SpanId) -> SpanId {
    SpanId::from_bytes(id.bytes())
}

/// Ours is the stricter grammar: what it has read, OpenTelemetry takes.
fn trace_state(state: &trace_context::TraceState) -> TraceState {
    let members = state.members().iter().map(|(key, value)| (key.as_str(), value.as_str()));
    TraceState::from_key_value(members).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::telemetry::{Sampling, Stage, Timings};

    fn record(outcome: FrameOutcome, traceparent: &str) -> FrameRecord {
        let accepted = Instant::now();
        let mut timings = Timings::start(accepted);
        timings.mark(Stage::Receive, accepted + Duration::from_millis(1));
        timings.mark(Stage::Queue, accepted + Duration::from_millis(4));
        FrameRecord {
            trace: Sampling::ratio(1.0).place(traceparent, "k@s=v,b=1"),
            stream_id: "s-1".into(),
            source: "".into(),
            sequence: u64::MAX,
            model: "lite0".into(),
            version: 3,
            outcome,
            timings,
            accepted_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            batch_size: 0,
        }
    }

    fn attribute(span: &SpanData, key: &str) -> Option<String> {
        span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
    }

    #[test]
    fn stages_are_children_of_the_frame_and_fill_its_time() {
        let record = record(FrameOutcome::Answered, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let spans = spans(&record, &scope());
        let [frame, receive, queue] = &spans[..] else { panic!("a frame and two stages, not {}", spans.len()) };
        assert_eq!(frame.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert!(frame.parent_span_is_remote);
        assert_eq!((receive.name.as_ref(), queue.name.as_ref()), ("receive", "queue"));
        assert_eq!(receive.start_time, frame.start_time);
        assert_eq!(queue.start_time, receive.end_time);
        assert_eq!(queue.end_time, frame.end_time);
        assert_eq!(frame.end_time.duration_since(frame.start_time).ok(), Some(Duration::from_millis(4)));
        for span in [receive, queue] {
            assert_eq!(span.parent_span_id, frame.span_context.span_id());
            assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(span.span_context.trace_state().header(), "k@s=v,b=1");
            assert_ne!(span.span_context.span_id(), frame.span_context.span_id());
        }
    }

    #[test]
    fn only_a_failure_is_an_error() {
        let failed = FrameOutcome::Failed { code: 3, message: "frame.encoded: not an image".to_owned() };
        let failed = &spans(&record(failed, ""), &scope())[0];
        assert_eq!(failed.status, Status::error("frame.encoded: not an image"));
        assert_eq!(attribute(failed, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        let dropped = &spans(&record(FrameOutcome::Dropped { reason: "replaced" }, ""), &scope())[0];
        assert_eq!(dropped.status, Status::Unset);
        assert_eq!(attribute(dropped, "camlens.drop.reason").as_deref(), Some("replaced"));
        assert_eq!(attribute(dropped, "error.type"), None);
    }

    #[test]
    fn what_is_unknown_is_left_out_and_what_is_too_large_is_cut() {
        let frame = &spans(&record(FrameOutcome::Cancelled, ""), &scope())[0];
        assert_eq!(attribute(frame, "camlens.batch.size"), None);
        assert_eq!(attribute(frame, "camlens.stream.source"), None);
        assert_eq!(attribute(frame, "camlens.frame.sequence"), Some(i64::MAX.to_string()));
        assert_eq!(frame.parent_span_id, SpanId::INVALID);
    }
}
