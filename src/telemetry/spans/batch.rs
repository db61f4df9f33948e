//! A batch: a trace of its own, linked to the frames that were in it.

use super::{Kind, SpanIdentity, Spans};
use crate::telemetry::record::batch::{BatchOutcome, EndedBatch};

/// The name of the span.
pub const BATCH_SPAN: &str = "camlens.batch";

/// Writes the span of a batch.
pub(in crate::telemetry) fn batch_span(batch: &EndedBatch, into: &mut Spans) {
    let times = [batch.began_at, batch.ended_at];
    into.span(&SpanIdentity::root(batch.span), Kind::Internal, BATCH_SPAN, times, |span| {
        let mut attributes = span.attributes();
        attributes.text("camlens.model.name", &batch.source.model);
        attributes.integer("camlens.model.version", batch.source.version);
        attributes.integer("camlens.batch.size", batch.rows.into());
        attributes.count("camlens.batch.frames.kept", batch.frames.len() as u64);
        attributes.text("camlens.batch.outcome", batch.outcome.name());
        for &frame in &batch.frames {
            span.link(frame, "frame");
        }
        if matches!(batch.outcome, BatchOutcome::OutOfMemory | BatchOutcome::Failed) {
            span.error(batch.outcome.name());
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::super::tests::{value, written};
    use super::*;
    use crate::telemetry::ids::SpanReference;
    use crate::telemetry::record::source::{Call, Source};

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
        let spans = written(|into| batch_span(&batch, into));
        let [span] = &spans[..] else { panic!("one span, not {}", spans.len()) };
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000_000_000, 1_000_005_000_000));
        let linked: Vec<_> = span.links.iter().map(|link| link.trace_id.as_slice()).collect();
        assert_eq!(linked, [frame.trace_id.bytes()]);
        assert_eq!(value(&span.links[0].attributes, "camlens.link").as_deref(), Some("frame"));
        assert_eq!(value(&span.attributes, "camlens.batch.size").as_deref(), Some("2"));
        assert_eq!(span.status, None);
        assert!(span.parent_span_id.is_empty());
    }
}
