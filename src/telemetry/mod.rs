//! Where a frame's time goes: stages and, around them, spans, metrics, logs and exporters.
//!
//! The server chooses a frame's trace and span when it accepts the frame ([`Telemetry::place`]), carries the frame's
//! [`Progress`] along, and records the frame once, when it has ended ([`Telemetry::frame`]). Everything else derives
//! from that record; spans are built on the exporter's thread.

mod config;
pub mod export;
mod ids;
pub mod log;
pub mod metrics;
mod record;
mod resource;
mod sampling;
pub mod spans;
mod stage;
pub mod trace_context;

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_sdk::metrics::ManualReader;
use thiserror::Error;

use self::export::{ExportSettings, Exporter, ExporterError, FlushError, Item, SettingError};
use self::metrics::{Metrics, PageError};

pub use config::TelemetryConfig;
pub use ids::SpanReference;
pub use record::batch::{BatchOutcome, BatchRecord};
pub use record::frame::FrameRecord;
pub use record::outcome::{Agreement, FrameOutcome, status_name};
pub use record::progress::Progress;
pub use record::source::{Call, EndedFrames, Source};
pub use record::stream::{StreamEvent, StreamEvents, StreamRecord};
pub use sampling::{FrameTrace, Sampling};
pub use stage::{Stage, StageTiming, Timings};

/// Why telemetry cannot be set up as configured.
#[derive(Debug, Error)]
pub enum TelemetryError {
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Metrics(#[from] PageError),
}

/// The telemetry of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry {
    sampling: Sampling,
    keep: Keep,
    exporter: Option<Arc<Exporter>>,
    metrics: Option<Metrics>,
}

/// Traces that are kept although they were not sampled when they began.
#[derive(Debug, Clone, Copy, Default)]
struct Keep {
    failed: bool,
    slower_than: Option<Duration>,
}

impl Telemetry {
    /// Builds the exporters of `config`, and those of the environment where it says nothing. `with_page` provides the
    /// page of metrics. Call it before the server's runtime starts.
    ///
    /// # Errors
    /// A setting or a variable that cannot be used, by its name.
    pub fn start(config: &TelemetryConfig, with_page: bool) -> Result<Self, TelemetryError> {
        let settings = ExportSettings::resolve(config, &|name| std::env::var(name).ok())?;
        let resource = resource::resource();
        let reader = settings.metrics.is_some().then(|| Arc::new(ManualReader::default()));
        let metrics = (with_page || reader.is_some())
            .then(|| Metrics::new(resource.clone(), with_page, reader.clone()))
            .transpose()?;
        let exporter = (settings.traces.is_some() || reader.is_some())
            .then(|| Exporter::start(&settings, &resource, reader).map(Arc::new))
            .transpose()?;
        let takes_traces = exporter.as_ref().is_some_and(|exporter| exporter.takes_traces());
        let keep = Keep {
            failed: config.trace_failed,
            slower_than: config.trace_slower_than_ms.map(|ms| Duration::from_millis(ms.into())),
        };
        let ratio = if takes_traces { settings.trace_ratio } else { 0.0 };
        if let (Some(metrics), Some(exporter)) = (&metrics, &exporter) {
            observe_losses(metrics, exporter);
        }
        Ok(Telemetry { sampling: Sampling::ratio(ratio), keep, exporter, metrics })
    }

    /// Exports nothing. Frames still get a trace id, so that answers can name it.
    pub fn disabled() -> Self {
        Telemetry { sampling: Sampling::ratio(0.0), keep: Keep::default(), exporter: None, metrics: None }
    }

