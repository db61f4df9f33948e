//! The rows that are prepared while the device works.

use std::time::{Duration, Instant};

use super::line::Line;
use super::turn::{Ready, Turn, Waiting};

/// Rows for exactly one batch ahead for each batch that devices can have in flight, all of one kind: chosen, being
/// decoded, or ready. A frame that ends before a worker takes it is replaced by another.
#[derive(Debug)]
pub(in crate::schedule) struct NextBatch<J: Waiting, R> {
    /// The key of the rows, and the most that may run together.
    kind: Option<(J::Key, usize)>,
    batches_ahead: usize,
    /// Chosen and being decoded.
    preparing: Vec<Preparing>,
    /// A worker waits.
    device_waits: bool,
    /// The device has taken rows of this kind already.
    is_begun: bool,
    rows: Vec<R>,
    /// Since when a row is ready.
    ready_since: Option<Instant>,
    /// The longest time that a batch waits for more rows while a worker waits.
    max_delay: Duration,
    /// Expired rows whose clients have not been told.
    expired: Vec<R>,
}

#[derive(Debug)]
struct Preparing {
    turn: Turn,
    /// The frame has ended, and its stream has its turn back.
    is_given_back: bool,
}

/// The result of preparing a frame.
#[derive(Debug)]
pub(in crate::schedule) enum Prepared<R> {
    Row(R),
    /// It could not be read; its client has been told.
    Refused,
    /// It had ended or expired before it was read.
    Ended,
}

/// What a free worker gets.
#[derive(Debug)]
pub(in crate::schedule) enum Taken<R> {
    /// Rows that run together now.
    Rows(Vec<R>),
    /// There are rows, which wait for more rows until then.
    NotBefore(Instant),
    Nothing,
}

impl<J: Waiting, R: Ready> NextBatch<J, R> {
    pub(in crate::schedule) fn new(max_delay: Duration, workers: usize) -> Self {
        NextBatch {
            kind: None,
            batches_ahead: workers.max(1),
            preparing: Vec::new(),
            device_waits: false,
            is_begun: false,
            rows: Vec::new(),
            ready_since: None,
            max_delay,
            expired: Vec::new(),
        }
    }

    /// Chooses another frame for the batch, if there is room and a frame that `fits` the workers. Frames that have
    /// ended make room.
    pub(in crate::schedule) fn choose(
        &mut self,
        line: &mut Line<J>,
        fits: impl Fn(&J) -> bool,
        now: Instant,
    ) -> Option<J> {
        self.forget(line, now);
        if self.rows.is_empty() && self.preparing.is_empty() {
            self.kind = None;
            self.is_begun = false;
        }
        let job = match &self.kind {
            None => line.next(now, &fits)?,
            Some((_, most)) if self.rows.len() + self.preparing.len() >= *most * self.batches_ahead => return None,
            // Once rows of this kind have begun to run and another kind has its turn, no more rows join. An endless
            // supply of one kind would otherwise keep all others waiting.
            Some((key, _)) if self.is_begun && !line.first(now, &fits)?.belongs_to(key) => return None,
            Some((key, _)) => line.next(now, |job| job.belongs_to(key))?,
        };
        self.kind.get_or_insert_with(|| (job.key(), job.max_batch()));
        if self.device_waits {
            job.turn().ticket.take();
        }
        self.preparing.push(Preparing { turn: job.turn().clone(), is_given_back: false });
        Some(job)
    }

    /// Drops rows that have ended or expired and gives their streams their turns back.
    fn forget(&mut self, line: &mut Line<J>, now: Instant) {
        let (kept, gone): (Vec<R>, Vec<R>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| row.turn().is_alive(now));
        self.rows = kept;
        // Now, not when its decoding ends: the newer frame would otherwise be chosen as if its stream had not waited,
        // and a camera that replaces each of its frames might never have one explained.
        for Preparing { turn, is_given_back } in &mut self.preparing {
            if !*is_given_back && turn.ticket.is_over() {
                line.give_back(turn);
                *is_given_back = true;
            }
        }
        for row in gone {
            line.give_back(row.turn());
            if !row.turn().ticket.is_over() {
                self.expired.push(row);
            }
        }
        if self.rows.is_empty() {
            self.ready_since = None;
        }
    }

    /// A worker waits: frames that are being prepared can no longer be replaced. A camera that sends faster than its
    /// frames are decoded would otherwise replace each of them before the device gets one.
    pub(in crate::schedule) fn device_waits(&mut self) {
        self.device_waits = true;
        for chosen in &self.preparing {
            chosen.turn.ticket.take();
        }
    }

