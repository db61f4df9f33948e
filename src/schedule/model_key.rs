//! The identity of a model.

use std::sync::atomic::{AtomicU64, Ordering};

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
