//! Which frame is prepared next, and what the device finds: the line and the batch ahead, as one thing without threads.

use std::time::{Duration, Instant};

use self::line::Line;
use self::next_batch::{NextBatch, Prepared, Taken};
use self::ticket::StreamKey;
use self::turn::{Ready, Turn, Waiting};

/// All frames from their submission until the device takes them. Time is passed in.
#[derive(Debug)]
pub(super) struct Dispatch<J: Waiting, R> {
    line: Line<J>,
    next: NextBatch<J, R>,
}

/// Frames whose time to live has run out. They are nowhere any more, and their clients do not know.
#[derive(Debug)]
pub(super) struct Expired<J, R> {
    pub(super) waiting: Vec<J>,
    pub(super) ready: Vec<R>,
}

impl<J, R> Expired<J, R> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty()
    }
}

impl<J: Waiting, R: Ready> Dispatch<J, R> {
    /// A stream that waits rises by one class each `ageing`; a batch that is not full may wait `max_delay` for more rows.
    pub(super) fn new(ageing: Duration, max_delay: Duration, workers: usize) -> Self {
        Dispatch { line: Line::new(ageing), next: NextBatch::new(max_delay, workers) }
    }

    /// A frame comes in.
    pub(super) fn push(&mut self, job: J, now: Instant) {
        self.line.push(job, now);
    }

    /// The next frame to decode and prepare, if there is room for one. To be asked until there is none, after each change.
    pub(super) fn choose(&mut self, now: Instant) -> Option<J> {
        self.next.choose(&mut self.line, now)
    }

    /// What became of a chosen frame.
    pub(super) fn prepared(&mut self, turn: &Turn, prepared: Prepared<R>, now: Instant) {
        self.next.prepared(turn, prepared, &mut self.line, now);
    }

    /// Forgets a stream's frames that were ended while they waited.
    pub(super) fn sweep(&mut self, stream: StreamKey) {
        self.line.sweep(stream);
    }

    /// A worker is free: what it runs now. When that is nothing it waits, as do `others`; then frames in preparation are the
    /// device's own.
    pub(super) fn take(&mut self, others: usize, now: Instant) -> Taken<R> {
        let taken = self.next.take(&mut self.line, now);
        if others > 0 || !matches!(taken, Taken::Rows(_)) {
            self.next.device_waits();
        }
        taken
    }

    /// Whether something is ready for another worker.
    pub(super) fn has_rows(&self) -> bool {
        self.next.has_rows()
    }

    pub(super) fn take_expired(&mut self) -> Expired<J, R> {
        Expired { waiting: self.line.take_expired(), ready: self.next.take_expired() }
    }

    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.next.ready()
    }

    #[cfg(test)]
    pub(super) fn is_preparing(&self) -> bool {
        self.next.is_preparing()
    }
}
pub mod line;
pub mod next_batch;
pub mod ticket;
pub mod turn;
