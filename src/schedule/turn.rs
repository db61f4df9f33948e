//! What decides when a frame's turn comes.

use std::time::Instant;

use super::job::StreamKey;
use super::ticket::Ticket;

/// A frame, as the line sees it.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) stream: StreamKey,
    pub(super) ticket: Ticket,
    /// From then on it is not worth the device's time.
    pub(super) expires_at: Option<Instant>,
    /// What it takes of the device: see [`cost`].
    pub(super) cost: u32,
    /// Its stream's class; higher ones go first.
    pub(super) priority: u8,
    /// Since when its stream has waited.
    pub(super) since: Instant,
    /// How many batches had been formed when its stream's turn came.
    pub(super) due: u64,
    /// Its stream's place among the others then.
    pub(super) rank: u64,
}

impl Turn {
    /// Of a frame that comes in at `now`.
    pub(super) fn new(
        stream: StreamKey,
        ticket: Ticket,
        priority: u8,
        cost: u32,
        expires_at: Option<Instant>,
        now: Instant,
    ) -> Self {
        Turn { stream, ticket, expires_at, cost, priority, since: now, due: 0, rank: 0 }
    }

    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it is still worth anything.
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        !self.ticket.is_over() && !self.has_expired(now)
    }
}

/// A frame's share of the device's work in rows: one forward, and one reverse for each target.
pub(super) fn cost(reverses: u32) -> u32 {
    reverses.saturating_add(1)
}

/// A frame that waits in the line. In tests, something much smaller.
pub(super) trait Waiting {
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
pub(super) trait Ready {
    fn turn(&self) -> &Turn;
    /// `[C, H, W]`; rows of one batch share it.
    fn shape(&self) -> [u32; 3];
}
