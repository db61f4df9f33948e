//! A stream: one span for its life, with how its frames ended as events.

use std::time::SystemTime;

use opentelemetry_semantic_conventions::attribute::{ERROR_TYPE, NETWORK_PEER_ADDRESS};

use super::{Attributes, Kind, Span, SpanIdentity, Spans};
use crate::telemetry::record::outcome::status_name;
use crate::telemetry::record::stream::StreamRecord;

/// The name of the span.
pub const STREAM_SPAN: &str = "camlens.stream";

/// Writes the span of a stream that has ended.
pub(in crate::telemetry) fn stream_span(record: &StreamRecord, into: &mut Spans) {
    let end = record.opened_at + record.lasted;
    let trace_state = record.trace.trace_state.to_string();
    let identity = SpanIdentity::of(&record.trace, &trace_state);
    into.span(&identity, Kind::Server, STREAM_SPAN, [record.opened_at, end], |span| {
        write_attributes(record, &mut span.attributes());
        write_events(record, end, span);
        let (code, message) = &record.status;
        if is_server_error(*code) {
            span.error(message);
        }
    });
}

fn write_attributes(record: &StreamRecord, attributes: &mut Attributes<'_>) {
    let StreamRecord { source, peer, status: (code, _), .. } = record;
    attributes.rpc(source.call, status_name(*code));
    attributes.text("camlens.stream.id", &source.stream_id);
    attributes.text("camlens.model.name", &source.model);
    attributes.integer("camlens.model.version", source.version);
    attributes.text("camlens.stream.policy", record.policy);
    if !source.name.is_empty() {
        attributes.text("camlens.stream.source", &source.name);
    }
    if let Some(peer) = peer {
        attributes.text(NETWORK_PEER_ADDRESS, &peer.to_string());
    }
    if *code != 0 {
        attributes.text(ERROR_TYPE, status_name(*code));
    }
}

/// What happened to the stream, then what became of its frames.
fn write_events(record: &StreamRecord, end: SystemTime, span: &mut Span<'_>) {
    for event in record.events.iter() {
        span.event(record.opened_at + event.after, event.name, |attributes| {
            if !event.detail.is_empty() {
                attributes.text("camlens.detail", &event.detail);
            }
        });
    }
    for ended in record.source.ended_frames() {
        span.event(end, "frames", |attributes| {
            attributes.text("camlens.outcome", ended.outcome);
            attributes.count("camlens.frames", ended.count);
            if !ended.reason.is_empty() {
                attributes.text("camlens.reason", ended.reason);
            }
        });
    }
    span.dropped_events(record.events.left_out);
}

/// The codes by which a server says that it is the one to blame, after the conventions for gRPC.
fn is_server_error(code: i32) -> bool {
    matches!(
        status_name(code),
        "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

    use super::super::tests::{Span, value, written};
    use super::*;
    use crate::telemetry::Sampling;
    use crate::telemetry::record::outcome::FrameOutcome;
    use crate::telemetry::record::source::{Call, Source};
    use crate::telemetry::record::stream::{StreamEvent, StreamEvents};

    fn record(status: (i32, String)) -> StreamRecord {
        let trace = Sampling::ratio(1.0).place("", "");
        let source = Source::new(Call::ExplainStream, "s-1".into(), "gate 7".into(), ("lite0", 1), None, None);
        for _ in 0..3 {
            source.count(&FrameOutcome::Dropped { reason: "replaced", code: 10 });
        }
        source.count(&FrameOutcome::Answered);
        let mut events = StreamEvents::default();
        let after = Duration::from_secs(2);
        events.push(StreamEvent { after, name: "draining", detail: "the server is stopping".to_owned() });
        StreamRecord {
            trace,
            source: Arc::new(source),
            opened_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            lasted: Duration::from_secs(3),
            peer: Some([10, 0, 0, 7].into()),
            policy: "latest",
            status,
            events,
        }
    }

    fn span(status: (i32, String)) -> Span {
        let mut spans = written(|into| stream_span(&record(status), into));
        assert_eq!(spans.len(), 1);
        spans.remove(0)
    }

    #[test]
    fn a_stream_is_summed_up_by_how_its_frames_ended() {
        let span = span((0, String::new()));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000_000_000, 1_003_000_000_000));
        let keys = ["camlens.detail", "camlens.outcome", "camlens.frames", "camlens.reason"];
        let events: Vec<String> = span
            .events
            .iter()
            .map(|event| {
                let values: Vec<String> = keys.iter().filter_map(|key| value(&event.attributes, key)).collect();
                format!("{} {}", event.name, values.join(" "))
            })
            .collect();
        assert_eq!(events, ["draining the server is stopping", "frames dropped 3 replaced", "frames answered 1"]);
        assert_eq!(span.events[0].time_unix_nano, 1_002_000_000_000);
        assert_eq!(value(&span.attributes, "network.peer.address").as_deref(), Some("10.0.0.7"));
        assert_eq!((span.status, value(&span.attributes, "error.type")), (None, None));
    }

    #[test]
    fn a_mistake_of_the_client_is_no_error_of_the_server() {
        let mistake = span((3, "open.model: there is no such model".to_owned()));
        assert_eq!(mistake.status, None);
        assert_eq!(value(&mistake.attributes, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        let status = span((13, "something broke".to_owned())).status.expect("a status");
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "something broke"));
    }
}
