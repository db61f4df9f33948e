//! Delivers frames' spans to an OpenTelemetry collector over OTLP/gRPC, from a thread of its own.
//!
//! The thread has its own small runtime, so that a busy server cannot starve it and it cannot hold up a frame. What
//! waits for it is bounded: when the collector is slow or away, whole frames are lost and counted, never half a frame,
//! never a stage of the server's time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::frame_record::FrameRecord;
use super::frame_trace::{scope, spans};

/// Frames that wait for delivery; the one after that is lost.
pub const QUEUE_FRAMES: usize = 4096;
/// Spans in one message to the collector, give or take a frame's.
const BATCH_SPANS: usize = 512;
/// How long the first frame of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// Why traces cannot be delivered at all.
#[derive(Debug, Error)]
pub enum ExporterError {
    #[error("`{endpoint}` is no OTLP endpoint: {cause}; give http://HOST:PORT, such as http://localhost:4317")]
    Endpoint { endpoint: String, cause: ExporterBuildError },
    #[error("no thread for the trace exporter: {0}")]
    Thread(#[from] io::Error),
}

/// The collector did not take what was left in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the collector did not take the last traces within {limit:?}")]
pub struct FlushError {
    pub limit: Duration,
}

/// The sending end: cheap to call from any thread, async or not.
#[derive(Debug)]
pub struct TraceExporter {
    frames: mpsc::Sender<FrameRecord>,
    lost: Arc<AtomicU64>,
    closing: CancellationToken,
    abandon: CancellationToken,
    /// Disconnected when the thread has ended. Never carries a value.
    ended: std::sync::Mutex<std_mpsc::Receiver<()>>,
}

impl TraceExporter {
    /// Starts the thread. Needs no collector yet: the connection is made, and made again, when there is something to send.
    pub fn start(endpoint: &str) -> Result<Self, ExporterError> {
        let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut exporter = {
            // The channel's worker belongs to the runtime that is entered here.
            let _entered = runtime.enter();
            opentelemetry_otlp::SpanExporter::builder()
                .with_tonic()
                .with_endpoint(url)
                .build()
                .map_err(|cause| ExporterError::Endpoint { endpoint: endpoint.to_owned(), cause })?
        };
        exporter.set_resource(&resource());

        let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
        let (alive, ended) = std_mpsc::channel();
        let this = TraceExporter {
            frames,
            lost: Arc::default(),
            closing: CancellationToken::new(),
            abandon: CancellationToken::new(),
            ended: std::sync::Mutex::new(ended),
        };
        let delivery = Delivery { exporter, lost: this.lost.clone(), undelivered: 0 };
        let (closing, abandon) = (this.closing.clone(), this.abandon.clone());
        std::thread::Builder::new().name("camlens-traces".to_owned()).spawn(move || {
            let _alive: std_mpsc::Sender<()> = alive;
            runtime.block_on(async {
                tokio::select! {
                    () = delivery.run(queue, closing) => {}
                    () = abandon.cancelled() => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(this)
    }

    /// Hands a frame over. Never waits: when the queue is full, the frame is lost and counted.
    pub fn send(&self, record: FrameRecord) {
        if self.frames.try_send(record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Frames whose trace was lost so far, on the way here or on the way to the collector.
    pub fn lost_frames(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Delivers what waits and ends the thread, within `limit`. Blocks: call it from a plain thread. Later frames are lost.
    pub fn shutdown(&self, limit: Duration) -> Result<(), FlushError> {
        self.closing.cancel();
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match ended.recv_timeout(limit) {
            Err(std_mpsc::RecvTimeoutError::Timeout) => {
                self.abandon.cancel();
                Err(FlushError { limit })
            }
            Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

impl Drop for TraceExporter {
    fn drop(&mut self) {
        self.abandon.cancel();
    }
}

/// Who we are: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` where they say so, else `camlens`.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let has_name = named
        .get(&opentelemetry::Key::from_static_str("service.name"))
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = if has_name { Resource::builder() } else { Resource::builder().with_service_name("camlens") };
    builder.with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}

/// The receiving end, in the thread.
struct Delivery<E> {
    exporter: E,
    lost: Arc<AtomicU64>,
    /// Frames lost since the collector last took a batch.
    undelivered: u64,
}

impl<E: SpanExporter> Delivery<E> {
    async fn run(mut self, mut queue: mpsc::Receiver<FrameRecord>, closing: CancellationToken) {
        let scope = scope();
        loop {
            let first = tokio::select! {
                record = queue.recv() => record,
                () = closing.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut batch = spans(&first, &scope);
            let mut frames = 1;
            let due = Instant::now() + BATCH_DELAY;
            while batch.len() < BATCH_SPANS {
                tokio::select! {
                    biased;
                    record = queue.recv() => match record {
                        Some(record) => {
                            batch.extend(spans(&record, &scope));
                            frames += 1;
                        }
                        None => break,
                    },
                    () = closing.cancelled(), if !queue.is_closed() => queue.close(),
                    () = sleep_until(due) => break,
                }
            }
            self.deliver(batch, frames).await;
        }
        if let Err(error) = self.exporter.shutdown() {
            tracing::debug!(%error, "the trace exporter did not shut down");
        }
    }

    /// Says once that the collector is away, and once that it is back.
    async fn deliver(&mut self, batch: Vec<SpanData>, frames: u64) {
        let result: OTelSdkResult = self.exporter.export(batch).await;
        match result {
            Ok(()) => {
                if self.undelivered > 0 {
                    tracing::info!(lost_frames = self.undelivered, "traces are delivered again");
                    self.undelivered = 0;
                }
            }
            Err(error) => {
                if self.undelivered == 0 {
                    tracing::warn!(%error, "traces cannot be delivered; frames go on without them");
                }
                self.undelivered += frames;
                self.lost.fetch_add(frames, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_none_is_named() {
        for endpoint in ["http://", "http://a b:1"] {
            let error = TraceExporter::start(endpoint).expect_err("no endpoint").to_string();
            assert!(error.contains(endpoint) && error.contains("http://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn nothing_to_deliver_ends_at_once_and_twice_is_once() {
        let exporter = TraceExporter::start("localhost:1").expect("no collector is needed to start");
        assert_eq!(exporter.shutdown(Duration::from_secs(5)), Ok(()));
        assert_eq!(exporter.shutdown(Duration::from_secs(5)), Ok(()));
        assert_eq!(exporter.lost_frames(), 0);
    }
}
