//! How long to wait before the next try.

use std::time::Duration;

/// Bounded exponential back-off with full jitter: clients of a server that restarts do not all come back in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait. Each further wait in a row has twice the bound of the one before.
    pub first: Duration,
    /// Upper bound of any wait.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait after `failures` in a row, at least one: drawn evenly from 0 to its bound.
    pub fn wait(&self, failures: u32) -> Duration {
        self.bound(failures).mul_f64(fastrand::f64())
    }

    fn bound(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_until_it_is_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1) };
        let bounds = [1, 2, 3, 4, 5, 6, u32::MAX].map(|failures| backoff.bound(failures).as_millis());
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000, 1000]);
    }

    #[test]
    fn waits_differ_and_stay_within_their_bound() {
        let backoff = Backoff::default();
        let waits: Vec<Duration> = (0..100).map(|_| backoff.wait(3)).collect();
        assert!(waits.iter().all(|wait| *wait <= backoff.bound(3)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
