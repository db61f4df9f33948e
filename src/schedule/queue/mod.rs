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
    /// One for all workers; or one for each, where models run on some of them only.
    next: Vec<NextBatch<J, R>>,
}

/// Which workers run which models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workers {
    /// Each of this number of workers runs all models.
    Alike(usize),
    /// Of this number of workers, [`Waiting::runs_on`] says which run a frame.
    Bound(usize),
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
    /// rows. A batch is prepared ahead for each worker.
    pub(super) fn new(ageing: Duration, max_delay: Duration, workers: Workers) -> Self {
        let next = match workers {
            Workers::Alike(count) => vec![NextBatch::new(max_delay, count)],
            Workers::Bound(count) => (0..count.max(1)).map(|_| NextBatch::new(max_delay, 1)).collect(),
        };
        Dispatch { line: Line::new(ageing), next }
    }

    /// The index of the batch that is prepared for a worker.
    fn of(&self, worker: usize) -> usize {
        worker.min(self.next.len() - 1)
    }

    fn is_bound(&self) -> bool {
        self.next.len() > 1
    }

    /// Appends a frame to its stream's part of the line.
    pub(super) fn push(&mut self, job: J, now: Instant) {
        self.line.push(job, now);
    }

    /// The next frame to decode and prepare, if there is room for one. Call it after each change until it returns
    /// `None`.
    pub(super) fn choose(&mut self, now: Instant) -> Option<J> {
        let Dispatch { line, next } = self;
        if let [only] = &mut next[..] {
            return only.choose(line, |_| true, now);
        }
        let mut order: Vec<usize> = (0..next.len()).collect();
        order.sort_by_key(|&worker| next[worker].need());
        order.into_iter().find_map(|worker| next[worker].choose(line, |job| job.runs_on(worker), now))
    }

    /// Takes back a chosen frame, prepared or not.
    pub(super) fn prepared(&mut self, turn: &Turn, prepared: Prepared<R>, now: Instant) {
        let index = self.next.iter().position(|next| next.is_preparing(turn)).unwrap_or(0);
        self.next[index].prepared(turn, prepared, &mut self.line, now);
    }

    /// Removes a stream's frames that were ended while they waited.
    pub(super) fn sweep(&mut self, stream: StreamKey) {
        self.line.sweep(stream);
    }

    /// The rows that a free worker runs now, those that were prepared for another worker included. When there are none
    /// it waits, as do `others`; frames in preparation can then no longer be replaced.
    pub(super) fn take(&mut self, worker: usize, others: usize, now: Instant) -> Taken<R> {
        let own = self.of(worker);
        let mut taken = self.next[own].take(&mut self.line, now);
        let others = if self.is_bound() { 0 } else { others };
        if others > 0 || !matches!(taken, Taken::Rows(_)) {
            self.next[own].device_waits();
        }
        let other = self.others(worker).next();
        if let (Taken::Nothing, Some(other)) = (&taken, other) {
            taken = self.next[other].take(&mut self.line, now);
            if let Taken::Rows(_) = taken {
                self.next[own].device_works();
            }
        }
        taken
    }

    /// Rows for a device that has another batch in flight: a full batch or none, since more rows may come while it
    /// works.
    pub(super) fn take_full(&mut self, worker: usize, now: Instant) -> Option<Vec<R>> {
        let own = self.of(worker);
        self.next[own].take_full(&mut self.line, now)
    }

    /// The batches that are prepared for other workers and that this one could run.
    fn others(&self, worker: usize) -> impl Iterator<Item = usize> {
        let own = self.of(worker);
        let runs = move |next: &NextBatch<J, R>| next.first().is_some_and(|row| row.runs_on(worker));
        self.next.iter().enumerate().filter(move |(index, next)| *index != own && runs(next)).map(|(index, _)| index)
    }

    /// Prepares `batches` more batches ahead from now on, for a device with several in flight.
    pub(super) fn prepare_more(&mut self, worker: usize, batches: usize) {
        let own = self.of(worker);
        self.next[own].prepare_more(batches);
    }

    /// Whether a row is ready.
    pub(super) fn has_rows(&self) -> bool {
        self.next.iter().any(NextBatch::has_rows)
    }

    /// Whether a row is ready that a worker could run.
    pub(super) fn has_rows_for(&self, worker: usize) -> bool {
        self.next[self.of(worker)].has_rows() || self.others(worker).next().is_some()
    }

    pub(super) fn take_expired(&mut self) -> Expired<J, R> {
        let ready = self.next.iter_mut().flat_map(NextBatch::take_expired).collect();
        Expired { waiting: self.line.take_expired(), ready }
    }

    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.next.iter().map(NextBatch::ready).sum()
    }

    /// Frames that were chosen and are not prepared yet.
    pub(super) fn preparing(&self) -> usize {
        self.next.iter().map(NextBatch::preparing).sum()
    }
}
pub mod line;
pub mod next_batch;
pub mod ticket;
pub mod turn;
