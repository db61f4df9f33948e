//! The metrics as a page for Prometheus.

use opentelemetry_prometheus::PrometheusExporter;
use opentelemetry_sdk::error::OTelSdkError;
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;

/// The page cannot be set up, or not be written.
#[derive(Debug, Error)]
pub enum PageError {
    #[error("metrics: {0}")]
    Setup(#[from] OTelSdkError),
    #[error("metrics: {0}")]
    Write(#[from] prometheus::Error),
}

/// Writes the page when somebody asks for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Page(Registry);

impl Page {
    pub(super) fn new() -> Result<(Self, PrometheusExporter), PageError> {
        let registry = Registry::new();
        // There is one scope, and its name is in each metric's.
        let exporter =
            opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false).build()?;
        Ok((Page(registry), exporter))
    }

    /// The `Content-Type` of the page.
    pub fn content_type(&self) -> String {
        TextEncoder::new().format_type().to_owned()
    }

    /// The page, in Prometheus' text format.
    ///
    /// # Errors
    /// When two metrics contradict each other.
    pub fn write(&self) -> Result<Vec<u8>, PageError> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut page)?;
        Ok(page)
    }
}
