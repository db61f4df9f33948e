//! A frame: one span for its whole time, and under it one for each stage.

use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::{Attributes, Kind, Span, SpanIdentity, Spans};
use crate::telemetry::ids::new_span_id;
use crate::telemetry::record::frame::FrameRecord;
use crate::telemetry::record::outcome::FrameOutcome;

/// The name of the span that stands for the whole frame.
pub const FRAME_SPAN: &str = "camlens.frame";

/// Writes the spans of a frame, its stages first.
pub(in crate::telemetry) fn frame_spans(record: &FrameRecord, into: &mut Spans) {
    let trace_state = record.trace.trace_state.to_string();
    let identity = SpanIdentity::of(&record.trace, &trace_state);
    let total = record.progress.with_timings(|timings| {
        for timing in timings.stages() {
            let start = record.accepted_at + timing.start;
            let times = [start, start + timing.duration];
            into.span(&identity.child(new_span_id()), Kind::Internal, timing.stage.name(), times, |_| {});
        }
        timings.total()
    });
    into.span(&identity, Kind::Server, FRAME_SPAN, [record.accepted_at, record.accepted_at + total], |span| {
        write_attributes(record, &mut span.attributes());
        write_links(record, span);
        // Only a failure is an error: a frame that a newer one replaced ended as it should.
        if let FrameOutcome::Failed { message, .. } = &record.outcome {
            span.error(message);
        }
    });
}

fn write_attributes(record: &FrameRecord, attributes: &mut Attributes<'_>) {
    let FrameRecord { source, outcome, .. } = record;
    attributes.rpc(source.call, outcome.status());
    attributes.text("camlens.outcome", outcome.name());
    attributes.text("camlens.model.name", &source.model);
    attributes.integer("camlens.model.version", source.version);
    attributes.count("camlens.frame.sequence", record.sequence);
    attributes.count("camlens.frame.payload.size", record.payload_bytes);
    if !source.stream_id.is_empty() {
        attributes.text("camlens.stream.id", &source.stream_id);
    }
    if !source.name.is_empty() {
        attributes.text("camlens.stream.source", &source.name);
    }
    if !record.policy.is_empty() {
        attributes.text("camlens.stream.policy", record.policy);
    }
    if let Some((rows, _)) = record.batch {
        attributes.integer("camlens.batch.size", rows.into());
    }
    if !record.classes.is_empty() {
        attributes.integers("camlens.target.classes", record.classes.iter().map(|&class| class.into()));
    }
    if !record.target_layers.is_empty() {
        attributes.texts("camlens.target.layers", &record.target_layers);
    }
    if let Some(agreement) = record.agreement {
        attributes.text("camlens.agreement", agreement.name());
    }
    match outcome {
        FrameOutcome::Dropped { reason, .. } => attributes.text("camlens.drop.reason", reason),
        FrameOutcome::Failed { .. } => attributes.text(ERROR_TYPE, outcome.status()),
        FrameOutcome::Answered | FrameOutcome::Cancelled => {}
    }
}

