//! Delivers spans: many in a message, each frame's together.

use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::losses::Losses;
use super::queue::Queue;
use super::settings::ExportSettings;
use crate::telemetry::batch_record::EndedBatch;
use crate::telemetry::frame_record::FrameRecord;
use crate::telemetry::spans::{batch_span, frame_spans, scope, stream_span};
use crate::telemetry::stream_record::StreamRecord;

/// A message may end with a whole frame beyond its size.
const SPARE_SPANS: usize = 16;

/// What traces are made of.
#[derive(Debug)]
pub(in crate::telemetry) enum Item {
    Frame(Box<FrameRecord>),
    Batch(Box<EndedBatch>),
    Stream(Box<StreamRecord>),
}

impl Item {
    fn spans(&self, scope: &InstrumentationScope, into: &mut Vec<SpanData>) {
        match self {
            Item::Frame(record) => frame_spans(record, scope, into),
            Item::Batch(batch) => into.push(batch_span(batch, scope)),
            Item::Stream(record) => into.push(stream_span(record, scope)),
        }
    }
}

/// The receiving end of the queue, in the exporter's thread.
pub(super) struct Delivery<E> {
    pub(super) exporter: E,
    pub(super) losses: Losses,
    /// For one message and all its attempts.
    pub(super) limit: Duration,
    pub(super) batch_spans: usize,
    pub(super) batch_delay: Duration,
}

impl<E: SpanExporter> Delivery<E> {
    pub(super) fn new(exporter: E, losses: Losses, limit: Duration, settings: &ExportSettings) -> Self {
        let ExportSettings { batch_spans, batch_delay, .. } = *settings;
        Delivery { exporter, losses, limit, batch_spans, batch_delay }
    }

    /// Delivers what waits, when there is enough of it or when the first of it has waited long enough, until `closing`; then
    /// what is left.
    pub(super) async fn run(mut self, queue: &Queue, closing: CancellationToken) {
        let scope = scope();
        let mut items = Vec::new();
        loop {
            let last = tokio::select! {
                () = queue.enough() => false,
                () = sleep(self.batch_delay) => false,
                () = closing.cancelled() => true,
            };
            if last {
                queue.close();
            }
            items = queue.take(items);
            while !items.is_empty() {
                self.deliver(&mut items, &scope).await;
            }
            if last {
                break;
            }
        }
        if let Err(error) = self.exporter.shutdown() {
            tracing::debug!(%error, "the trace exporter did not shut down");
        }
    }

    /// A message's worth of the oldest.
    async fn deliver(&mut self, items: &mut Vec<Item>, scope: &InstrumentationScope) {
        let mut spans = Vec::with_capacity(self.batch_spans + SPARE_SPANS);
        let mut count = 0;
        for item in items.iter() {
            item.spans(scope, &mut spans);
            count += 1;
            if spans.len() >= self.batch_spans {
                break;
            }
        }
        items.drain(..count);
        let exported = timeout(self.limit, self.exporter.export(spans)).await;
        let result = exported.unwrap_or(Err(OTelSdkError::Timeout(self.limit)));
        self.losses.told(count as u64, result);
    }
}
