//! Records as OpenTelemetry spans, with their true times, under ids that were chosen when the recorded thing began.
//!
//! A tracer could do neither: it gives out its own ids, and it must decide at the start what is only known at the end.
//! The spans are written as the bytes that OTLP sends, without a form in between: a frame has fourteen, and at
//! thousands of frames a second the forms would cost more than everything else about them. The messages are those of
//! <https://github.com/open-telemetry/opentelemetry-proto>, `trace.proto`.

mod batch;
mod frame;
mod stream;
mod wire;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry::Value;
use opentelemetry_sdk::Resource;

use self::wire::Wire;
use super::ids::SpanReference;
use super::record::source::Call;
use super::sampling::FrameTrace;
use super::trace_context::{SpanId, TraceId};

pub use batch::BATCH_SPAN;
pub(super) use batch::batch_span;
pub use frame::FRAME_SPAN;
pub(super) use frame::frame_spans;
pub use stream::STREAM_SPAN;
pub(super) use stream::stream_span;

/// About the bytes of one frame's spans.
const FRAME_BYTES: usize = 2_000;
/// More than the bytes of the keys and lengths around them.
const LENGTHS: usize = 32;

/// Encoded spans of a message that is being built.
#[derive(Debug)]
pub(super) struct Spans(Wire);

impl Spans {
    pub(super) fn for_frames(frames: usize) -> Self {
        Spans(Wire::with_capacity(frames * FRAME_BYTES))
    }

    /// Writes one; `rest` adds what it has beside its name and times.
    fn span(
        &mut self,
        identity: &SpanIdentity<'_>,
        kind: Kind,
        name: &str,
        times: [SystemTime; 2],
        rest: impl FnOnce(&mut Span<'_>),
    ) {
        const SPANS: u32 = 2;
        self.0.message(SPANS, |wire| {
            wire.bytes(1, &identity.trace_id.bytes());
            wire.bytes(2, &identity.span_id.bytes());
            if !identity.trace_state.is_empty() {
                wire.text(3, identity.trace_state);
            }
            if let Some(parent) = identity.parent {
                wire.bytes(4, &parent.bytes());
            }
            wire.text(5, name);
            wire.varint(6, kind as u64);
            wire.fixed64(7, nanoseconds(times[0]));
            wire.fixed64(8, nanoseconds(times[1]));
            rest(&mut Span(wire));
            let remote = if identity.parent_is_remote { IS_REMOTE } else { 0 };
            wire.fixed32(16, SAMPLED | REMOTENESS_IS_KNOWN | remote);
        });
    }
}

/// The flag of exported spans: they were kept, even if they were not sampled when they began.
const SAMPLED: u32 = 0x001;
const REMOTENESS_IS_KNOWN: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// `Span.SpanKind`.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Internal = 1,
    Server = 2,
}

/// The identity of a span: its trace, its own id, its parent.
struct SpanIdentity<'a> {
    trace_id: TraceId,
    span_id: SpanId,
    trace_state: &'a str,
    parent: Option<SpanId>,
    parent_is_remote: bool,
}

impl<'a> SpanIdentity<'a> {
    /// A span that its trace names: a frame, a stream. `trace_state` is the trace's, as text.
    fn of(trace: &FrameTrace, trace_state: &'a str) -> Self {
        let FrameTrace { trace_id, span_id, parent_id, .. } = *trace;
        SpanIdentity { trace_id, span_id, trace_state, parent: parent_id, parent_is_remote: parent_id.is_some() }
    }

    /// A child of this span.
    fn child(&self, span_id: SpanId) -> Self {
        SpanIdentity { span_id, parent: Some(self.span_id), parent_is_remote: false, ..*self }
    }

    /// A trace of its own.
    fn root(SpanReference { trace_id, span_id }: SpanReference) -> Self {
        SpanIdentity { trace_id, span_id, trace_state: "", parent: None, parent_is_remote: false }
    }
}

/// What a span has beside its name and times.
struct Span<'w>(&'w mut Wire);

impl Span<'_> {
    fn attributes(&mut self) -> Attributes<'_> {
        Attributes { wire: self.0, field: 9 }
    }

    /// Something that happened while it lasted.
    fn event(&mut self, at: SystemTime, name: &str, rest: impl FnOnce(&mut Attributes<'_>)) {
        self.0.message(11, |wire| {
            wire.fixed64(1, nanoseconds(at));
            wire.text(2, name);
            rest(&mut Attributes { wire, field: 3 });
        });
    }

    fn dropped_events(&mut self, count: u32) {
        if count > 0 {
            self.0.varint(12, count.into());
        }
    }

    /// To a span of another trace; `relation` says why, as `camlens.link`.
    fn link(&mut self, to: SpanReference, relation: &str) {
        self.0.message(13, |wire| {
            wire.bytes(1, &to.trace_id.bytes());
            wire.bytes(2, &to.span_id.bytes());
            Attributes { wire, field: 4 }.text("camlens.link", relation);
            wire.fixed32(6, SAMPLED | REMOTENESS_IS_KNOWN);
        });
    }

    /// Its status: an error, for that reason.
    fn error(&mut self, message: &str) {
        const ERROR: u64 = 2;
        self.0.message(15, |wire| {
            wire.text(2, message);
            wire.varint(3, ERROR);
        });
    }
}