/// To the stream, unless the frame belongs to its client's trace; and to the batch.
fn write_links(record: &FrameRecord, span: &mut Span<'_>) {
    if let Some(stream) = record.source.span
        && record.trace.parent_id.is_none()
    {
        span.link(stream, "stream");
    }
    if let Some((_, batch)) = record.batch {
        span.link(batch, "batch");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant, SystemTime};

    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

    use super::super::tests::{Span, value, written};
    use super::*;
    use crate::telemetry::ids::SpanReference;
    use crate::telemetry::record::source::{Call, Source};
    use crate::telemetry::{Agreement, Progress, Sampling, Stage};

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
            captured_at: None,
            payload_bytes: 12,
            policy: "latest",
            classes: vec![282, 281],
            target_layers: vec!["head".into()],
            agreement: Some(Agreement::Disagrees),
            batch: None,
        }
    }

    fn spans(record: &FrameRecord) -> Vec<Span> {
        written(|into| frame_spans(record, into))
    }

    /// The frame's own span.
    fn whole(record: &FrameRecord) -> Span {
        spans(record).pop().expect("it is the last one")
    }

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn stages_are_children_of_the_frame_and_fill_its_time() {
        let record = record(FrameOutcome::Answered, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let spans = spans(&record);
        let [receive, queue, frame] = &spans[..] else { panic!("a frame and two stages, not {}", spans.len()) };
        assert_eq!(hexadecimal(&frame.parent_span_id), "00f067aa0ba902b7");
        assert_eq!(frame.flags, 0x301, "sampled, and the parent is remote");
        assert!(frame.links.is_empty(), "it belongs to its client's trace");
        assert_eq!((receive.name.as_str(), queue.name.as_str()), ("receive", "queue"));
        assert_eq!(receive.start_time_unix_nano, frame.start_time_unix_nano);
        assert_eq!(queue.start_time_unix_nano, receive.end_time_unix_nano);
        assert_eq!(queue.end_time_unix_nano, frame.end_time_unix_nano);
        assert_eq!((frame.start_time_unix_nano, frame.end_time_unix_nano), (1_000_000_000_000, 1_000_004_000_000));
        assert_eq!((receive.kind(), frame.kind()), (SpanKind::Internal, SpanKind::Server));
        for span in [receive, queue] {
            assert_eq!(span.parent_span_id, frame.span_id);
            assert_eq!(hexadecimal(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(span.trace_state, "k@s=v,b=1");
            assert_eq!(span.flags, 0x101, "sampled, and the parent is here");
            assert_ne!(span.span_id, frame.span_id);
        }
        assert_ne!(receive.span_id, queue.span_id);
    }

    #[test]
    fn a_frame_with_a_trace_of_its_own_is_linked_to_its_stream_and_its_batch() {
        let batch = SpanReference::new_root();
        let record = FrameRecord { batch: Some((4, batch)), ..record(FrameOutcome::Answered, "") };
        let frame = &whole(&record);
        let linked: Vec<_> = frame.links.iter().map(|link| link.span_id.as_slice()).collect();
        let stream = record.source.span.expect("a stream");
        assert_eq!(linked, [stream.span_id.bytes(), batch.span_id.bytes()]);
        let why: Vec<_> = frame.links.iter().filter_map(|link| value(&link.attributes, "camlens.link")).collect();
        assert_eq!(why, ["stream", "batch"]);
        assert!(frame.parent_span_id.is_empty());
        assert_eq!(value(&frame.attributes, "camlens.batch.size").as_deref(), Some("4"));
        assert_eq!(value(&frame.attributes, "camlens.agreement").as_deref(), Some("disagrees"));
        assert_eq!(value(&frame.attributes, "camlens.target.classes").as_deref(), Some("[282,281]"));
        assert_eq!(value(&frame.attributes, "camlens.target.layers").as_deref(), Some("[head]"));
    }

    #[test]
    fn only_a_failure_is_an_error() {
        let failed = FrameOutcome::Failed { code: 3, message: "frame.encoded: not an image".to_owned() };
        let failed = &whole(&record(failed, ""));
        let status = failed.status.as_ref().expect("a status");
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "frame.encoded: not an image"));
        assert_eq!(value(&failed.attributes, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        assert_eq!(value(&failed.attributes, "rpc.response.status_code").as_deref(), Some("INVALID_ARGUMENT"));
        let dropped = FrameOutcome::Dropped { reason: "replaced", code: 10 };
        let dropped = &whole(&record(dropped, ""));
        assert_eq!(dropped.status, None);
        assert_eq!(value(&dropped.attributes, "camlens.drop.reason").as_deref(), Some("replaced"));
        assert_eq!(value(&dropped.attributes, "rpc.response.status_code").as_deref(), Some("ABORTED"));
        assert_eq!(value(&dropped.attributes, "error.type"), None);
    }

    #[test]
    fn what_is_unknown_is_left_out_and_what_is_too_large_is_cut() {
        let frame = &whole(&record(FrameOutcome::Cancelled, ""));
        assert_eq!(value(&frame.attributes, "camlens.batch.size"), None);
        assert_eq!(value(&frame.attributes, "camlens.stream.source"), None);
        assert_eq!(value(&frame.attributes, "camlens.frame.sequence"), Some(i64::MAX.to_string()));
    }
}