    /// The instruments; `None` if nothing reads them.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref()
    }

    /// Chooses the span of an accepted frame, or of a stream: in the trace that its client named, or in a new one.
    /// Either text may be empty.
    pub fn place(&self, traceparent: &str, tracestate: &str) -> FrameTrace {
        self.sampling.place(traceparent, tracestate)
    }

    /// What the frames of a stream have in common. `stream` is the stream's own span.
    pub fn stream_source(&self, stream_id: &str, name: &str, model: (&str, i64), stream: &FrameTrace) -> Arc<Source> {
        let span = self.is_kept(stream).then(|| stream.reference());
        let instruments = self.instruments(model);
        Arc::new(Source::new(Call::ExplainStream, stream_id.to_owned(), name.to_owned(), model, span, instruments))
    }

    /// The source of the one frame of a unary call.
    pub fn call_source(&self, model: (&str, i64)) -> Arc<Source> {
        let instruments = self.instruments(model);
        Arc::new(Source::new(Call::Explain, String::new(), String::new(), model, None, instruments))
    }

    fn instruments(&self, (model, version): (&str, i64)) -> Option<Arc<metrics::ModelInstruments>> {
        self.metrics.as_ref().map(|metrics| metrics.model(model, version))
    }

    /// Records a frame that has ended. Never waits.
    pub fn frame(&self, mut record: FrameRecord, now: Instant) {
        record.progress.close(now);
        let source = Arc::clone(&record.source);
        source.count(&record.outcome);
        let batch = record.progress.leave_batch();
        let (accepted, total) = record.progress.with_timings(|timings| {
            if let Some(instruments) = &source.instruments {
                instruments.frame(&record.outcome, timings, record.payload_bytes);
                if let (FrameOutcome::Answered, Some(captured_at)) = (&record.outcome, record.captured_at) {
                    instruments.age(captured_at);
                }
                if let Some(agreement) = record.agreement {
                    instruments.agreement(agreement);
                }
            }
            (timings.accepted(), timings.total())
        });
        log_frame(&record, batch.as_ref().map_or(0, |batch| batch.rows), total);
        let kept = self.exporter.as_ref().filter(|exporter| {
            let slow = self.keep.slower_than.is_some_and(|limit| total > limit);
            let failed = self.keep.failed && matches!(record.outcome, FrameOutcome::Failed { .. });
            exporter.takes_traces() && (record.trace.flags.sampled || slow || failed)
        });
        if let Some(batch) = &batch
            && (source.instruments.is_some() || kept.is_some())
        {
            let telemetry = self.clone();
            batch.tells(&source, (accepted, record.accepted_at), move |ended| telemetry.batch(ended));
        }
        let Some(exporter) = kept else { return };
        if let Some(batch) = &batch {
            batch.keeps(record.trace.reference());
            record.batch = Some((batch.rows, batch.span()));
        }
        exporter.send(Item::Frame(Box::new(record)));
    }

    fn batch(&self, batch: record::batch::EndedBatch) {
        if let Some(instruments) = &batch.source.instruments {
            instruments.batch(batch.rows);
        }
        if let Some(exporter) = &self.exporter
            && !batch.frames.is_empty()
        {
            exporter.send(Item::Batch(Box::new(batch)));
        }
    }

    /// Records a stream that has ended. Never waits.
    pub fn stream(&self, record: StreamRecord) {
        if let Some(exporter) = &self.exporter
            && self.is_kept(&record.trace)
        {
            exporter.send(Item::Stream(Box::new(record)));
        }
    }

    /// Streams are few: each is kept unless its client does not want it, or nothing is traced at all.
    fn is_kept(&self, stream: &FrameTrace) -> bool {
        let traces = self.exporter.as_ref().is_some_and(|exporter| exporter.takes_traces());
        traces && if stream.parent_id.is_some() { stream.flags.sampled } else { self.sampling.is_on() }
    }

    /// The spans and metrics that the collector has not taken so far.
    pub fn lost(&self) -> Option<&export::Lost> {
        self.exporter.as_ref().map(|exporter| exporter.lost())
    }

    /// Delivers what waits, within `limit`. Blocks: call it from a plain thread, after the server has ended.
    ///
    /// # Errors
    /// When the collector has not taken everything by then.
    pub fn shutdown(&self, limit: Duration) -> Result<(), FlushError> {
        let flushed = self.exporter.as_ref().map_or(Ok(()), |exporter| exporter.shutdown(limit));
        if let Some(metrics) = &self.metrics {
            metrics.shutdown();
        }
        flushed
    }
}

fn observe_losses(metrics: &Metrics, exporter: &Exporter) {
    use opentelemetry::KeyValue;
    let lost = exporter.lost().clone();
    metrics.observe(
        &metrics::catalogue::TELEMETRY_LOST,
        Box::new(move |tell| {
            tell(lost.traces() as f64, &[KeyValue::new("camlens.signal", "traces")]);
            tell(lost.metrics() as f64, &[KeyValue::new("camlens.signal", "metrics")]);
        }),
    );
}

/// One event a frame. A client's own mistakes are the client's to see: none is louder than `debug`.
fn log_frame(record: &FrameRecord, batch_size: u32, total: Duration) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let (reason, error) = match &record.outcome {
        FrameOutcome::Answered | FrameOutcome::Cancelled => ("", ""),
        FrameOutcome::Dropped { reason, .. } => (*reason, ""),
        FrameOutcome::Failed { message, .. } => (record.outcome.status(), message.as_str()),
    };
    tracing::debug!(
        stream_id = record.source.stream_id,
        sequence = record.sequence,
        model = &*record.source.model,
        version = record.source.version,
        outcome = record.outcome.name(),
        reason,
        total_ms = total.as_secs_f64() * 1e3,
        batch_size,
        agreement = record.agreement.map(Agreement::name),
        trace_id = %record.trace.trace_id,
        span_id = %record.trace.span_id,
        error,
        "frame"
    );
}
