//! Frames that wait for the device: streams take turns, and everything is bounded.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Busy;
use super::job::Running;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub max_frames: usize,
    pub max_bytes: u64,
}

/// The queue, shared by those who submit and the former.
pub(super) struct Queue {
    bounds: Bounds,
    lanes: Mutex<Lanes>,
    changed: Condvar,
}

#[derive(Default)]
struct Lanes {
    /// Streams with waiting frames; the next one to be served first.
    turn: VecDeque<u64>,
    waiting: HashMap<u64, VecDeque<Running>>,
    frames: usize,
    bytes: u64,
    closed: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes = self.lock();
        write!(f, "Queue({} frames, {} bytes)", lanes.frames, lanes.bytes)
    }
}

impl Queue {
    pub fn new(bounds: Bounds) -> Self {
        Queue { bounds, lanes: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // Nothing under the lock can panic half-way through a change.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame behind the others of its stream.
    pub fn push(&self, running: Running) -> Result<(), (Busy, Running)> {
        let mut lanes = self.lock();
        let busy = |what: String, limit: u64, option| Busy { what, limit, option };
        let refusal = if lanes.closed {
            Some(busy("the server is stopping; no frames".into(), 0, "shutdown"))
        } else if lanes.frames >= self.bounds.max_frames {
            Some(busy(format!("{} frames", lanes.frames), self.bounds.max_frames as u64, "schedule.max_waiting_frames"))
        } else if lanes.bytes + running.bytes > self.bounds.max_bytes {
            Some(busy(format!("{} bytes of frames", lanes.bytes), self.bounds.max_bytes, "schedule.max_waiting_bytes"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Err((refusal, running));
        }
        lanes.add(running);
        drop(lanes);
        self.changed.notify_all();
        Ok(())
    }

    /// Drops a stream's frames that were taken back, with their memory.
    pub fn forget_ended(&self, stream: u64) {
        let ended = self.lock().remove_ended(stream);
        drop(ended);
    }

    /// Waits for frames and takes up to `limit` of one key, stream by stream; none when the queue is closed and empty.
    /// `limit` is asked with the batch's first frame.
    pub fn take(&self, limit: impl Fn(&Running) -> usize) -> Option<Vec<Running>> {
        let mut lanes = self.lock();
        loop {
            let batch = lanes.take(&limit);
            if !batch.is_empty() {
                return Some(batch);
            }
            if lanes.closed {
                return None;
            }
            lanes = self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more frames; what waits is still served.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Frames and bytes that wait.
    pub fn depth(&self) -> (usize, u64) {
        let lanes = self.lock();
        (lanes.frames, lanes.bytes)
    }
}

impl Lanes {
    fn add(&mut self, running: Running) {
        self.frames += 1;
        self.bytes += running.bytes;
        let stream = running.stream;
        let lane = self.waiting.entry(stream).or_default();
        if lane.is_empty() {
            self.turn.push_back(stream);
        }
        lane.push_back(running);
    }

    fn remove_ended(&mut self, stream: u64) -> Vec<Running> {
        let Some(lane) = self.waiting.get_mut(&stream) else { return Vec::new() };
        let (ended, kept): (VecDeque<Running>, VecDeque<Running>) =
            std::mem::take(lane).into_iter().partition(|r| r.state.is_ended());
        *lane = kept;
        if lane.is_empty() {
            self.waiting.remove(&stream);
            self.turn.retain(|s| *s != stream);
        }
        self.frames -= ended.len();
        self.bytes -= ended.iter().map(|r| r.bytes).sum::<u64>();
        ended.into()
    }

    /// The next frame of a stream, if it is alive and `fits`.
    fn next(&mut self, stream: u64, fits: impl Fn(&Running) -> bool) -> Option<Running> {
        self.remove_ended(stream);
        let lane = self.waiting.get_mut(&stream)?;
        let running = if fits(lane.front()?) { lane.pop_front() } else { None }?;
        self.frames -= 1;
        self.bytes -= running.bytes;
        if lane.is_empty() {
            self.waiting.remove(&stream);
        }
        Some(running)
    }

    /// One frame a turn, in turns, until the batch is full or nobody has a frame that fits.
    fn take(&mut self, limit: &impl Fn(&Running) -> usize) -> Vec<Running> {
        let mut batch: Vec<Running> = Vec::new();
        let mut limit_now = 1;
        let mut passed = 0;
        while passed < self.turn.len() && batch.len() < limit_now {
            let Some(stream) = self.turn.pop_front() else { break };
            let taken = self.next(stream, |r| batch.first().is_none_or(|first| first.key() == r.key()));
            match taken {
                Some(running) => {
                    passed = 0;
                    if batch.is_empty() {
                        limit_now = limit(&running).max(1);
                    }
                    batch.push(running);
                }
                None => passed += 1,
            }
            if self.waiting.contains_key(&stream) {
                // Served or not, it waits for its next turn behind the others.
                self.turn.push_back(stream);
            } else if passed > 0 {
                passed -= 1;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::job::tests_support::running;

    fn streams(batch: &[Running]) -> Vec<u64> {
        batch.iter().map(|r| r.stream).collect()
    }

    fn queue() -> Queue {
        Queue::new(Bounds { max_frames: 100, max_bytes: 1000 })
    }

    fn push(queue: &Queue, stream: u64, class: u32) {
        queue.push(running(stream, "layer", class, 1)).map_err(|(busy, _)| busy).unwrap();
    }

    #[test]
    fn streams_take_turns_however_much_one_of_them_sends() {
        let queue = queue();
        for _ in 0..5 {
            push(&queue, 1, 0);
        }
        push(&queue, 2, 0);
        push(&queue, 3, 0);
        let first = queue.take(|_| 3).unwrap();
        assert_eq!(streams(&first), [1, 2, 3]);
        assert_eq!(streams(&queue.take(|_| 8).unwrap()), [1, 1, 1, 1]);
        assert_eq!(queue.depth(), (0, 0));
    }

    #[test]
    fn only_frames_of_one_method_run_together() {
        let queue = queue();
        let other = running(2, "another layer", 0, 1);
        push(&queue, 1, 0);
        queue.push(other).map_err(|(busy, _)| busy).unwrap();
        push(&queue, 3, 0);
        assert_eq!(streams(&queue.take(|_| 8).unwrap()), [1, 3]);
        assert_eq!(streams(&queue.take(|_| 8).unwrap()), [2]);
    }

    #[test]
    fn frames_that_were_taken_back_are_skipped_and_forgotten() {
        let queue = queue();
        let taken_back = running(1, "layer", 0, 10);
        let state = taken_back.state.clone();
        queue.push(taken_back).map_err(|(busy, _)| busy).unwrap();
        push(&queue, 1, 0);
        assert!(state.finish());
        queue.forget_ended(1);
        assert_eq!(queue.depth(), (1, 1));
        assert_eq!(queue.take(|_| 8).unwrap().len(), 1);
    }

    #[test]
    fn frames_and_bytes_are_bounded_and_the_limit_is_named() {
        let queue = Queue::new(Bounds { max_frames: 2, max_bytes: 10 });
        push(&queue, 1, 0);
        let (busy, _) = queue.push(running(1, "layer", 0, 10)).unwrap_err();
        assert_eq!(busy.option, "schedule.max_waiting_bytes");
        push(&queue, 1, 0);
        let (busy, _) = queue.push(running(1, "layer", 0, 1)).unwrap_err();
        assert_eq!(busy.to_string(), "2 frames are waiting, and 2 may (schedule.max_waiting_frames)");
    }

    #[test]
    fn a_closed_queue_serves_what_waits_and_then_ends() {
        let queue = queue();
        push(&queue, 1, 0);
        queue.close();
        assert!(queue.push(running(1, "layer", 0, 1)).is_err());
        assert_eq!(queue.take(|_| 8).unwrap().len(), 1);
        assert!(queue.take(|_| 8).is_none());
    }
}
