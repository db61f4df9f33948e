//! A frame: one span for its whole time, and under it one for each stage.

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanLinks};
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::{Place, integer, links, rpc};
use crate::telemetry::frame_record::{FrameOutcome, FrameRecord};
use crate::telemetry::sampling::new_span_id;

/// The name of the span that stands for the whole frame.
pub const FRAME_SPAN: &str = "camlens.frame";

/// Puts the spans of a frame `into`, its stages first.
pub(in crate::telemetry) fn frame_spans(record: &FrameRecord, scope: &InstrumentationScope, into: &mut Vec<SpanData>) {
    let place = Place::of(&record.trace);
    let total = record.progress.with_timings(|timings| {
        into.extend(timings.stages().iter().map(|timing| {
            let start = record.accepted_at + timing.start;
            let times = [start, start + timing.duration];
            place.child(new_span_id()).span(SpanKind::Internal, timing.stage.name(), times, scope)
        }));
        timings.total()
    });
    let mut whole = place.span(SpanKind::Server, FRAME_SPAN, [record.accepted_at, record.accepted_at + total], scope);
    whole.attributes = attributes(record);
    whole.links = frame_links(record);
    whole.status = status(&record.outcome);
    into.push(whole);
}

fn attributes(record: &FrameRecord) -> Vec<KeyValue> {
    let FrameRecord { source, outcome, .. } = record;
    let mut attributes = Vec::with_capacity(16);
    attributes.extend(rpc(source.call, outcome.status()));
    attributes.extend([
        KeyValue::new("camlens.outcome", outcome.name()),
        KeyValue::new("camlens.model.name", source.model.clone()),
        KeyValue::new("camlens.model.version", source.version),
        KeyValue::new("camlens.frame.sequence", integer(record.sequence)),
        KeyValue::new("camlens.frame.payload.size", integer(record.payload_bytes)),
    ]);
    if !source.stream_id.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.id", source.stream_id.clone()));
    }
    if !source.name.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.source", source.name.clone()));
    }
    if !record.policy.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.policy", record.policy));
    }
    if let Some((rows, _)) = record.batch {
        attributes.push(KeyValue::new("camlens.batch.size", i64::from(rows)));
    }
    if !record.classes.is_empty() {
        let classes = record.classes.iter().map(|&class| i64::from(class)).collect();
        attributes.push(KeyValue::new("camlens.target.classes", Value::Array(Array::I64(classes))));
    }
    if !record.target_layers.is_empty() {
        let layers = record.target_layers.iter().map(|layer| StringValue::from(layer.clone())).collect();
        attributes.push(KeyValue::new("camlens.target.layers", Value::Array(Array::String(layers))));
    }
    match outcome {
        FrameOutcome::Dropped { reason, .. } => attributes.push(KeyValue::new("camlens.drop.reason", *reason)),
        FrameOutcome::Failed { .. } => attributes.push(KeyValue::new(ERROR_TYPE, outcome.status())),
        FrameOutcome::Answered | FrameOutcome::Cancelled => {}
    }
    attributes
}

/// To the stream, unless the frame belongs to its client's trace; and to the batch.
fn frame_links(record: &FrameRecord) -> SpanLinks {
    let stream = record.source.span.filter(|_| record.trace.parent_id.is_none());
    let mut all = links(stream, "stream");
    all.links.extend(links(record.batch.map(|(_, span)| span), "batch").links);
    all
}

