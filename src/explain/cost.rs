//! The price of an explanation in runs of the model.

use std::ops::Add;

/// Runs of the model that a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Forward runs per row.
    pub forwards: u32,
    /// Reverse runs per row and target.
    pub reverses: u32,
}

impl Cost {
    /// The runs of one row with `targets` targets. Saturates.
    pub fn runs(self, targets: u32) -> u32 {
        self.reverses.saturating_mul(targets).saturating_add(self.forwards)
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            forwards: self.forwards.saturating_add(other.forwards),
            reverses: self.reverses.saturating_add(other.reverses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_runs_count_once_per_target_and_never_overflow() {
        let cost = Cost { forwards: 1, reverses: 1 };
        assert_eq!((cost.runs(0), cost.runs(3), cost.runs(u32::MAX)), (1, 4, u32::MAX));
        let both = cost + Cost { forwards: u32::MAX, reverses: 2 };
        assert_eq!(both, Cost { forwards: u32::MAX, reverses: 3 });
    }
}
