//! A batch: a trace of its own, linked to the frames that were in it.

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::SpanData;

use super::{Place, integer, links};
use crate::telemetry::batch_record::{BatchOutcome, EndedBatch};

/// The name of the span.
pub const BATCH_SPAN: &str = "camlens.batch";

/// The span of a batch.
pub(in crate::telemetry) fn batch_span(batch: &EndedBatch, scope: &InstrumentationScope) -> SpanData {
    let times = [batch.began_at, batch.ended_at];
    let mut span = Place::root(batch.span).span(SpanKind::Internal, BATCH_SPAN, times, scope);
    span.attributes = vec![
        KeyValue::new("camlens.model.name", batch.source.model.clone()),
        KeyValue::new("camlens.model.version", batch.source.version),
        KeyValue::new("camlens.batch.size", i64::from(batch.rows)),
        KeyValue::new("camlens.batch.frames.kept", integer(batch.frames.len() as u64)),
        KeyValue::new("camlens.batch.outcome", batch.outcome.name()),
    ];
    span.links = links(batch.frames.iter().copied(), "frame");
    if matches!(batch.outcome, BatchOutcome::OutOfMemory | BatchOutcome::Failed) {
        span.status = Status::error(batch.outcome.name());
    }
    span
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::super::{attribute, scope};
    use super::*;
    use crate::telemetry::batch_record::SpanReference;
    use crate::telemetry::source::{Call, Source};

    #[test]
    fn a_batch_is_linked_to_the_frames_that_are_kept() {
        let frame = SpanReference::new_root();
        let began_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let batch = EndedBatch {
            span: SpanReference::new_root(),
            rows: 2,
            began_at,
            ended_at: began_at + Duration::from_millis(5),
            outcome: BatchOutcome::Done,
            source: Arc::new(Source::new(Call::ExplainStream, "s".into(), String::new(), ("lite0", 1), None, None)),
            frames: vec![frame],
        };
        let span = batch_span(&batch, &scope());
        assert_eq!((span.start_time, span.end_time), (batch.began_at, batch.ended_at));
        let linked: Vec<_> = span.links.links.iter().map(|link| link.span_context.trace_id().to_string()).collect();
        assert_eq!(linked, [frame.trace_id.to_string()]);
        assert_eq!(attribute(&span, "camlens.batch.size").as_deref(), Some("2"));
        assert_eq!(span.status, Status::Unset);
    }
}
