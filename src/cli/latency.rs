//! Latencies in constant memory, however long a stream runs.

use std::time::Duration;

/// Neighbouring buckets differ by this factor: percentiles are right within one per cent.
const STEP: f64 = 1.02;

/// A histogram with logarithmic buckets.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    counts: Vec<u64>,
    count: u64,
    total_ns: u128,
    longest: Duration,
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let bucket = bucket(latency);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
        self.total_ns += latency.as_nanos();
        self.longest = self.longest.max(latency);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean, in milliseconds; 0 when nothing was recorded.
    pub fn mean_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_ns as f64 / self.count as f64 / 1e6 }
    }

    pub fn max_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }

    /// The latency that `share` (0 to 1) of the frames did not exceed, in milliseconds; 0 when nothing was recorded.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        let rank = ((share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle_ms(bucket).min(self.max_ms());
            }
        }
        0.0
    }
}

/// Bucket 0 holds what took no time.
fn bucket(latency: Duration) -> usize {
    let ns = latency.as_nanos() as f64;
    if ns < 1.0 { 0 } else { 1 + (ns.ln() / STEP.ln()) as usize }
}

fn middle_ms(bucket: usize) -> f64 {
    if bucket == 0 { 0.0 } else { STEP.powf(bucket as f64 - 0.5) / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_one_per_cent() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let found = latencies.percentile_ms(share);
            assert!((found / expected - 1.0).abs() < 0.011, "{share}: {found}");
        }
        assert_eq!(latencies.max_ms(), 1000.0);
        assert!((latencies.mean_ms() - 500.5).abs() < 1e-9);
    }

    #[test]
    fn nothing_recorded_is_zero_and_no_time_is_counted() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.percentile_ms(0.5), latencies.mean_ms()), (0.0, 0.0));
        latencies.record(Duration::ZERO);
        assert_eq!((latencies.count(), latencies.percentile_ms(1.0)), (1, 0.0));
    }

    #[test]
    fn no_percentile_exceeds_the_longest() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_nanos(1_234_567));
        assert!(latencies.percentile_ms(0.99) <= latencies.max_ms());
    }
}
