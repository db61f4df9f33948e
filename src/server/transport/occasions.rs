//! Occasions that a client can bring about as often as it likes, and their lines in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts occasions of one kind. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Occasions(Arc<AtomicU64>);

impl Occasions {
    pub(in crate::server) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more. Returns the number if it is one to be logged: the 1st, 2nd, 4th, 8th, …, so that a client
    /// cannot fill the log.
    pub(in crate::server) fn one_more(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_occasions_there_were_the_fewer_are_logged() {
        let occasions = Occasions::default();
        let logged: Vec<u64> = (0..1000).filter_map(|_| occasions.one_more()).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(occasions.count(), 1000);
    }
}
