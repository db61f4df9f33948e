//! New trace and span ids, and references to spans.

use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};

use super::trace_context::{SpanId, TraceId};

/// A span in another trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanReference {
    pub trace_id: TraceId,
    pub span_id: SpanId,
}

impl SpanReference {
    /// The root of a trace of its own.
    pub(in crate::telemetry) fn new_root() -> Self {
        SpanReference { trace_id: new_trace_id(), span_id: new_span_id() }
    }
}

/// The generator's ids are zero once in 2^128; then another is drawn.
pub(super) fn new_trace_id() -> TraceId {
    loop {
        if let Some(id) = TraceId::new(RandomIdGenerator::default().new_trace_id().to_bytes()) {
            return id;
        }
    }
}

pub(super) fn new_span_id() -> SpanId {
    loop {
        if let Some(id) = SpanId::new(RandomIdGenerator::default().new_span_id().to_bytes()) {
            return id;
        }
    }
}
