//! The identity of a model, and what it shares with those that it replaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::admission::Budget;

/// Identifies one loaded model in its process. A model that replaces another of the same name and version has a key of
/// its own, so that devices can hold both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModelKey(u64);

impl ModelKey {
    /// A key that no other model has.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ModelKey(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the models that follow each other under one name and version share.
#[derive(Debug)]
pub(super) struct Slot {
    /// Counts the frames of all of them.
    pub(super) budget: Budget,
    is_removed: AtomicBool,
}

impl Slot {
    pub(super) fn new(budget: Budget) -> Arc<Self> {
        Arc::new(Slot { budget, is_removed: AtomicBool::new(false) })
    }

    pub(super) fn remove(&self) {
        self.is_removed.store(true, Ordering::Release);
    }

    /// Whether the name and version have been removed.
    pub(super) fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Acquire)
    }
}
