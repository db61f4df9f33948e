//! A stream: one span for its life, with how its frames ended as events.

use std::time::SystemTime;

use opentelemetry::trace::{Event, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents};
use opentelemetry_semantic_conventions::attribute::{ERROR_TYPE, NETWORK_PEER_ADDRESS};

use super::{Place, integer, rpc};
use crate::telemetry::frame_record::status_name;
use crate::telemetry::stream_record::StreamRecord;

/// The name of the span.
pub const STREAM_SPAN: &str = "camlens.stream";

/// The span of a stream that has ended.
pub(in crate::telemetry) fn stream_span(record: &StreamRecord, scope: &InstrumentationScope) -> SpanData {
    let end = record.opened_at + record.lasted;
    let mut span = Place::of(&record.trace).span(SpanKind::Server, STREAM_SPAN, [record.opened_at, end], scope);
    span.attributes = attributes(record);
    span.events = events(record, end);
    let (code, message) = &record.status;
    if is_server_error(*code) {
        span.status = Status::error(message.clone());
    }
    span
}

fn attributes(record: &StreamRecord) -> Vec<KeyValue> {
    let StreamRecord { source, peer, status: (code, _), .. } = record;
    let mut attributes: Vec<_> = rpc(source.call, status_name(*code)).into();
    attributes.extend([
        KeyValue::new("camlens.stream.id", source.stream_id.clone()),
        KeyValue::new("camlens.model.name", source.model.clone()),
        KeyValue::new("camlens.model.version", source.version),
        KeyValue::new("camlens.stream.policy", record.policy),
    ]);
    if !source.name.is_empty() {
        attributes.push(KeyValue::new("camlens.stream.source", source.name.clone()));
    }
    if let Some(peer) = peer {
        attributes.push(KeyValue::new(NETWORK_PEER_ADDRESS, peer.to_string()));
    }
    if *code != 0 {
        attributes.push(KeyValue::new(ERROR_TYPE, status_name(*code)));
    }
    attributes
}

/// What happened to the stream, then what became of its frames.
fn events(record: &StreamRecord, end: SystemTime) -> SpanEvents {
    let mut events = SpanEvents::default();
    events.events = record
        .events
        .iter()
        .map(|event| {
            let detail = (!event.detail.is_empty()).then(|| KeyValue::new("camlens.detail", event.detail.clone()));
            Event::new(event.name, record.opened_at + event.after, detail.into_iter().collect(), 0)
        })
        .collect();
    events.events.extend(record.source.ended_frames().into_iter().map(|ended| {
        let mut attributes = vec![
            KeyValue::new("camlens.outcome", ended.outcome),
            KeyValue::new("camlens.frames", integer(ended.count)),
        ];
        if !ended.reason.is_empty() {
            attributes.push(KeyValue::new("camlens.reason", ended.reason));
        }
        Event::new("frames", end, attributes, 0)
    }));
    events.dropped_count = record.events.left_out;
    events
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

    use super::super::{attribute, scope};
    use super::*;
    use crate::telemetry::Sampling;
    use crate::telemetry::frame_record::FrameOutcome;
    use crate::telemetry::source::{Call, Source};
    use crate::telemetry::stream_record::{StreamEvent, StreamEvents};

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

    #[test]
    fn a_stream_is_summed_up_by_how_its_frames_ended() {
        let span = stream_span(&record((0, String::new())), &scope());
        assert_eq!(span.end_time.duration_since(span.start_time).ok(), Some(Duration::from_secs(3)));
        let events: Vec<String> = span
            .events
            .events
            .iter()
            .map(|event| {
                let values: Vec<String> = event.attributes.iter().map(|pair| pair.value.to_string()).collect();
                format!("{} {}", event.name, values.join(" "))
            })
            .collect();
        assert_eq!(events, ["draining the server is stopping", "frames dropped 3 replaced", "frames answered 1"]);
        assert_eq!(attribute(&span, "network.peer.address").as_deref(), Some("10.0.0.7"));
        assert_eq!((span.status.clone(), attribute(&span, "error.type")), (Status::Unset, None));
    }

    #[test]
    fn a_mistake_of_the_client_is_no_error_of_the_server() {
        let span = stream_span(&record((3, "open.model: there is no such model".to_owned())), &scope());
        assert_eq!(span.status, Status::Unset);
        assert_eq!(attribute(&span, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
        let span = stream_span(&record((13, "something broke".to_owned())), &scope());
        assert_eq!(span.status, Status::error("something broke"));
    }
}
