//! A stream's policy and its bounds.

use std::time::{Duration, Instant};

/// What is dropped or held when frames come faster than they are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The oldest frame that has not reached the device; for a slow reader, the oldest unsent answer.
    #[default]
    Latest,
    /// The client: nothing is dropped, reading stops.
    Block,
    /// The newest frame: one that finds no credit is refused, and its sender may try again.
    Reject,
}

impl Overflow {
    /// The word in logs and traces.
    pub fn name(self) -> &'static str {
        match self {
            Overflow::Latest => "latest",
            Overflow::Block => "block",
            Overflow::Reject => "reject",
        }
    }
}

/// A stream's policy, checked and with its defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub overflow: Overflow,
    /// Frames kept waiting for the device under [`Overflow::Latest`]; else the credit. At least 1.
    pub depth: usize,
    /// Endings are sent as they come, not in sequence order.
    pub unordered: bool,
    /// Frames that come faster than one in this time are dropped.
    pub min_interval: Option<Duration>,
}

/// The limits of a session. Under [`Overflow::Latest`] one frame more may be in work: the one that has just replaced
/// another. Under [`Overflow::Reject`] as many errors may wait beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Frames accepted whose ending has not been sent, those in [`super::DroppedRun`]s aside. At least 1.
    pub max_in_flight: usize,
    /// Bytes of answers not yet sent; one answer may always wait, however large.
    pub max_unsent_bytes: usize,
}

impl Policy {
    /// The most frames in flight: the client's credit.
    pub fn credit(&self, bounds: &Bounds) -> usize {
        match self.overflow {
            Overflow::Latest => bounds.max_in_flight,
            Overflow::Block | Overflow::Reject => bounds.max_in_flight.min(self.depth),
        }
    }
}

/// Limits the rate of frames by the generic cell rate algorithm (ITU-T I.371): a camera at exactly that rate loses none
/// to its jitter.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When the next frame is due.
    due: Option<Instant>,
}

impl Pace {
    /// Whether a frame that comes now is within the rate.
    pub(super) fn allows(&mut self, now: Instant, interval: Duration) -> bool {
        let due = self.due.unwrap_or(now);
        if now + interval / 2 < due {
            return false;
        }
        self.due = Some(due.max(now) + interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_camera_at_the_allowed_rate_loses_nothing_to_jitter_and_a_faster_one_is_held_to_it() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let interval = Duration::from_millis(100);
        let passed = |times: &mut dyn Iterator<Item = u64>| {
            let mut pace = Pace::default();
            times.filter(|&ms| pace.allows(at(ms), interval)).count()
        };
        assert_eq!(passed(&mut (0..50).map(|n| n * 100 + if n % 2 == 0 { 0 } else { 30 })), 50);
        let fast = passed(&mut (0..300).map(|n| n * 33));
        assert!((98..=101).contains(&fast), "{fast} of 300 in 9.9 s at 10 a second");
        assert_eq!(passed(&mut [0, 1, 2, 3].into_iter()), 1);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.allows(start, Duration::from_millis(100)));
        let later = start + Duration::from_secs(60);
        let passed = (0..10).filter(|n| pace.allows(later + Duration::from_millis(*n), Duration::from_millis(100)));
        assert_eq!(passed.count(), 1);
    }
}
