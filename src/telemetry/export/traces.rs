//! Delivers spans: many in a message, each frame's together.

use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::losses::Losses;
use super::settings::ExportSettings;
use crate::telemetry::batch_record::EndedBatch;
use crate::telemetry::frame_record::FrameRecord;
use crate::telemetry::spans::{batch_span, frame_spans, scope, stream_span};
use crate::telemetry::stream_record::StreamRecord;

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

    /// Delivers until the queue has been closed and is empty.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Item>, closing: CancellationToken) {
        let scope = scope();
        loop {
            let first = tokio::select! {
                item = queue.recv() => item,
                () = closing.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut spans = Vec::with_capacity(self.batch_spans + 16);
            first.spans(&scope, &mut spans);
            let mut items = 1;
            let due = Instant::now() + self.batch_delay;
            while spans.len() < self.batch_spans {
                tokio::select! {
                    biased;
                    item = queue.recv() => match item {
                        Some(item) => {
                            item.spans(&scope, &mut spans);
                            items += 1;
                        }
                        None => break,
                    },
                    () = closing.cancelled(), if !queue.is_closed() => queue.close(),
                    () = sleep_until(due) => break,
                }
            }
            let exported = timeout(self.limit, self.exporter.export(spans)).await;
            let result = exported.unwrap_or(Err(OTelSdkError::Timeout(self.limit)));
            self.losses.told(items, result);
        }
        if let Err(error) = self.exporter.shutdown() {
            tracing::debug!(%error, "the trace exporter did not shut down");
        }
    }
}
