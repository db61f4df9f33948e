//! The endings that wait to be sent.

use std::collections::VecDeque;

use super::dropped::{DropReason, DroppedBlock, DroppedRun};

#[derive(Debug)]
enum Item<A> {
    Answer { sequence: u64, answer: A, bytes: usize },
    Dropped(DroppedBlock),
}

/// Taken out of the outbox.
#[derive(Debug)]
pub(super) enum Sent<A> {
    Answer { sequence: u64, answer: A },
    Dropped(DroppedRun),
}

/// Endings in the order in which they are sent. Two blocks of dropped frames are never adjacent.
#[derive(Debug)]
pub(super) struct Outbox<A> {
    items: VecDeque<Item<A>>,
    answers: usize,
    bytes: usize,
}

impl<A> Outbox<A> {
    pub(super) fn new() -> Self {
        Outbox { items: VecDeque::new(), answers: 0, bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Answers not yet sent.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    /// Their size.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push_answer(&mut self, sequence: u64, answer: A, bytes: usize) {
        self.answers += 1;
        self.bytes += bytes;
        self.items.push_back(Item::Answer { sequence, answer, bytes });
    }

    pub(super) fn push_dropped(&mut self, block: DroppedBlock) {
        match self.items.back_mut() {
            Some(Item::Dropped(last)) => last.merge(block),
            _ => self.items.push_back(Item::Dropped(block)),
        }
    }

    /// Turns the oldest answer into a dropped frame; returns its sequence and the answer.
    pub(super) fn evict(&mut self, reason: DropReason) -> Option<(u64, A)> {
        let index = self.items.iter().position(|item| matches!(item, Item::Answer { .. }))?;
        let Some(Item::Answer { sequence, answer, bytes }) = self.items.remove(index) else { return None };
        self.answers -= 1;
        self.bytes -= bytes;
        let mut block = DroppedBlock::of(sequence, reason);
        // The oldest answer has at most one block before it and one behind it.
        if let Some(Item::Dropped(_)) = self.items.get(index)
            && let Some(Item::Dropped(after)) = self.items.remove(index)
        {
            block.merge(after);
        }
        match index.checked_sub(1).and_then(|before| self.items.get_mut(before)) {
            Some(Item::Dropped(before)) => before.merge(block),
            _ => self.items.insert(index, Item::Dropped(block)),
        }
        Some((sequence, answer))
    }

    pub(super) fn pop(&mut self) -> Option<Sent<A>> {
        match self.items.pop_front()? {
            Item::Answer { sequence, answer, bytes } => {
                self.answers -= 1;
                self.bytes -= bytes;
                Some(Sent::Answer { sequence, answer })
            }
            Item::Dropped(mut block) => {
                let (run, more) = block.pop();
                if more {
                    self.items.push_front(Item::Dropped(block));
                }
                run.map(Sent::Dropped)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_answer_joins_the_drops_around_it() {
        let mut outbox = Outbox::new();
        outbox.push_dropped(DroppedBlock::of(1, DropReason::SlowReader));
        outbox.push_answer(2, "two", 10);
        outbox.push_dropped(DroppedBlock::of(3, DropReason::SlowReader));
        outbox.push_answer(4, "four", 20);
        assert_eq!(outbox.evict(DropReason::SlowReader), Some((2, "two")));
        assert_eq!((outbox.answers(), outbox.bytes()), (1, 20));
        assert!(
            matches!(outbox.pop(), Some(Sent::Dropped(run)) if (run.first, run.last, run.count) == (1, 3, 3)),
            "one run of all three"
        );
        assert!(matches!(outbox.pop(), Some(Sent::Answer { sequence: 4, answer: "four" })));
        assert!(outbox.is_empty() && outbox.pop().is_none());
    }
}
