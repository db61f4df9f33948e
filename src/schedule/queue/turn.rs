//! What decides when a frame's turn comes.

use std::time::Instant;

use super::ticket::StreamKey;
use super::ticket::Ticket;

/// A frame, as the line sees it.
#[derive(Debug, Clone)]
pub(in crate::schedule) struct Turn {
    pub(in crate::schedule) stream: StreamKey,
    pub(in crate::schedule) ticket: Ticket,
    /// From then on it is not worth the device's time.
    pub(in crate::schedule) expires_at: Option<Instant>,
    /// What it takes of the device: see [`cost`].
    pub(in crate::schedule) cost: u32,
    /// Its stream's class; higher ones go first.
    pub(in crate::schedule) priority: u8,
    /// Since when its stream has waited.
    pub(in crate::schedule) since: Instant,
    /// How many batches had been formed when its stream's turn came.
    pub(in crate::schedule) due: u64,
    /// Its stream's place among the others then.
    pub(in crate::schedule) rank: u64,
}

impl Turn {
    /// Of a frame that comes in at `now`.
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

    /// Whether it is still worth anything.
    pub(in crate::schedule) fn is_alive(&self, now: Instant) -> bool {
        !self.ticket.is_over() && !self.has_expired(now)
    }
}

/// A frame's share of the device's work in rows: one forward, and one reverse for each target.
pub(in crate::schedule) fn cost(reverses: u32) -> u32 {
    reverses.saturating_add(1)
}

/// A frame that waits in the line. In tests, something much smaller.
pub(in crate::schedule) trait Waiting {
    /// What those that run together have in common.
    type Key: Clone + std::fmt::Debug;

    fn turn(&self) -> &Turn;
    fn turn_mut(&mut self) -> &mut Turn;
    fn key(&self) -> Self::Key;
    fn belongs_to(&self, key: &Self::Key) -> bool;
    /// How many of them may run together. At least 1.
    fn max_batch(&self) -> usize;
}

/// A frame that only waits for the device.
pub(in crate::schedule) trait Ready {
    fn turn(&self) -> &Turn;
    /// `[C, H, W]`; rows of one batch share it.
    fn shape(&self) -> [u32; 3];
}
