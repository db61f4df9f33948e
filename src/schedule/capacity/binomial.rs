//! Probabilities of the binomial distribution, in logarithms, so that none underflows before it is added.

/// Logarithms of the factorials of 0 to `most`.
pub(super) struct LogFactorials(Vec<f64>);

impl LogFactorials {
    pub(super) fn up_to(most: usize) -> Self {
        let mut logs = vec![0.0];
        for number in 1..=most {
            logs.push(logs[number - 1] + (number as f64).ln());
        }
        LogFactorials(logs)
    }

    /// The probability of `hits` hits in `trials` trials, each with the probability `hit`.
    pub(super) fn probability(&self, trials: usize, hits: usize, hit: f64) -> f64 {
        if hits > trials {
            return 0.0;
        }
        if hit <= 0.0 || hit >= 1.0 {
            return if hits == if hit <= 0.0 { 0 } else { trials } { 1.0 } else { 0.0 };
        }
        let choices = self.0[trials] - self.0[hits] - self.0[trials - hits];
        (choices + hits as f64 * hit.ln() + (trials - hits) as f64 * (-hit).ln_1p()).exp()
    }

    /// The probabilities of 0 to `most` hits.
    pub(super) fn up_to_hits(&self, trials: usize, most: usize, hit: f64) -> Vec<f64> {
        (0..=most).map(|hits| self.probability(trials, hits, hit)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_coins_and_add_up() {
        let logs = LogFactorials::up_to(1000);
        let coins = logs.up_to_hits(4, 4, 0.5);
        for (found, right) in coins.iter().zip([1.0, 4.0, 6.0, 4.0, 1.0]) {
            assert!((found * 16.0 - right).abs() < 1e-12, "{coins:?}");
        }
        assert!((logs.up_to_hits(1000, 1000, 0.03).iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(logs.up_to_hits(3, 4, 0.0), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(logs.up_to_hits(3, 4, 1.0), [0.0, 0.0, 0.0, 1.0, 0.0]);
    }
}
