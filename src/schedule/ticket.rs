//! Who ends a frame: one compare-and-swap state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::queue::Queue;

const WAITING: u8 = 0;
const ON_DEVICE: u8 = 1;
const ENDED: u8 = 2;

/// A frame's state: waiting (replaceable), on the device, or ended by whoever came first.
#[derive(Debug, Default)]
pub(super) struct FrameState(AtomicU8);

impl FrameState {
    fn step(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The device takes the frame; from now on it cannot be replaced. False when it was taken back before.
    pub fn claim(&self) -> bool {
        self.step(WAITING, ON_DEVICE) || self.0.load(Ordering::Acquire) == ON_DEVICE
    }

    /// Ends the frame with an answer. False when it was taken back before.
    pub fn finish(&self) -> bool {
        self.0.swap(ENDED, Ordering::AcqRel) != ENDED
    }

    pub fn is_ended(&self) -> bool {
        self.0.load(Ordering::Acquire) == ENDED
    }

    fn replace(&self) -> bool {
        self.step(WAITING, ENDED)
    }
}

/// A submitted frame, to take it back.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub(super) state: Arc<FrameState>,
    pub(super) queue: Arc<Queue>,
    pub(super) stream: u64,
}

impl Ticket {
    /// Takes the frame back unless the device has it. True: its `done` will never be called.
    pub fn replace(&self) -> bool {
        let taken = self.state.replace();
        if taken {
            self.queue.forget_ended(self.stream);
        }
        taken
    }

    /// Takes the frame back at any stage; the device stops at the next step boundary. True: its `done` will never be
    /// called. False: it has been called, or is about to be.
    pub fn withdraw(&self) -> bool {
        let taken = self.state.finish();
        if taken {
            self.queue.forget_ended(self.stream);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_on_the_device_is_not_replaced_but_can_be_withdrawn() {
        let state = FrameState::default();
        assert!(state.claim() && state.claim());
        assert!(!state.replace());
        assert!(state.finish());
        assert!(!state.finish(), "only one ends it");
        assert!(!state.claim());
    }

    #[test]
    fn a_replaced_frame_never_reaches_the_device() {
        let state = FrameState::default();
        assert!(state.replace());
        assert!(!state.claim() && !state.finish() && state.is_ended());
    }
}
