//! What a stream may ask for and what bounds it.

/// Who gives way when frames come faster than they are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The oldest frame that has not reached the device; for a slow reader, the oldest unsent answer.
    #[default]
    Latest,
    /// The client: nothing is dropped, reading stops.
    Block,
}

/// A stream's policy, checked and with its defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub overflow: Overflow,
    /// Frames kept waiting for the device under [`Overflow::Latest`]; the credit under [`Overflow::Block`]. At least 1.
    pub depth: usize,
    /// Endings are told as they come.
    pub unordered: bool,
}

/// What a session holds at most. Under [`Overflow::Latest`] one frame more may be there: the one that has just replaced
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Frames accepted whose ending has not been sent, those in [`super::DroppedRun`]s aside. At least 1.
    pub max_in_flight: usize,
    /// Bytes of answers not yet sent; one answer may always wait, however large.
    pub max_unsent_bytes: usize,
}

impl Policy {
    /// Frames in flight at most: what the client is told as its credit.
    pub fn credit(&self, bounds: &Bounds) -> usize {
        match self.overflow {
            Overflow::Latest => bounds.max_in_flight,
            Overflow::Block => bounds.max_in_flight.min(self.depth),
        }
    }
}
