//! Where a frame's time goes: stages and, around them, spans, logs and exporters.
//!
//! Serving settles a frame's place in its trace when it accepts the frame ([`Telemetry::place`]) and says once, when
//! the frame has ended, what became of it ([`Telemetry::frame`]). Everything else derives from that record, away from the
//! frame's way.

pub mod exporter;
pub mod frame_record;
pub mod frame_trace;
pub mod log;
pub mod sampling;
pub mod stage;
pub mod trace_context;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use exporter::{ExporterError, FlushError, TraceExporter};
pub use frame_record::{FrameOutcome, FrameRecord, status_name};
pub use sampling::{FrameTrace, Sampling};
pub use stage::{Stage, StageTiming, Timings};

/// What telemetry can be told to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// An OpenTelemetry collector, `http://HOST:PORT`; none: no traces.
    pub otlp_endpoint: Option<String>,
    /// The share of frames without a parent that are traced, 0 to 1.
    pub trace_ratio: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig { otlp_endpoint: None, trace_ratio: 1.0 }
    }
}

/// A handle that every part of the server may clone.
#[derive(Debug, Clone)]
pub struct Telemetry {
    sampling: Sampling,
    traces: Option<Arc<TraceExporter>>,
}

impl Telemetry {
    /// Builds what `config` asks for. Call it before the server's runtime starts.
    pub fn start(config: &TelemetryConfig) -> Result<Self, ExporterError> {
        let traces = config.otlp_endpoint.as_deref().map(TraceExporter::start).transpose()?;
        let ratio = if traces.is_some() { config.trace_ratio } else { 0.0 };
        Ok(Telemetry { sampling: Sampling::ratio(ratio), traces: traces.map(Arc::new) })
    }

    /// Exports nothing. Frames still get a place in a trace, so that answers can name it.
    pub fn disabled() -> Self {
        Telemetry { sampling: Sampling::ratio(0.0), traces: None }
    }

    /// Places an accepted frame in the trace that its client named, or in one of its own. Either text may be empty.
    pub fn place(&self, traceparent: &str, tracestate: &str) -> FrameTrace {
        self.sampling.place(traceparent, tracestate)
    }

    /// Takes note of a frame that has ended. Never waits.
    pub fn frame(&self, record: FrameRecord) {
        log_frame(&record);
        if record.trace.flags.sampled
            && let Some(traces) = &self.traces
        {
            traces.send(record);
        }
    }

    /// Frames whose trace was lost because the collector was slow or away.
    pub fn lost_traces(&self) -> u64 {
        self.traces.as_ref().map_or(0, |traces| traces.lost_frames())
    }

    /// Delivers what waits, within `limit`. Blocks: call it from a plain thread, after the server has ended.
    pub fn shutdown(&self, limit: Duration) -> Result<(), FlushError> {
        self.traces.as_ref().map_or(Ok(()), |traces| traces.shutdown(limit))
    }
}

/// One event a frame. A client's own mistakes are the client's to see: none is louder than `debug`.
fn log_frame(record: &FrameRecord) {
    let (reason, message) = match &record.outcome {
        FrameOutcome::Answered | FrameOutcome::Cancelled => ("", ""),
        FrameOutcome::Dropped { reason } => (*reason, ""),
        FrameOutcome::Failed { code, message } => (status_name(*code), message.as_str()),
    };
    tracing::debug!(
        stream_id = &*record.stream_id,
        sequence = record.sequence,
        model = &*record.model,
        version = record.version,
        outcome = record.outcome.name(),
        reason,
        total_ms = record.timings.total().as_secs_f64() * 1e3,
        batch_size = record.batch_size,
        trace_id = %record.trace.trace_id,
        message,
        "frame"
    );
}
