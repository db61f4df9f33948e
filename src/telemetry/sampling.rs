//! Which frames are traced, and under which ids.

use std::sync::Arc;

use super::ids::{SpanReference, new_span_id, new_trace_id};
use super::trace_context::{SpanId, TraceFlags, TraceId, TraceParent, TraceState};

/// A frame's span and its trace, chosen when the frame is accepted so that the answer can name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameTrace {
    pub trace_id: TraceId,
    /// The span of the frame itself.
    pub span_id: SpanId,
    /// The client's span, when the frame named one.
    pub parent_id: Option<SpanId>,
    pub flags: TraceFlags,
    /// The `tracestate` of the client's tracing systems. Shared, since each span has a copy.
    pub trace_state: Arc<TraceState>,
}

impl FrameTrace {
    /// A reference to the span.
    pub fn reference(&self) -> SpanReference {
        SpanReference { trace_id: self.trace_id, span_id: self.span_id }
    }
}

/// Decides by the parent's flag where there is a parent, and by a share of the trace ids where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    threshold: u64,
}

impl Sampling {
    /// `ratio`: the share of the frames without a parent that are traced, 0 to 1. A value outside counts as the nearest
    /// bound.
    pub fn ratio(ratio: f64) -> Self {
        let ratio = if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, 1.0) };
        // 2^56 equal parts: the specification's seven random bytes.
        Sampling { threshold: (ratio * (1u64 << 56) as f64) as u64 }
    }

    /// Chooses a frame's span. A `traceparent` that is malformed is treated as absent, as the specification asks; so is
    /// a bad `tracestate`.
    pub fn place(self, traceparent: &str, tracestate: &str) -> FrameTrace {
        match TraceParent::parse(traceparent) {
            Ok(parent) => FrameTrace {
                trace_id: parent.trace_id,
                span_id: new_span_id(),
                parent_id: Some(parent.parent_id),
                flags: parent.flags,
                trace_state: Arc::new(TraceState::parse(tracestate).unwrap_or_default()),
            },
            Err(_) => {
                let trace_id = new_trace_id();
                FrameTrace {
                    trace_id,
                    span_id: new_span_id(),
                    parent_id: None,
                    flags: TraceFlags { sampled: self.takes(trace_id), random: true },
                    trace_state: Arc::default(),
                }
            }
        }
    }

    /// Whether anything is traced that no client asks for.
    pub fn is_on(self) -> bool {
        self.threshold > 0
    }

    fn takes(self, trace_id: TraceId) -> bool {
        let bytes = trace_id.bytes();
        let random = bytes[9..].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        random < self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";

    #[test]
    fn a_frame_with_a_parent_joins_its_trace_and_its_verdict() {
        for (sampling, flag, sampled) in [(Sampling::ratio(0.0), "1", true), (Sampling::ratio(1.0), "0", false)] {
            let trace = sampling.place(&format!("{PARENT}{flag}"), "rojo=1");
            assert_eq!(trace.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(trace.parent_id.map(|id| id.to_string()).as_deref(), Some("00f067aa0ba902b7"));
            assert_eq!(trace.flags.sampled, sampled);
            assert_eq!(trace.trace_state.to_string(), "rojo=1");
        }
    }

    #[test]
    fn a_bad_tracestate_does_not_cost_the_parent() {
        let trace = Sampling::ratio(0.0).place(&format!("{PARENT}1"), "FOO=1");
        assert!(trace.parent_id.is_some());
        assert_eq!(*trace.trace_state, TraceState::default());
    }

    #[test]
    fn a_bad_traceparent_starts_a_trace_and_takes_the_tracestate_with_it() {
        let trace = Sampling::ratio(1.0).place("00-xyz", "rojo=1");
        assert_eq!(trace.parent_id, None);
        assert_eq!(*trace.trace_state, TraceState::default());
        assert!(trace.flags.sampled);
    }

    #[test]
    fn the_ratio_is_the_share_of_frames_that_are_traced() {
        let count = |ratio: f64| (0..4000).filter(|_| Sampling::ratio(ratio).place("", "").flags.sampled).count();
        assert_eq!(count(0.0), 0);
        assert_eq!(count(f64::NAN), 0);
        assert_eq!(count(1.0), 4000);
        // Twelve standard deviations to either side.
        assert!((670..=1330).contains(&count(0.25)));
    }

    #[test]
    fn ids_differ_from_frame_to_frame() {
        let (one, other) = (Sampling::ratio(1.0).place("", ""), Sampling::ratio(1.0).place("", ""));
        assert_ne!(one.trace_id, other.trace_id);
        assert_ne!(one.span_id, other.span_id);
    }
}
