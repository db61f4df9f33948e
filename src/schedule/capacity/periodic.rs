//! Periodic sources before a device that runs one frame after the other: the queue N·D/D/1.
//!
//! A. E. Eckberg, "The single server queue with periodic arrival process and deterministic service times", IEEE
//! Transactions on Communications 27(3), 1979. The formula in the form of J. Roberts, U. Mocci, J. Virtamo (eds.),
//! "Broadband Network Teletraffic", Springer 1996, part III.

use super::binomial::LogFactorials;

/// Halvings of the interval in which the quantile is searched.
const STEPS: u32 = 50;

/// The `quantile` of the time that a frame of one of `streams` streams waits for the device, in seconds. The
/// frames of all streams must take less than a period: `streams · frame_s < period_s`.
pub(super) fn wait_s(streams: u32, period_s: f64, frame_s: f64, quantile: f64) -> f64 {
    let others = streams.saturating_sub(1) as usize;
    let logs = LogFactorials::up_to(others);
    let period = period_s / frame_s;
    // In units of a frame's time. A frame waits for one frame of each other stream at most.
    let (mut low, mut high) = (0.0, others as f64);
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        if exceeds(&logs, others, period, middle) > 1.0 - quantile { low = middle } else { high = middle }
    }
    high * frame_s
}

/// The probability of more than `work` frames' time of unfinished work of `sources` sources with a common `period`, at
/// the moment at which a frame of another stream arrives.
fn exceeds(logs: &LogFactorials, sources: usize, period: f64, work: f64) -> f64 {
    let term = |arrived: usize| {
        let span = arrived as f64 - work;
        logs.probability(sources, arrived, span / period) * (period - sources as f64 + work) / (period - span)
    };
    (work.floor() as usize + 1..=sources).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cameras_wait_for_each_other_as_their_phases_fall() {
        // The wait is uniform between 0 and a frame's time with the probability frame / period, and else 0.
        let wait = |quantile| wait_s(2, 0.100, 0.020, quantile);
        assert!(wait(0.79) < 1e-9);
        for (quantile, right) in [(0.9, 0.010), (0.95, 0.015), (0.99, 0.019)] {
            assert!((wait(quantile) - right).abs() < 1e-6, "{quantile}: {}", wait(quantile));
        }
        assert_eq!(wait_s(1, 0.100, 0.020, 0.99), 0.0);
    }

    #[test]
    fn many_slow_cameras_are_like_poisson_arrivals() {
        // M/D/1 at a utilisation of 0.5: P(W = 0) = 0.5, and P(W ≤ D) = 0.5·e^0.5 by Crommelin's formula.
        let wait = |quantile| wait_s(5000, 10.0, 0.001, quantile);
        assert!(wait(0.499) < 1e-6, "{}", wait(0.499));
        assert!((wait(0.5 * 0.5_f64.exp()) - 0.001).abs() < 2e-5, "{}", wait(0.5 * 0.5_f64.exp()));
    }
}
