//! The frames that wait: the line, and the batch that is prepared ahead. No threads, no clock.

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

/// Frames whose time to live has run out. They have left the queue, and their clients have not been told.
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
    /// A stream that waits rises by one class each `ageing`; a batch that is not full may wait `max_delay` for more
    /// rows. A batch is prepared ahead for each of `workers`.
    pub(super) fn new(ageing: Duration, max_delay: Duration, workers: usize) -> Self {
        Dispatch { line: Line::new(ageing), next: NextBatch::new(max_delay, workers) }
    }

    /// Appends a frame to its stream's part of the line.
    pub(super) fn push(&mut self, job: J, now: Instant) {
        self.line.push(job, now);
    }

    /// The next frame to decode and prepare, if there is room for one. Call it after each change until it returns
    /// `None`.
    pub(super) fn choose(&mut self, now: Instant) -> Option<J> {
        self.next.choose(&mut self.line, now)
    }

    /// Takes back a chosen frame, prepared or not.
    pub(super) fn prepared(&mut self, turn: &Turn, prepared: Prepared<R>, now: Instant) {
        self.next.prepared(turn, prepared, &mut self.line, now);
    }

    /// Removes a stream's frames that were ended while they waited.
    pub(super) fn sweep(&mut self, stream: StreamKey) {
        self.line.sweep(stream);
    }

    /// The rows that a free worker runs now. When there are none it waits, as do `others`; frames in preparation can
    /// then no longer be replaced.
    pub(super) fn take(&mut self, others: usize, now: Instant) -> Taken<R> {
        let taken = self.next.take(&mut self.line, now);
        if others > 0 || !matches!(taken, Taken::Rows(_)) {
            self.next.device_waits();
        }
        taken
    }

    /// Rows for a device that has another batch in flight: a full batch or none, since more rows may come while it
    /// works.
    pub(super) fn take_full(&mut self, now: Instant) -> Option<Vec<R>> {
        self.next.take_full(&mut self.line, now)
    }

    /// Prepares `batches` more batches ahead from now on, for a device with several in flight.
    pub(super) fn prepare_more(&mut self, batches: usize) {
        self.next.prepare_more(batches);
    }

    /// Whether a row is ready for another worker.
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
