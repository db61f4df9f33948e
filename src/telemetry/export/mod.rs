//! Delivers traces and metrics to an OpenTelemetry collector, from a thread of its own.
//!
//! The thread has its own small runtime, so that a busy server cannot starve it and it cannot hold up a frame. What
//! waits for it is bounded: when the collector is slow or away, whole frames are lost and counted, never half a frame,
//! never a stage of the server's time.

mod channel;
mod item;
mod losses;
mod metrics;
mod queue;
mod sender;
mod settings;
mod traces;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::ManualReader;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use self::losses::Losses;
use self::metrics::Pushing;
use self::queue::Queue;
use self::traces::Delivery;

pub use channel::ChannelError;
pub(super) use item::Item;
pub use settings::{Destination, Environment, ExportSettings, Protocol, QUEUE_ITEMS, SettingError};

/// How many times its timeout a page of metrics may take, with all the attempts that OTLP's exporter makes at it.
const TIMEOUTS: u32 = 2;

/// How much the exporter's thread steps back, out of 19.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Why nothing can be delivered at all.
#[derive(Debug, Error)]
pub enum ExporterError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("no thread for the exporter: {0}")]
    Thread(#[from] io::Error),
}

/// The collector did not take what was left in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the collector did not take what was left within {limit:?}")]
pub struct FlushError {
    pub limit: Duration,
}

/// The sending end: cheap to call from any thread, async or not.
#[derive(Debug)]
pub struct Exporter {
    /// `None` when traces are not exported.
    traces: Option<Arc<Queue>>,
    lost: Lost,
    closing: CancellationToken,
    abandon: CancellationToken,
    /// Disconnected when the thread has ended. Never carries a value.
    ended: Mutex<std_mpsc::Receiver<()>>,
}

/// What was lost so far. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    traces: Arc<AtomicU64>,
    metrics: Arc<AtomicU64>,
}

impl Lost {
    /// Frames, batches and streams whose spans were lost, on the way to the exporter or on the way to the collector.
    pub fn traces(&self) -> u64 {
        self.traces.load(Ordering::Relaxed)
    }

    /// Pages of metrics. The next one that arrives makes up for them.
    pub fn metrics(&self) -> u64 {
        self.metrics.load(Ordering::Relaxed)
    }
}

