//! The quota of bytes of answers that clients have not read yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Unread bytes of all streams, and their limit. Cheap to clone; clones share the bytes.
#[derive(Debug, Clone)]
pub(in crate::server) struct Unsent {
    limit: u64,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    bytes: AtomicU64,
    streams: AtomicU64,
}

/// The unread bytes of one stream. Dropping it takes them off the sum.
#[derive(Debug)]
pub(in crate::server) struct UnsentShare {
    unsent: Unsent,
    bytes: u64,
}

impl Unsent {
    pub(in crate::server) fn new(limit: u64) -> Self {
        Unsent { limit, totals: Arc::default() }
    }

    /// Unread bytes of all streams.
    pub(in crate::server) fn bytes(&self) -> u64 {
        self.totals.bytes.load(Ordering::Relaxed)
    }

    /// Adds a stream without unread bytes.
    pub(in crate::server) fn share(&self) -> UnsentShare {
        self.totals.streams.fetch_add(1, Ordering::Relaxed);
        UnsentShare { unsent: self.clone(), bytes: 0 }
    }
}

impl UnsentShare {
    /// Sets the stream's unread bytes to `bytes`. Returns the most that it may have: unlimited while all streams
    /// together are within the limit, and an equal part of the limit when they are not.
    pub(in crate::server) fn update(&mut self, bytes: usize) -> usize {
        let bytes = bytes as u64;
        let Unsent { limit, totals } = &self.unsent;
        totals.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = totals.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let total = before.saturating_sub(self.bytes);
        self.bytes = bytes;
        if total <= *limit {
            return usize::MAX;
        }
        let part = limit / totals.streams.load(Ordering::Relaxed).max(1);
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

impl Drop for UnsentShare {
    fn drop(&mut self) {
        self.unsent.totals.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.unsent.totals.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_is_bounded_until_the_total_exceeds_the_limit_and_then_each_to_an_equal_part() {
        let unsent = Unsent::new(100);
        let (mut one, mut two) = (unsent.share(), unsent.share());
        assert_eq!((one.update(60), two.update(40)), (usize::MAX, usize::MAX));
        assert_eq!(two.update(41), 50);
        assert_eq!(one.update(20), usize::MAX);
        two.update(90);
        drop(two);
        assert_eq!(one.update(99), usize::MAX);
        assert_eq!(one.update(101), 100, "a stream that is alone has all of it");
    }
}
