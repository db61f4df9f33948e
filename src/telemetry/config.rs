//! `[telemetry]` of `camlens.toml`.

use serde::{Deserialize, Serialize};

/// What telemetry can be told to do. What is left open is what OpenTelemetry's standard variables say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// An OpenTelemetry collector, `http://HOST:PORT` or `https://HOST:PORT`; none: nothing is exported.
    pub otlp_endpoint: Option<String>,
    /// `grpc` or `http/protobuf`.
    pub otlp_protocol: Option<String>,
    /// The share of frames without a parent that are traced, 0 to 1.
    pub trace_ratio: Option<f64>,
    /// Frames that take longer are traced, whatever the ratio and the client say; none: there is no such time.
    pub trace_slower_than_ms: Option<u32>,
    /// Frames that fail are traced, whatever the ratio and the client say.
    pub trace_failed: bool,
    /// How often metrics are pushed to the collector; 0: never.
    pub metrics_interval_s: Option<u32>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig {
            otlp_endpoint: None,
            otlp_protocol: None,
            trace_ratio: None,
            trace_slower_than_ms: None,
            trace_failed: true,
            metrics_interval_s: None,
        }
    }
}
