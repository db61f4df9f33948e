//! Gives freed memory back to the system after streams have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::process;

/// Delay after a stream's end: streams often end together, and one call is then enough.
const AFTER: Duration = Duration::from_secs(1);

/// Gives memory back to the system after streams have ended. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Reclaim {
    is_due: Arc<AtomicBool>,
}

impl Reclaim {
    /// A stream has ended.
    pub(super) fn soon(&self) {
        if self.is_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_due = Arc::clone(&self.is_due);
        tokio::spawn(async move {
            tokio::time::sleep(AFTER).await;
            is_due.store(false, Ordering::Release);
            // It does not panic, and nothing waits for it.
            let _ = tokio::task::spawn_blocking(process::release_memory).await;
        });
    }
}
