//! One frame, batch or stream that waits for delivery.

use crate::telemetry::record::batch::EndedBatch;
use crate::telemetry::record::frame::FrameRecord;
use crate::telemetry::record::stream::StreamRecord;
use crate::telemetry::spans::{Spans, batch_span, frame_spans, stream_span};
use crate::telemetry::stage::Stage;

/// What traces are made of.
#[derive(Debug)]
pub(in crate::telemetry) enum Item {
    Frame(Box<FrameRecord>),
    Batch(Box<EndedBatch>),
    Stream(Box<StreamRecord>),
}

impl Item {
    /// Appends its spans to a message.
    pub(super) fn write(&self, into: &mut Spans) {
        match self {
            Item::Frame(record) => frame_spans(record, into),
            Item::Batch(batch) => batch_span(batch, into),
            Item::Stream(record) => stream_span(record, into),
        }
    }

    /// The number of its spans; for a frame, the most there can be.
    pub(super) fn span_count(&self) -> usize {
        match self {
            Item::Frame(_) => 1 + Stage::ALL.len(),
            Item::Batch(_) | Item::Stream(_) => 1,
        }
    }
}
