//! Spans and metrics that the collector did not take.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the losses of one signal, and logs when they begin and when they are over.
#[derive(Debug)]
pub(super) struct Losses {
    signal: &'static str,
    lost: Arc<AtomicU64>,
    /// Lost since the collector last took something.
    in_a_row: u64,
    failing: bool,
    refusing: bool,
}

impl Losses {
    pub(super) fn new(signal: &'static str, lost: Arc<AtomicU64>) -> Self {
        Losses { signal, lost, in_a_row: 0, failing: false, refusing: false }
    }

    /// The collector took a message.
    pub(super) fn delivered(&mut self) {
        if self.failing {
            tracing::info!(lost = self.in_a_row, "{} are delivered again", self.signal);
        }
        (self.failing, self.in_a_row) = (false, 0);
    }

    /// An attempt failed. Whether the items are lost is known later: see [`Losses::lost`].
    pub(super) fn failed(&mut self, error: &dyn Display) {
        if !self.failing {
            tracing::warn!(%error, "{} cannot be delivered; frames go on without them", self.signal);
        }
        self.failing = true;
    }

    /// These are not tried again.
    pub(super) fn lost(&mut self, items: u64) {
        self.in_a_row += items;
        self.lost.fetch_add(items, Ordering::Relaxed);
    }

    /// The collector took a message, but not everything in it.
    pub(super) fn refused(&mut self, items: u64, reason: &str) {
        if !self.refusing {
            tracing::warn!(reason, "the collector refuses some {}; this is said once", self.signal);
        }
        self.refusing = true;
        self.lost.fetch_add(items, Ordering::Relaxed);
    }
}
