//! What waits for delivery: bounded, and cheap for whoever puts something in.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::traces::Item;

/// Spans of a frame, more or less.
const SPANS_OF_AN_ITEM: usize = 14;

/// A queue that wakes its reader only when there is enough for a message: a wake for each frame would cost more than all that
/// is done about it.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    most: usize,
    enough: usize,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: Vec<Item>,
    closed: bool,
}

/// The queue is full, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Queue {
    /// For `most` items; `batch_spans` are enough for a message.
    pub(super) fn new(most: usize, batch_spans: usize) -> Self {
        let enough = (batch_spans / SPANS_OF_AN_ITEM).clamp(1, most);
        Queue { waiting: Mutex::default(), most, enough, wake: Notify::new() }
    }

    /// Never waits.
    pub(super) fn put(&self, item: Item) -> Result<(), NoRoom> {
        let mut waiting = self.lock();
        if waiting.closed || waiting.items.len() >= self.most {
            return Err(NoRoom);
        }
        waiting.items.push(item);
        let enough = waiting.items.len() == self.enough;
        drop(waiting);
        if enough {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Resolves once there is enough for a message. It may also do so when there is not.
    pub(super) async fn enough(&self) {
        self.wake.notified().await;
    }

    /// Takes all that waits. `spare`, which must be empty, is what the next items go into.
    pub(super) fn take(&self, spare: Vec<Item>) -> Vec<Item> {
        mem::replace(&mut self.lock().items, spare)
    }

    /// Nothing more goes in.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic under the lock leaves whole values: every change is a push or a replacement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use tokio::time::timeout;

    use super::*;
    use crate::telemetry::source::{Call, Source};
    use crate::telemetry::{Sampling, StreamEvents, StreamRecord};

    fn item() -> Item {
        let source = Source::new(Call::ExplainStream, "s".into(), String::new(), ("lite0", 1), None, None);
        Item::Stream(Box::new(StreamRecord {
            trace: Sampling::ratio(1.0).place("", ""),
            source: Arc::new(source),
            opened_at: SystemTime::UNIX_EPOCH,
            lasted: Duration::ZERO,
            peer: None,
            policy: "",
            status: (0, String::new()),
            events: StreamEvents::default(),
        }))
    }

    #[tokio::test]
    async fn the_reader_is_woken_when_there_is_enough_and_not_before() {
        let queue = Queue::new(10, 3 * SPANS_OF_AN_ITEM);
        let woken = async || timeout(Duration::from_millis(20), queue.enough()).await.is_ok();
        for _ in 0..2 {
            queue.put(item()).expect("room");
        }
        assert!(!woken().await);
        queue.put(item()).expect("room");
        assert!(woken().await);
        assert_eq!(queue.take(Vec::new()).len(), 3);
        assert!(queue.take(Vec::new()).is_empty());
    }

    #[test]
    fn what_is_full_or_closed_takes_nothing_more() {
        let queue = Queue::new(1, 512);
        queue.put(item()).expect("room");
        assert_eq!(queue.put(item()), Err(NoRoom));
        assert_eq!(queue.take(Vec::new()).len(), 1);
        queue.close();
        assert_eq!(queue.put(item()), Err(NoRoom));
    }
}
