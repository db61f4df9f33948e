//! The frames between the thread that reads a source and the stream that sends them: a bounded queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::frame::OutgoingFrame;

/// What happens to a frame that finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The reader waits: a recording loses no frame.
    Wait,
    /// The oldest frame makes room: a camera is always read, and its newest frame is sent.
    Replace,
}

/// A queue of at most `depth` frames, from one reader to one stream.
#[derive(Debug)]
pub struct FrameQueue {
    depth: usize,
    full: Full,
    state: Mutex<State>,
    /// The reader waits here for room, or for the end of the stream.
    changed: Condvar,
    /// The stream waits here for a frame.
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<OutgoingFrame>,
    /// The source has no more frames.
    is_over: bool,
    /// The stream takes no more frames.
    is_closed: bool,
    /// Frames that were replaced, or left when the queue was closed.
    unsent: u64,
}

impl FrameQueue {
    pub fn new(depth: usize, full: Full) -> Self {
        let (state, changed, filled) = Default::default();
        FrameQueue { depth: depth.max(1), full, state, changed, filled }
    }

    /// Appends a frame. Under [`Full::Wait`] it blocks while the queue is full. Returns whether the stream takes more
    /// frames; if not, the frame is gone.
    pub fn push(&self, frame: OutgoingFrame) -> bool {
        let mut state = self.state.lock();
        while state.frames.len() >= self.depth && !state.is_closed {
            match self.full {
                Full::Wait => self.changed.wait(&mut state),
                Full::Replace => {
                    state.frames.pop_front();
                    state.unsent += 1;
                }
            }
        }
        if !state.is_closed {
            state.frames.push_back(frame);
            self.filled.notify_one();
        }
        !state.is_closed
    }

    /// Says that no frame follows.
    pub fn end(&self) {
        self.state.lock().is_over = true;
        self.filled.notify_one();
    }

    /// Waits for the next frame; `None` after the last one.
    pub async fn next(&self) -> Option<OutgoingFrame> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(frame) = state.frames.pop_front() {
                    self.changed.notify_all();
                    return Some(frame);
                }
                if state.is_over || state.is_closed {
                    return None;
                }
            }
            // A notification between the lock and this call is kept.
            self.filled.notified().await;
        }
    }

    /// Takes no more frames: the reader's next `push` returns `false`.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.unsent += state.frames.len() as u64;
        state.frames.clear();
        self.changed.notify_all();
    }

    /// Whether the last frame has been taken.
    pub fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.is_closed || (state.is_over && state.frames.is_empty())
    }

    /// Frames that were replaced by newer ones, or left when the queue was closed.
    pub fn unsent(&self) -> u64 {
        self.state.lock().unsent
    }

    /// Blocks until the queue is closed, at most for `patience`. Returns whether it is closed.
    pub fn wait_closed(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while !state.is_closed && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.is_closed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::frame::Payload;
    use super::*;

    fn frame(name: &str) -> OutgoingFrame {
        OutgoingFrame::new(name, Payload::Encoded(Vec::new().into()))
    }

    #[tokio::test]
    async fn the_newest_frame_replaces_the_oldest_and_is_counted() {
        let queue = FrameQueue::new(1, Full::Replace);
        assert!(["a", "b", "c"].into_iter().all(|name| queue.push(frame(name))));
        queue.end();
        assert_eq!(queue.next().await.map(|frame| frame.name).as_deref(), Some("c"));
        assert_eq!((queue.next().await, queue.unsent()), (None, 2));
        assert!(queue.is_drained());
    }

    #[tokio::test]
    async fn a_reader_waits_for_room_and_loses_nothing() {
        let queue = Arc::new(FrameQueue::new(2, Full::Wait));
        let reader = queue.clone();
        let reading = std::thread::spawn(move || {
            (0..10).for_each(|number| assert!(reader.push(frame(&number.to_string()))));
            reader.end();
        });
        for number in 0..10 {
            let next = queue.next().await.expect("ten frames");
            assert_eq!(next.name, number.to_string());
        }
        assert_eq!((queue.next().await, queue.unsent()), (None, 0));
        reading.join().expect("no panic");
    }

    #[test]
    fn a_closed_queue_frees_its_reader_and_counts_what_is_left() {
        let queue = Arc::new(FrameQueue::new(1, Full::Wait));
        assert!(queue.push(frame("left")));
        let reader = queue.clone();
        let reading = std::thread::spawn(move || reader.push(frame("too late")));
        assert!(!queue.wait_closed(Duration::from_millis(10)));
        queue.close();
        assert!(!reading.join().expect("no panic"), "the stream takes no more frames");
        assert!(queue.wait_closed(Duration::ZERO) && queue.is_drained());
        assert_eq!(queue.unsent(), 1);
    }
}
