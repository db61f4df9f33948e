//! What the engine knows of a stream or a single call.

use std::sync::Arc;

use super::admission::{Admission, AdmissionError, Budgets};
use super::queue::ticket::StreamKey;
use super::served::Served;

/// Lets one stream, or one single call, submit frames for one model. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lane {
    pub(super) key: StreamKey,
    pub(super) model: Arc<Served>,
    pub(super) budgets: Budgets,
    /// Counts the lanes of the model.
    pub(super) _open: Arc<()>,
}

impl Lane {
    pub fn model(&self) -> &Arc<Served> {
        &self.model
    }

    /// Admits a frame that takes `bytes`, now or not at all.
    ///
    /// # Errors
    /// The limit that is reached, of the stream, its model, or the process.
    pub fn try_admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budgets.try_admit(bytes)
    }

    /// Admits a frame that takes `bytes`, as soon as there is room.
    ///
    /// # Errors
    /// None while the engine lives.
    pub async fn admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budgets.admit(bytes).await
    }
}
