//! What the queue knows of a frame.

use std::time::Instant;

use super::ticket::StreamKey;
use super::ticket::Ticket;

/// The part of a frame that decides when its turn comes.
#[derive(Debug, Clone)]
pub(in crate::schedule) struct Turn {
    pub(in crate::schedule) stream: StreamKey,
    pub(in crate::schedule) ticket: Ticket,
    /// The moment at which it expires.
    pub(in crate::schedule) expires_at: Option<Instant>,
    /// Its runs of the model: see [`crate::explain::Method::cost`].
    pub(in crate::schedule) cost: u32,
    /// Its stream's class; higher ones go first.
    pub(in crate::schedule) priority: u8,
    /// Since when its stream has waited.
    pub(in crate::schedule) since: Instant,
    /// The number of batches that had been formed when its stream's turn came.
    pub(in crate::schedule) due: u64,
    /// Its stream's rank at that moment.
    pub(in crate::schedule) rank: u64,
}

impl Turn {
    /// The turn of a frame that is submitted at `now`.
    pub(in crate::schedule) fn new(
        stream: StreamKey,
        ticket: Ticket,
        priority: u8,
        cost: u32,
        expires_at: Option<Instant>,
        now: Instant,
    ) -> Self {
        Turn { stream, ticket, expires_at, cost, priority, since: now, due: 0, rank: 0 }
    }

    pub(in crate::schedule) fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it has neither ended nor expired.
    pub(in crate::schedule) fn is_alive(&self, now: Instant) -> bool {
        !self.ticket.is_over() && !self.has_expired(now)
    }
}

/// A frame that waits in the line.
pub(in crate::schedule) trait Waiting {
    /// Frames run together if their keys are equal.
    type Key: Clone + std::fmt::Debug;

    fn turn(&self) -> &Turn;
    fn turn_mut(&mut self) -> &mut Turn;
    fn key(&self) -> Self::Key;
    fn belongs_to(&self, key: &Self::Key) -> bool;
    /// The most frames of its key that may run together. At least 1.
    fn max_batch(&self) -> usize;
    /// Whether a worker has the frame's model. Frames of one key agree.
    fn runs_on(&self, worker: usize) -> bool;
}

/// A frame that only waits for the device.
pub(in crate::schedule) trait Ready {
    fn turn(&self) -> &Turn;
    /// `[C, H, W]`; rows of one batch share it.
    fn shape(&self) -> [u32; 3];
    /// Whether a worker has the frame's model.
    fn runs_on(&self, worker: usize) -> bool;
}
