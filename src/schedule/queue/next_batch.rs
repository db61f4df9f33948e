//! What is prepared while the device works: one batch, or one for each worker where there are several.

use std::time::{Duration, Instant};

use super::line::Line;
use super::turn::{Ready, Turn, Waiting};

/// Exactly one batch ahead for each of the device's workers, all of one kind: chosen, being decoded, or ready. Until a worker
/// takes them, frames may end, and others take their places.
#[derive(Debug)]
pub(in crate::schedule) struct NextBatch<J: Waiting, R> {
    /// What its rows have in common, and how many may run together.
    kind: Option<(J::Key, usize)>,
    /// Batches ahead.
    workers: usize,
    /// Chosen and being decoded.
    preparing: Vec<Preparing>,
    /// A worker has nothing to do.
    device_waits: bool,
    /// The device has taken rows of this kind already.
    is_begun: bool,
    rows: Vec<R>,
    /// Since when there is a row.
    ready_since: Option<Instant>,
    /// How long a batch may wait for more rows while the device has nothing to do.
    max_delay: Duration,
    /// Rows that were found expired, for whoever tells their clients.
    expired: Vec<R>,
}

#[derive(Debug)]
struct Preparing {
    turn: Turn,
    /// It has ended meanwhile, and its stream has the turn back.
    is_given_back: bool,
}

/// What became of a frame that was chosen.
#[derive(Debug)]
pub(in crate::schedule) enum Prepared<R> {
    Row(R),
    /// It could not be read; its client knows.
    Refused,
    /// It was not worth reading any more.
    Ended,
}

/// What the device finds.
#[derive(Debug)]
pub(in crate::schedule) enum Taken<R> {
    /// Rows that run together now.
    Rows(Vec<R>),
    /// Rows that wait for more of them, until then.
    NotBefore(Instant),
    Nothing,
}

impl<J: Waiting, R: Ready> NextBatch<J, R> {
    pub(in crate::schedule) fn new(max_delay: Duration, workers: usize) -> Self {
        NextBatch {
            kind: None,
            workers: workers.max(1),
            preparing: Vec::new(),
            device_waits: false,
            is_begun: false,
            rows: Vec::new(),
            ready_since: None,
            max_delay,
            expired: Vec::new(),
        }
    }

    /// Chooses another frame for the batch, when there is room and one that fits. Frames that have ended since make room.
    pub(in crate::schedule) fn choose(&mut self, line: &mut Line<J>, now: Instant) -> Option<J> {
        self.forget(line, now);
        if self.rows.is_empty() && self.preparing.is_empty() {
            self.kind = None;
            self.is_begun = false;
        }
        let job = match &self.kind {
            None => line.next(now, |_| true)?,
            Some((_, most)) if self.rows.len() + self.preparing.len() >= *most * self.workers => return None,
            // What is left of a batch that has begun runs as it is when it is the turn of another kind. Else frames of one
            // kind that never run out would keep all others waiting.
            Some((key, _)) if self.is_begun && !line.first(now)?.belongs_to(key) => return None,
            Some((key, _)) => line.next(now, |job| job.belongs_to(key))?,
        };
        self.kind.get_or_insert_with(|| (job.key(), job.max_batch()));
        if self.device_waits {
            job.turn().ticket.take();
        }
        self.preparing.push(Preparing { turn: job.turn().clone(), is_given_back: false });
        Some(job)
    }

    /// Lets go of rows that have ended or expired; their streams have their turns back.
    fn forget(&mut self, line: &mut Line<J>, now: Instant) {
        let (kept, gone): (Vec<R>, Vec<R>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| row.turn().is_alive(now));
        self.rows = kept;
        // At once, and not when its decoding ends: else the frame that took its place would be chosen as if its stream had not
        // waited, and a camera that replaces each of its frames could wait for ever.
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

    /// The device has nothing to do: frames that are prepared now are its own from here on. Else a camera that is faster
    /// than its frames are decoded would replace each of them before the device sees any.
    pub(in crate::schedule) fn device_waits(&mut self) {
        self.device_waits = true;
        for chosen in &self.preparing {
            chosen.turn.ticket.take();
        }
    }

    /// What became of a chosen frame.
    pub(in crate::schedule) fn prepared(
        &mut self,
        turn: &Turn,
        prepared: Prepared<R>,
        line: &mut Line<J>,
        now: Instant,
    ) {
        let place = self.preparing.iter().position(|other| other.turn.ticket.is_same(&turn.ticket));
        if place.is_some_and(|place| self.preparing.remove(place).is_given_back) {
            return;
        }
        match prepared {
            Prepared::Row(row) => {
                self.ready_since.get_or_insert(now);
                self.rows.push(row);
            }
            Prepared::Ended => line.give_back(turn),
            // Its stream has had its turn: one that sends nothing else must not keep the others waiting.
            Prepared::Refused => {}
        }
    }

    #[cfg(test)]
    pub(in crate::schedule) fn ready(&self) -> usize {
        self.rows.len()
    }

    #[cfg(test)]
    pub(in crate::schedule) fn is_preparing(&self) -> bool {
        !self.preparing.is_empty()
    }

    /// Takes the rows that can run together now: those of the first one's input size, as many as may. Each is the device's from here on;
    /// those that have ended or expired are left out.
    pub(in crate::schedule) fn take(&mut self, line: &mut Line<J>, now: Instant) -> Taken<R> {
        self.forget(line, now);
        let most = self.kind.as_ref().map_or(1, |(_, most)| *most);
        if let Some(until) = self.ready_since.map(|since| since + self.max_delay)
            && self.rows.len() < most
            && now < until
        {
            return Taken::NotBefore(until);
        }
        let mut now_running = Vec::new();
        // Frames may end at any time: where all of one size just have, the next size runs.
        while let (true, Some(shape)) = (now_running.is_empty(), self.rows.first().map(Ready::shape)) {
            for row in std::mem::take(&mut self.rows) {
                let joins = row.shape() == shape && now_running.len() < most;
                if joins { &mut now_running } else { &mut self.rows }.push(row);
            }
            now_running.retain(|row: &R| row.turn().ticket.take());
        }
        self.ready_since = (!self.rows.is_empty()).then_some(now);
        if now_running.is_empty() {
            return Taken::Nothing;
        }
        self.device_waits = false;
        self.is_begun = true;
        line.batch_formed();
        Taken::Rows(now_running)
    }

    /// Whether a worker would find something.
    pub(in crate::schedule) fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Rows that have expired since this was last asked. They are in no batch, and their clients do not know.
    pub(in crate::schedule) fn take_expired(&mut self) -> Vec<R> {
        std::mem::take(&mut self.expired)
    }
}
