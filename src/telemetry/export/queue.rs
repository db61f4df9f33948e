//! The items that wait for delivery. The queue is bounded, and putting an item in is cheap.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::item::Item;

/// A queue that wakes its reader only when there is enough for a message: a wake for each frame would cost more than
/// the rest of its telemetry.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    most: usize,
    /// Spans that are enough for a message.
    enough: usize,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    spans: usize,
    closed: bool,
}

/// The queue is full, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Queue {
    /// For `most` items; `batch_spans` are enough for a message.
    pub(super) fn new(most: usize, batch_spans: usize) -> Self {
        Queue { waiting: Mutex::default(), most, enough: batch_spans, wake: Notify::new() }
    }

    /// Never waits.
    pub(super) fn put(&self, item: Item) -> Result<(), NoRoom> {
        let mut waiting = self.waiting.lock();
        if waiting.closed || waiting.items.len() >= self.most {
            return Err(NoRoom);
        }
        let before = waiting.spans;
        waiting.spans += item.span_count();
        waiting.items.push_back(item);
        // A full queue is enough, however few its spans are.
        let full = waiting.items.len() == self.most;
        let enough = full || (before < self.enough && waiting.spans >= self.enough);
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

    /// Whether there is enough for a message.
    pub(super) fn has_enough(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.spans >= self.enough || waiting.items.len() >= self.most
    }

    /// Takes a message's worth of the oldest, or what there is.
    pub(super) fn take(&self, into: &mut Vec<Item>) {
        let mut waiting = self.waiting.lock();
        let mut spans = 0;
        while spans < self.enough
            && let Some(item) = waiting.items.pop_front()
        {
            spans += item.span_count();
            into.push(item);
        }
        waiting.spans -= spans;
    }

    /// Drops the items that wait, and returns their number.
    pub(super) fn give_up(&self) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.spans = 0;
        std::mem::take(&mut waiting.items).len()
    }

    /// Refuses further items.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use tokio::time::timeout;

    use super::*;
    use crate::telemetry::record::source::{Call, Source};
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

    fn taken(queue: &Queue) -> usize {
        let mut items = Vec::new();
        queue.take(&mut items);
        items.len()
    }

    #[tokio::test]
    async fn the_reader_is_woken_when_there_is_enough_and_not_before() {
        let queue = Queue::new(10, 3);
        let woken = async || timeout(Duration::from_millis(20), queue.enough()).await.is_ok();
        for _ in 0..2 {
            queue.put(item()).expect("room");
        }
        assert!(!woken().await && !queue.has_enough());
        for _ in 0..2 {
            queue.put(item()).expect("room");
        }
        assert!(woken().await && queue.has_enough());
        assert_eq!(taken(&queue), 3, "a message's worth");
        assert!(!queue.has_enough());
        assert_eq!((taken(&queue), taken(&queue)), (1, 0));
    }

    #[tokio::test]
    async fn a_full_queue_is_enough_for_a_message() {
        let queue = Queue::new(2, 512);
        for _ in 0..2 {
            queue.put(item()).expect("room");
        }
        assert!(queue.has_enough());
        timeout(Duration::from_secs(5), queue.enough()).await.expect("woken");
    }

    #[test]
    fn what_is_full_or_closed_takes_nothing_more() {
        let queue = Queue::new(1, 512);
        queue.put(item()).expect("room");
        assert_eq!(queue.put(item()), Err(NoRoom));
        assert_eq!(queue.give_up(), 1);
        assert_eq!(taken(&queue), 0);
        queue.close();
        assert_eq!(queue.put(item()), Err(NoRoom));
    }
}
