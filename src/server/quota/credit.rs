//! The credit of all open streams: how many frames their clients may have in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sum over the open streams. Cheap to clone; clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Credit(Arc<AtomicU64>);

/// One stream's credit. Dropping it takes it off the sum.
#[derive(Debug)]
pub(in crate::server) struct CreditShare {
    all: Credit,
    frames: u64,
}

impl Credit {
    /// Adds a stream with a credit of `frames`.
    pub(in crate::server) fn share(&self, frames: u64) -> CreditShare {
        self.0.fetch_add(frames, Ordering::Relaxed);
        CreditShare { all: self.clone(), frames }
    }

    /// The sum, in frames.
    pub(in crate::server) fn frames(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl CreditShare {
    /// Changes the stream's credit to `frames`.
    pub(in crate::server) fn becomes(&mut self, frames: u64) {
        *self = self.all.share(frames);
    }
}

impl Drop for CreditShare {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.frames, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_the_sum_over_the_streams_that_are_open() {
        let credit = Credit::default();
        let (mut one, two) = (credit.share(16), credit.share(4));
        one.becomes(8);
        assert_eq!(credit.frames(), 12);
        drop((one, two));
        assert_eq!(credit.frames(), 0);
    }
}