/// `KeyValue`s, in a field of the enclosing message.
struct Attributes<'w> {
    wire: &'w mut Wire,
    field: u32,
}

impl Attributes<'_> {
    fn text(&mut self, key: &str, value: &str) {
        self.pair(key, |any| any.text(1, value));
    }

    fn integer(&mut self, key: &str, value: i64) {
        self.pair(key, |any| write_integer(any, value));
    }

    /// OpenTelemetry has no unsigned attribute; what lies beyond 2^63 is shown as the largest there is.
    fn count(&mut self, key: &str, value: u64) {
        self.integer(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    fn texts(&mut self, key: &str, values: impl IntoIterator<Item = impl AsRef<str>>) {
        self.array(key, values, |any, value| any.text(1, value.as_ref()));
    }

    fn integers(&mut self, key: &str, values: impl IntoIterator<Item = i64>) {
        self.array(key, values, write_integer);
    }

    fn array<T>(&mut self, key: &str, values: impl IntoIterator<Item = T>, write: impl Fn(&mut Wire, T)) {
        self.pair(key, |any| {
            any.message(5, |array| {
                for value in values {
                    array.message(1, |any| write(any, value));
                }
            });
        });
    }

    /// Which call it was, as the conventions for RPC have it.
    fn rpc(&mut self, call: Call, status: &'static str) {
        use opentelemetry_semantic_conventions::attribute;
        self.text(attribute::RPC_SYSTEM_NAME, "grpc");
        self.text(attribute::RPC_METHOD, call.method());
        self.text(attribute::RPC_RESPONSE_STATUS_CODE, status);
    }

    fn pair(&mut self, key: &str, write: impl FnOnce(&mut Wire)) {
        self.wire.message(self.field, |pair| {
            pair.text(1, key);
            pair.message(2, write);
        });
    }
}

/// As an `AnyValue`.
fn write_integer(any: &mut Wire, value: i64) {
    any.varint(3, value.cast_unsigned());
}

/// Since 1970; 0 for what was before.
fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The part of every message around its spans: the resource and the instrumentation scope.
#[derive(Debug)]
pub(super) struct Envelope {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(resource: &Resource) -> Self {
        let mut whose = Wire::default();
        whose.message(1, |wire| {
            let mut attributes = Attributes { wire, field: 1 };
            for (key, value) in resource {
                match value {
                    Value::I64(number) => attributes.integer(key.as_str(), *number),
                    // All the others of ours are text; what the environment adds is, too.
                    other => attributes.text(key.as_str(), &other.as_str()),
                }
            }
        });
        let mut who = Wire::default();
        who.message(1, |scope| {
            scope.text(1, "camlens");
            scope.text(2, env!("CARGO_PKG_VERSION"));
        });
        Envelope { resource: whose.into_bytes(), scope: who.into_bytes() }
    }

    /// An `ExportTraceServiceRequest`.
    pub(super) fn around(&self, spans: Spans) -> Bytes {
        let spans = spans.0.as_bytes();
        let mut wire = Wire::with_capacity(self.resource.len() + self.scope.len() + spans.len() + LENGTHS);
        wire.message(1, |wire| {
            wire.raw(&self.resource);
            wire.message(2, |wire| {
                wire.raw(&self.scope);
                wire.raw(spans);
            });
        });
        wire.into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
    pub(super) use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message as _;

    use super::*;

    fn read(message: Bytes) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(message).expect("what a collector reads")
    }

    /// The spans as a collector reads them.
    pub(super) fn written(write: impl FnOnce(&mut Spans)) -> Vec<Span> {
        let mut spans = Spans::for_frames(1);
        write(&mut spans);
        let request = read(Envelope::new(&Resource::builder_empty().build()).around(spans));
        request.resource_spans.into_iter().flat_map(|all| all.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// As text: `[1,2]` for a list.
    pub(super) fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
        let pair = attributes.iter().find(|pair| pair.key == key)?;
        Some(text(pair.value.as_ref()?.value.as_ref().expect("each has a value")))
    }

    fn text(value: &AnyValue) -> String {
        match value {
            AnyValue::StringValue(text) => text.clone(),
            AnyValue::IntValue(number) => number.to_string(),
            AnyValue::ArrayValue(array) => {
                let values = array.values.iter().filter_map(|any| any.value.as_ref());
                format!("[{}]", values.map(text).collect::<Vec<_>>().join(","))
            }
            other => panic!("{other:?} is not written here"),
        }
    }

    #[test]
    fn a_message_says_whose_the_spans_are_and_who_measured() {
        let resource = Resource::builder_empty()
            .with_attributes([opentelemetry::KeyValue::new("process.pid", 7), opentelemetry::KeyValue::new("a", "b")])
            .build();
        let request = read(Envelope::new(&resource).around(Spans::for_frames(0)));
        let [whose] = &request.resource_spans[..] else { panic!("one resource") };
        let attributes = &whose.resource.as_ref().expect("a resource").attributes;
        assert_eq!(value(attributes, "process.pid").as_deref(), Some("7"));
        assert_eq!(value(attributes, "a").as_deref(), Some("b"));
        let scope = whose.scope_spans[0].scope.as_ref().expect("a scope");
        assert_eq!((scope.name.as_str(), scope.version.as_str()), ("camlens", env!("CARGO_PKG_VERSION")));
    }
}
