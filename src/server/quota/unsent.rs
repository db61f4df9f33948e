//! What clients have not read yet, over all streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of answers that wait for their clients. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Unsent {
    limit: u64,
    all: Arc<All>,
}

#[derive(Debug, Default)]
struct All {
    bytes: AtomicU64,
    streams: AtomicU64,
}

/// One stream's part.
#[derive(Debug)]
pub(in crate::server) struct UnsentShare {
    unsent: Unsent,
    bytes: u64,
}

impl Unsent {
    pub(in crate::server) fn new(limit: u64) -> Self {
        Unsent { limit, all: Arc::default() }
    }

    /// What waits now, over all streams.
    pub(in crate::server) fn bytes(&self) -> u64 {
        self.all.bytes.load(Ordering::Relaxed)
    }

    /// For another stream.
    pub(in crate::server) fn share(&self) -> UnsentShare {
        self.all.streams.fetch_add(1, Ordering::Relaxed);
        UnsentShare { unsent: self.clone(), bytes: 0 }
    }
}

impl UnsentShare {
    /// So much waits now. Gives what may: no bound while all streams together are within theirs, an equal part when not.
    pub(in crate::server) fn update(&mut self, bytes: usize) -> usize {
        let bytes = bytes as u64;
        let Unsent { limit, all } = &self.unsent;
        all.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        let in_all = before.saturating_sub(self.bytes);
        self.bytes = bytes;
        if in_all <= *limit {
            return usize::MAX;
        }
        let part = limit / all.streams.load(Ordering::Relaxed).max(1);
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

impl Drop for UnsentShare {
    fn drop(&mut self) {
        self.unsent.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.unsent.all.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_bounded_until_all_together_hold_too_much_and_then_each_to_its_part() {
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
