//! Distributions of latencies in bounded memory: HDR histograms.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Significant digits of the histograms: percentiles have a relative error of at most 0.001.
const DIGITS: u8 = 3;

/// A histogram of latencies.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// In nanoseconds.
    histogram: Histogram<u64>,
    total_ns: u128,
    /// The maximum, exact: the histogram rounds.
    longest: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new(DIGITS).expect("up to five digits are allowed");
        Latencies { histogram, total_ns: 0, longest: Duration::ZERO }
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        // The histogram grows as needed; the limit is 292 years.
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX >> 1);
        if self.histogram.record(ns).is_ok() {
            self.total_ns += latency.as_nanos();
            self.longest = self.longest.max(latency);
        }
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Sum of the latencies, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.total_ns as f64 / 1e6
    }

    /// Mean, in milliseconds; 0 if nothing was recorded.
    pub fn mean_ms(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.total_ms() / self.count() as f64 }
    }

    pub fn max_ms(&self) -> f64 {
        self.longest.as_secs_f64() * 1e3
    }

    /// Quantile of the latencies at `share` (0 to 1), in milliseconds; 0 if nothing was recorded.
    pub fn percentile_ms(&self, share: f64) -> f64 {
        (self.histogram.value_at_quantile(share.clamp(0.0, 1.0)) as f64 / 1e6).min(self.max_ms())
    }

    /// Count, mean, percentiles and maximum, in milliseconds.
    pub fn json_ms(&self) -> Value {
        json!({
            "count": self.count(),
            "mean": self.mean_ms(),
            "p50": self.percentile_ms(0.5),
            "p90": self.percentile_ms(0.9),
            "p95": self.percentile_ms(0.95),
            "p99": self.percentile_ms(0.99),
            "p99_9": self.percentile_ms(0.999),
            "max": self.max_ms(),
        })
    }
}

/// Latencies per stage of the server, in the order in which the stages were first recorded.
#[derive(Debug, Clone, Default)]
pub struct Stages(Vec<(String, Latencies)>);

impl Stages {
    pub fn record(&mut self, name: &str, duration: Duration) {
        let index = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.0.push((name.to_owned(), Latencies::default()));
            self.0.len() - 1
        });
        self.0[index].1.record(duration);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Latencies)> {
        self.0.iter().map(|(name, latencies)| (name.as_str(), latencies))
    }

    pub fn json_ms(&self) -> Value {
        let stages: serde_json::Map<_, _> =
            self.iter().map(|(name, latencies)| (name.to_owned(), latencies.json_ms())).collect();
        stages.into()
    }

    /// A table in text, one line per stage; empty if nothing was recorded.
    pub fn lines(&self) -> Vec<String> {
        let line = |(name, latencies): (&str, &Latencies)| {
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| latencies.percentile_ms(share));
            let (mean, max) = (latencies.mean_ms(), latencies.max_ms());
            format!("{name:<12} {mean:>8.2} {p50:>8.2} {p90:>8.2} {p99:>8.2} {max:>8.2}")
        };
        let head = format!("{:<12} {:>8} {:>8} {:>8} {:>8} {:>8}", "stage, in ms", "mean", "p50", "p90", "p99", "max");
        let mut lines: Vec<String> = self.iter().map(line).collect();
        if !lines.is_empty() {
            lines.insert(0, head);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_have_a_relative_error_of_at_most_a_thousandth() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = latencies.percentile_ms(share);
            assert!((found / expected - 1.0).abs() < 0.0011, "{share}: {found}");
        }
        assert_eq!(latencies.max_ms(), 1000.0);
        assert!((latencies.mean_ms() - 500.5).abs() < 1e-9);
    }

    #[test]
    fn an_empty_histogram_gives_zeros_and_a_latency_of_zero_counts() {
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

    #[test]
    fn stages_keep_the_order_in_which_they_were_recorded() {
        let mut stages = Stages::default();
        for name in ["queue", "forward", "queue"] {
            stages.record(name, Duration::from_millis(2));
        }
        let found: Vec<_> = stages.iter().map(|(name, latencies)| (name, latencies.count())).collect();
        assert_eq!(found, [("queue", 2), ("forward", 1)]);
        assert!(stages.lines()[1].starts_with("queue") && Stages::default().lines().is_empty());
    }
}
