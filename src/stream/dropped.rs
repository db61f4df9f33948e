//! Notices of dropped frames, kept short however long an overload lasts.

/// Why a frame ended without an answer and without a fault of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// A newer frame replaced it.
    Replaced,
    /// Its time to live ran out.
    Expired,
    /// The client cancelled it.
    Cancelled,
    /// It was answered, and the client did not read the answer.
    SlowReader,
    /// It came faster than the stream's rate allows.
    RateLimited,
    /// The server stopped before it could be finished.
    Draining,
    /// The stream ended with an error before it could be finished.
    StreamEnded,
}

impl DropReason {
    /// The word in logs and traces.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Replaced => "replaced",
            DropReason::Expired => "expired",
            DropReason::Cancelled => "cancelled",
            DropReason::SlowReader => "slow_reader",
            DropReason::RateLimited => "rate_limited",
            DropReason::Draining => "draining",
            DropReason::StreamEnded => "stream_ended",
        }
    }
}

/// Frames that were dropped for one reason. Frames that ended otherwise may be between the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedRun {
    pub first: u64,
    pub last: u64,
    pub count: u64,
    pub reason: DropReason,
}

/// Dropped frames between two that were not: one run for each reason, by first sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DroppedBlock {
    runs: Vec<DroppedRun>,
}

impl DroppedBlock {
    pub(super) fn of(sequence: u64, reason: DropReason) -> Self {
        DroppedBlock { runs: vec![DroppedRun { first: sequence, last: sequence, count: 1, reason }] }
    }

    /// Adds a neighbour's runs.
    pub(super) fn merge(&mut self, other: DroppedBlock) {
        for run in other.runs {
            match self.runs.iter_mut().find(|own| own.reason == run.reason) {
                Some(own) => {
                    own.first = own.first.min(run.first);
                    own.last = own.last.max(run.last);
                    own.count += run.count;
                }
                None => self.runs.push(run),
            }
        }
        self.runs.sort_by_key(|run| run.first);
    }

    /// Removes the run with the lowest first sequence and returns it, and whether another one is left.
    pub(super) fn pop(&mut self) -> (Option<DroppedRun>, bool) {
        if self.runs.is_empty() {
            return (None, false);
        }
        let run = self.runs.remove(0);
        (Some(run), !self.runs.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_run_for_each_reason_the_earlier_first() {
        let mut block = DroppedBlock::of(3, DropReason::Cancelled);
        for (sequence, reason) in [(4, DropReason::Replaced), (9, DropReason::Cancelled), (2, DropReason::Replaced)] {
            block.merge(DroppedBlock::of(sequence, reason));
        }
        let run = |first, last, count, reason| DroppedRun { first, last, count, reason };
        assert_eq!(block.pop(), (Some(run(2, 4, 2, DropReason::Replaced)), true));
        assert_eq!(block.pop(), (Some(run(3, 9, 2, DropReason::Cancelled)), false));
        assert_eq!(block.pop(), (None, false));
    }
}
