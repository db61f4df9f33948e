//! Who ends a frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const OVER: u8 = 2;

/// A frame's state, shared by all who may end it. The caller that gets `true` has ended the frame and must tell its
/// client; for all others it is over.
#[derive(Debug, Clone)]
pub struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// The ticket of a frame that waits.
    pub(in crate::schedule) fn new() -> Self {
        Ticket(Arc::new(AtomicU8::new(WAITING)))
    }

    /// Ends the frame if the device has not taken it.
    pub fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITING, OVER, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the frame wherever it is.
    pub fn end(&self) -> bool {
        self.0.swap(OVER, Ordering::AcqRel) != OVER
    }

    /// Takes the frame for the device: from here on it cannot be replaced. `false`: it has ended.
    pub(in crate::schedule) fn take(&self) -> bool {
        match self.0.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(now) => now == TAKEN,
        }
    }

    /// Whether both belong to one frame.
    pub(in crate::schedule) fn is_same(&self, other: &Ticket) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the frame has ended.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) == OVER
    }
}

/// Identifies a stream in the queue; a single call counts as a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_on_the_device_can_be_cancelled_but_not_replaced() {
        let ticket = Ticket::new();
        assert!(ticket.take() && ticket.take());
        assert!(!ticket.withdraw() && !ticket.is_over());
        assert!(ticket.end() && ticket.is_over());
    }

    #[test]
    fn a_frame_ends_once() {
        let ticket = Ticket::new();
        assert!(ticket.withdraw());
        assert!(!ticket.end() && !ticket.take() && !ticket.withdraw());
    }

    #[test]
    fn of_many_who_end_a_frame_at_once_one_has_done_it() {
        for _ in 0..200 {
            let ticket = Ticket::new();
            let ends = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|n| {
                        let ticket = ticket.clone();
                        scope.spawn(move || if n % 2 == 0 { ticket.withdraw() } else { ticket.end() })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().expect("no panic")).filter(|won| *won).count()
            });
            assert_eq!(ends, 1);
        }
    }
}
