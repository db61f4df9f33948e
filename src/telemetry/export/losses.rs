//! What the collector did not take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_sdk::error::OTelSdkResult;

/// Counts what was lost of one signal, and says in the log when it begins and when it is over.
#[derive(Debug)]
pub(super) struct Losses {
    signal: &'static str,
    lost: Arc<AtomicU64>,
    /// Lost since the collector last took something.
    in_a_row: u64,
}

impl Losses {
    pub(super) fn new(signal: &'static str, lost: Arc<AtomicU64>) -> Self {
        Losses { signal, lost, in_a_row: 0 }
    }

    /// A message with so many items was delivered, or was not.
    pub(super) fn told(&mut self, items: u64, result: OTelSdkResult) {
        let signal = self.signal;
        match result {
            Ok(()) => {
                if self.in_a_row > 0 {
                    tracing::info!(lost = self.in_a_row, "{signal} are delivered again");
                    self.in_a_row = 0;
                }
            }
            Err(error) => {
                if self.in_a_row == 0 {
                    tracing::warn!(%error, "{signal} cannot be delivered; frames go on without them");
                }
                self.in_a_row += items;
                self.lost.fetch_add(items, Ordering::Relaxed);
            }
        }
    }
}
