//! Records as OpenTelemetry spans, with their true times, under ids settled when what they tell of began.
//!
//! A tracer could do neither: it gives out its own ids, and it must decide at the start what is only known at the end.

mod batch;
mod frame;
mod stream;

use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::batch_record::SpanReference;
use super::sampling::FrameTrace;
use super::trace_context;

pub use batch::BATCH_SPAN;
pub(super) use batch::batch_span;
pub use frame::FRAME_SPAN;
pub(super) use frame::frame_spans;
pub use stream::STREAM_SPAN;
pub(super) use stream::stream_span;

/// Who measured: the scope of every span.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("camlens").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// Where a span stands: its trace, its own id, its parent.
struct Place {
    context: SpanContext,
    parent: SpanId,
    parent_is_remote: bool,
}

impl Place {
    /// A span that its trace names: a frame, a stream.
    fn of(trace: &FrameTrace) -> Self {
        Place {
            context: context(trace.trace_id, trace.span_id, trace_state(&trace.trace_state)),
            parent: trace.parent_id.map_or(SpanId::INVALID, span_id),
            parent_is_remote: trace.parent_id.is_some(),
        }
    }

    /// A part of the span at this place.
    fn child(&self, id: trace_context::SpanId) -> Self {
        let state = self.context.trace_state().clone();
        let context = SpanContext::new(self.context.trace_id(), span_id(id), TraceFlags::SAMPLED, false, state);
        Place { context, parent: self.context.span_id(), parent_is_remote: false }
    }

    /// A trace of its own.
    fn root(span: SpanReference) -> Self {
        Place {
            context: context(span.trace_id, span.span_id, TraceState::default()),
            parent: SpanId::INVALID,
            parent_is_remote: false,
        }
    }

    fn span(
        self,
        kind: SpanKind,
        name: &'static str,
        times: [SystemTime; 2],
        scope: &InstrumentationScope,
    ) -> SpanData {
        SpanData {
            span_context: self.context,
            parent_span_id: self.parent,
            parent_span_is_remote: self.parent_is_remote,
            span_kind: kind,
            name: name.into(),
            start_time: times[0],
            end_time: times[1],
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: scope.clone(),
        }
    }
}

/// What is exported was kept, whatever was thought of it when it began: its flag says so.
fn context(trace: trace_context::TraceId, span: trace_context::SpanId, state: TraceState) -> SpanContext {
    SpanContext::new(TraceId::from_bytes(trace.bytes()), span_id(span), TraceFlags::SAMPLED, false, state)
}

fn span_id(id: trace_context::SpanId) -> SpanId {
    SpanId::from_bytes(id.bytes())
}

/// Ours is the stricter grammar: what it has read, OpenTelemetry takes.
fn trace_state(state: &trace_context::TraceState) -> TraceState {
    let members = state.members().iter().map(|(key, value)| (key.as_str(), value.as_str()));
    TraceState::from_key_value(members).unwrap_or_default()
}

/// Links to spans of other traces; `relation` says why, as `camlens.link`.
fn links(spans: impl IntoIterator<Item = SpanReference>, relation: &'static str) -> SpanLinks {
    let mut links = SpanLinks::default();
    links.links = spans
        .into_iter()
        .map(|span| {
            let context = context(span.trace_id, span.span_id, TraceState::default());
            Link::new(context, vec![KeyValue::new("camlens.link", relation)], 0)
        })
        .collect();
    links
}

/// Which call it was, as the conventions for RPC have it.
fn rpc(call: super::source::Call, status: &'static str) -> [KeyValue; 3] {
    use opentelemetry_semantic_conventions::attribute;
    [
        KeyValue::new(attribute::RPC_SYSTEM_NAME, "grpc"),
        KeyValue::new(attribute::RPC_METHOD, call.method()),
        KeyValue::new(attribute::RPC_RESPONSE_STATUS_CODE, status),
    ]
}

/// OpenTelemetry has no unsigned attribute; what lies beyond 2^63 is shown as the largest there is.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}