/// Only a failure is an error: a frame that a newer one replaced ended as it should.
fn status(outcome: &FrameOutcome) -> Status {
    match outcome {
        FrameOutcome::Failed { message, .. } => Status::error(message.clone()),
        FrameOutcome::Answered | FrameOutcome::Dropped { .. } | FrameOutcome::Cancelled => Status::Unset,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant, SystemTime};

    use opentelemetry::trace::SpanId;

    use super::super::{attribute, scope};
    use super::*;
    use crate::telemetry::batch_record::SpanReference;
    use crate::telemetry::source::{Call, Source};
    use crate::telemetry::{Progress, Sampling, Stage};

    fn record(outcome: FrameOutcome, traceparent: &str) -> FrameRecord {
        let accepted = Instant::now();
        let progress = Progress::start(accepted);
        progress.mark(Stage::Receive, accepted + Duration::from_millis(1));
        progress.mark(Stage::Queue, accepted + Duration::from_millis(4));
        let stream = Some(SpanReference::new_root());
        FrameRecord {
            trace: Sampling::ratio(1.0).place(traceparent, "k@s=v,b=1"),
            source: Arc::new(Source::new(Call::ExplainStream, "s-1".into(), String::new(), ("lite0", 3), stream, None)),
            sequence: u64::MAX,
            outcome,
            progress,
            accepted_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            payload_bytes: 12,
            policy: "latest",
            classes: vec![282, 281],
            target_layers: vec!["head".into()],
            batch: None,
        }
    }

    fn spans(record: &FrameRecord) -> Vec<SpanData> {
        let mut spans = Vec::new();
        frame_spans(record, &scope(), &mut spans);
        spans
    }

    /// The frame's own span.
    fn whole(record: &FrameRecord) -> SpanData {
        spans(record).pop().expect("it is the last one")
    }

    #[test]
    fn stages_are_children_of_the_frame_and_fill_its_time() {
        let record = record(FrameOutcome::Answered, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let spans = spans(&record);
        let [receive, queue, frame] = &spans[..] else { panic!("a frame and two stages, not {}", spans.len()) };
        assert_eq!(frame.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert!(frame.parent_span_is_remote);
        assert!(frame.links.links.is_empty(), "it belongs to its client's trace");
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
    fn a_frame_with_a_trace_of_its_own_is_linked_to_its_stream_and_its_batch() {
        let batch = SpanReference::new_root();
        let record = FrameRecord { batch: Some((4, batch)), ..record(FrameOutcome::Answered, "") };
        let frame = &whole(&record);
        let linked: Vec<_> = frame.links.links.iter().map(|link| link.span_context.span_id().to_string()).collect();
        let stream = record.source.span.expect("a stream");
        assert_eq!(linked, [stream.span_id.to_string(), batch.span_id.to_string()]);
        assert_eq!(frame.parent_span_id, SpanId::INVALID);
        assert_eq!(attribute(frame, "camlens.batch.size").as_deref(), Some("4"));
        assert_eq!(attribute(frame, "camlens.target.classes").as_deref(), Some("[282,281]"));
    }

    #[test]
    fn only_a_failure_is_an_error() {
        let failed = FrameOutcome::Failed { code: 3, message: "frame.encoded: not an image".to_owned() };
        let failed = &whole(&record(failed, ""));
        assert_eq!(failed.status, Status::error("frame.encoded: not an image"));
        assert_eq!(attribute(failed, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        assert_eq!(attribute(failed, "rpc.response.status_code").as_deref(), Some("INVALID_ARGUMENT"));
        let dropped = FrameOutcome::Dropped { reason: "replaced", code: 10 };
        let dropped = &whole(&record(dropped, ""));
        assert_eq!(dropped.status, Status::Unset);
        assert_eq!(attribute(dropped, "camlens.drop.reason").as_deref(), Some("replaced"));
        assert_eq!(attribute(dropped, "rpc.response.status_code").as_deref(), Some("ABORTED"));
        assert_eq!(attribute(dropped, "error.type"), None);
    }

    #[test]
    fn what_is_unknown_is_left_out_and_what_is_too_large_is_cut() {
        let frame = &whole(&record(FrameOutcome::Cancelled, ""));
        assert_eq!(attribute(frame, "camlens.batch.size"), None);
        assert_eq!(attribute(frame, "camlens.stream.source"), None);
        assert_eq!(attribute(frame, "camlens.frame.sequence"), Some(i64::MAX.to_string()));
    }
}