impl Exporter {
    /// Starts the thread. Needs no collector yet: the connection is made, and made again, when there is something to
    /// send. `reader` is where metrics come from.
    ///
    /// # Errors
    /// An endpoint that is none, a certificate that cannot be read, or no thread.
    pub fn start(
        settings: &ExportSettings,
        resource: &Resource,
        reader: Option<Arc<ManualReader>>,
    ) -> Result<Self, ExporterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (closing, abandon, lost) = (CancellationToken::new(), CancellationToken::new(), Lost::default());
        let queue = Arc::new(Queue::new(settings.queue_items, settings.batch_spans));
        let (delivery, pushing) = {
            // The channels' workers belong to the runtime that is entered here.
            let _entered = runtime.enter();
            let delivery = settings.traces.as_ref().map(|to| {
                let losses = Losses::new("traces", Arc::clone(&lost.traces));
                Ok::<_, ChannelError>(Delivery::new(channel::sender(to)?, resource, losses, to, settings))
            });
            let pushing = settings.metrics.as_ref().zip(reader).map(|(to, reader)| {
                Ok::<_, ChannelError>(Pushing {
                    exporter: channel::metric_exporter(to)?,
                    reader,
                    losses: Losses::new("metrics", Arc::clone(&lost.metrics)),
                    limit: to.timeout * TIMEOUTS,
                    interval: settings.metrics_interval,
                })
            });
            (delivery.transpose()?, pushing.transpose()?)
        };
        let traces = delivery.is_some().then(|| Arc::clone(&queue));
        let work = {
            let closing = closing.clone();
            async move {
                let traces = async {
                    if let Some(delivery) = delivery {
                        delivery.run(&queue, closing.clone()).await;
                    }
                };
                let metrics = async {
                    if let Some(pushing) = pushing {
                        pushing.run(closing.clone()).await;
                    }
                };
                tokio::join!(traces, metrics);
            }
        };
        let ended = run(runtime, work, abandon.clone())?;
        Ok(Exporter { traces, lost, closing, abandon, ended: Mutex::new(ended) })
    }

    /// Whether traces go anywhere.
    pub(super) fn takes_traces(&self) -> bool {
        self.traces.is_some()
    }

    /// Hands something over. Never waits: when the queue is full, it is lost and counted.
    pub(super) fn send(&self, item: Item) {
        if let Some(traces) = &self.traces
            && traces.put(item).is_err()
        {
            self.lost.traces.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was lost so far.
    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    /// Delivers what waits and ends the thread, within `limit`. Blocks: call it from a plain thread. Later frames are
    /// lost.
    ///
    /// # Errors
    /// When the collector has not taken everything by then; what is left is given up.
    pub fn shutdown(&self, limit: Duration) -> Result<(), FlushError> {
        self.closing.cancel();
        let ended = self.ended.lock();
        match ended.recv_timeout(limit) {
            Err(std_mpsc::RecvTimeoutError::Timeout) => {
                self.abandon.cancel();
                Err(FlushError { limit })
            }
            Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.abandon.cancel();
    }
}

/// Gives way to the threads that explain frames: telemetry gets the time that they leave.
#[cfg(target_os = "linux")]
fn step_back() {
    // Of the calling thread alone, on Linux.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the exporter's thread keeps its priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}

/// Does the work in a thread of its own until it is done or `abandon`ed. What comes back is disconnected then.
fn run(
    runtime: Runtime,
    work: impl Future<Output = ()> + Send + 'static,
    abandon: CancellationToken,
) -> io::Result<std_mpsc::Receiver<()>> {
    let (alive, ended) = std_mpsc::channel();
    std::thread::Builder::new().name("camlens-otlp".to_owned()).spawn(move || {
        let _alive: std_mpsc::Sender<()> = alive;
        step_back();
        runtime.block_on(async {
            tokio::select! {
                () = work => {}
                () = abandon.cancelled() => {}
            }
        });
        runtime.shutdown_background();
    })?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::TelemetryConfig;

    fn start(endpoint: &str) -> Result<Exporter, ExporterError> {
        let config = TelemetryConfig { otlp_endpoint: Some(endpoint.to_owned()), ..TelemetryConfig::default() };
        let settings = ExportSettings::resolve(&config, &|_| None)?;
        Exporter::start(&settings, &Resource::builder_empty().build(), None)
    }

    #[test]
    fn an_endpoint_that_is_none_is_named() {
        for endpoint in ["http://", "http://a b:1"] {
            let error = start(endpoint).expect_err("no endpoint").to_string();
            assert!(error.contains(endpoint) && error.contains("http://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        for protocol in ["grpc", "http/protobuf"] {
            let config =
                TelemetryConfig { otlp_endpoint: Some("https://c:1".to_owned()), ..TelemetryConfig::default() };
            let environment = |name: &str| match name {
                "OTEL_EXPORTER_OTLP_CERTIFICATE" => Some("/no/such.pem".to_owned()),
                "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
                _ => None,
            };
            let settings = ExportSettings::resolve(&config, &environment).expect("all is well so far");
            let error = Exporter::start(&settings, &Resource::builder_empty().build(), None).expect_err("no file");
            assert!(error.to_string().starts_with("/no/such.pem: "), "{error}");
        }
    }

    #[test]
    fn nothing_to_deliver_ends_at_once_and_twice_is_once() {
        let exporter = start("localhost:1").expect("no collector is needed to start");
        assert_eq!(exporter.shutdown(Duration::from_secs(5)), Ok(()));
        assert_eq!(exporter.shutdown(Duration::from_secs(5)), Ok(()));
        assert_eq!((exporter.lost().traces(), exporter.lost().metrics()), (0, 0));
    }
}