    /// Takes back a chosen frame, prepared or not.
    pub(in crate::schedule) fn prepared(
        &mut self,
        turn: &Turn,
        prepared: Prepared<R>,
        line: &mut Line<J>,
        now: Instant,
    ) {
        let index = self.preparing.iter().position(|other| other.turn.ticket.is_same(&turn.ticket));
        if index.is_some_and(|index| self.preparing.remove(index).is_given_back) {
            return;
        }
        match prepared {
            Prepared::Row(row) => {
                self.ready_since.get_or_insert(now);
                self.rows.push(row);
            }
            Prepared::Ended => line.give_back(turn),
            // The stream has used its turn: one that sends only bad frames must not keep the others waiting.
            Prepared::Refused => {}
        }
    }

    #[cfg(test)]
    pub(in crate::schedule) fn ready(&self) -> usize {
        self.rows.len()
    }

    /// Frames that were chosen and are not prepared yet.
    pub(in crate::schedule) fn preparing(&self) -> usize {
        self.preparing.len()
    }

    /// Whether the frame was chosen for this batch and is being decoded.
    pub(in crate::schedule) fn is_preparing(&self, turn: &Turn) -> bool {
        self.preparing.iter().any(|other| other.turn.ticket.is_same(&turn.ticket))
    }

    /// Less for a batch that needs frames more: a worker waits for it, or it has few rows.
    pub(in crate::schedule) fn need(&self) -> (bool, usize) {
        (!self.device_waits, self.rows.len() + self.preparing.len())
    }

    /// A row of the batch: all have the same model.
    pub(in crate::schedule) fn first(&self) -> Option<&R> {
        self.rows.first()
    }

    /// The workers have something else to do.
    pub(in crate::schedule) fn device_works(&mut self) {
        self.device_waits = false;
    }

    /// Takes the rows that can run together now: those of the first row's input size, up to the largest batch. They can
    /// no longer be replaced. Rows that have ended or expired are left out.
    pub(in crate::schedule) fn take(&mut self, line: &mut Line<J>, now: Instant) -> Taken<R> {
        self.forget(line, now);
        let most = self.kind.as_ref().map_or(1, |(_, most)| *most);
        if let Some(until) = self.ready_since.map(|since| since + self.max_delay)
            && self.rows.len() < most
            && now < until
        {
            return Taken::NotBefore(until);
        }
        let rows = self.run(most, line, now);
        if rows.is_empty() { Taken::Nothing } else { Taken::Rows(rows) }
    }

    /// Takes a full batch; `None` if there are fewer rows of the first row's input size.
    pub(in crate::schedule) fn take_full(&mut self, line: &mut Line<J>, now: Instant) -> Option<Vec<R>> {
        self.forget(line, now);
        let most = self.kind.as_ref().map_or(1, |(_, most)| *most);
        let shape = self.rows.first()?.shape();
        if self.rows.iter().filter(|row| row.shape() == shape).count() < most {
            return None;
        }
        Some(self.run(most, line, now)).filter(|rows| !rows.is_empty())
    }

    /// Prepares `batches` more batches ahead from now on.
    pub(in crate::schedule) fn prepare_more(&mut self, batches: usize) {
        self.batches_ahead += batches;
    }

    /// Takes at most `most` rows of one input size for the device.
    fn run(&mut self, most: usize, line: &mut Line<J>, now: Instant) -> Vec<R> {
        let mut now_running = Vec::new();
        // Frames may end at any time: if all rows of one size have just ended, the next size runs.
        while let (true, Some(shape)) = (now_running.is_empty(), self.rows.first().map(Ready::shape)) {
            for row in std::mem::take(&mut self.rows) {
                let joins = row.shape() == shape && now_running.len() < most;
                if joins { &mut now_running } else { &mut self.rows }.push(row);
            }
            now_running.retain(|row: &R| row.turn().ticket.take());
        }
        self.ready_since = (!self.rows.is_empty()).then_some(now);
        if !now_running.is_empty() {
            self.device_waits = false;
            self.is_begun = true;
            line.batch_formed();
        }
        now_running
    }

    /// Whether a row is ready.
    pub(in crate::schedule) fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    /// The rows that have expired since the last call. Their clients have not been told.
    pub(in crate::schedule) fn take_expired(&mut self) -> Vec<R> {
        std::mem::take(&mut self.expired)
    }
}
