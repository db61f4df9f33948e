//! What the engine knows of a stream.

use std::sync::Arc;

use super::admission::{Admission, AdmissionError, Budgets};
use super::queue::ticket::StreamKey;
use super::served::Served;

/// A stream's, or a single call's, way into the engine, for one model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lane {
    pub(super) key: StreamKey,
    pub(super) model: Arc<Served>,
    pub(super) budgets: Budgets,
}

impl Lane {
    pub fn model(&self) -> &Arc<Served> {
        &self.model
    }

    /// Room for a frame that takes `bytes`, now or not at all.
    ///
    /// # Errors
    /// The limit that is reached, of the stream, its model, or the process.
    pub fn try_admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budgets.try_admit(bytes)
    }

    /// Room for a frame that takes `bytes`, as soon as there is some.
    ///
    /// # Errors
    /// None while the engine lives.
    pub async fn admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budgets.admit(bytes).await
    }
}
