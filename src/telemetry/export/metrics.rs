//! Pushes metrics, once in a while and once at the end.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::ManualReader;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::reader::MetricReader;
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::losses::Losses;

/// In the exporter's thread.
pub(super) struct Pushing<E> {
    pub(super) exporter: E,
    pub(super) reader: Arc<ManualReader>,
    pub(super) losses: Losses,
    /// For one message and all its attempts.
    pub(super) limit: Duration,
    pub(super) interval: Duration,
}

impl<E: PushMetricExporter> Pushing<E> {
    /// Pushes until `closing`, and what is left then.
    pub(super) async fn run(mut self, closing: CancellationToken) {
        let mut ticks = interval_at(tokio::time::Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                () = closing.cancelled() => true,
            };
            self.push().await;
            if last {
                break;
            }
        }
        if let Err(error) = self.exporter.shutdown() {
            tracing::debug!(%error, "the metric exporter did not shut down");
        }
    }

    async fn push(&mut self) {
        let mut metrics = ResourceMetrics::default();
        let result = match self.reader.collect(&mut metrics) {
            Ok(()) => {
                let exported = timeout(self.limit, self.exporter.export(&metrics)).await;
                exported.unwrap_or(Err(OTelSdkError::Timeout(self.limit)))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.losses.delivered(),
            Err(error) => {
                self.losses.failed(&error);
                self.losses.lost(1);
            }
        }
    }
}
