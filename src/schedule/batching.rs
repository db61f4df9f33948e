//! How many rows of a model run together: as many as pay.
//!
//! A device that is large beside its model answers more frames when rows run together; a CPU whose caches one row fills answers
//! fewer. So it is measured, on the frames that come: now and then a batch is formed of another number of rows, and the
//! one with the shortest time for each row's work is kept.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Full batches between two trials of another size.
const TRIAL_EVERY: u32 = 64;
/// Measurements before a size is judged; the first one also finds memory and caches unprepared, and does not count.
const ENOUGH: u32 = 3;
/// Batches that were to try a size and had fewer rows, until it is given up: there is no need for it now.
const MISSES: u32 = 8;
/// How much of an average a new measurement makes.
const WEIGHT: f64 = 0.25;
/// Another size is taken when it is faster by more than this, so that noise does not move it to and fro.
const WORTH: f64 = 0.98;

/// Learns from batches how large they should be.
#[derive(Debug)]
pub(super) struct Batching {
    /// 1, 2, 4, … and the largest that is allowed.
    sizes: Vec<u32>,
    learned: Mutex<Learned>,
}

#[derive(Debug)]
struct Learned {
    /// Of each size: how often it was measured, and seconds for a unit of work.
    measured: Vec<(u32, f64)>,
    /// The place of the size that is used.
    best: usize,
    /// The place of another one that is tried.
    trial: Option<usize>,
    misses: u32,
    /// Full batches since the last trial.
    since_trial: u32,
    /// The place of the size that was tried last.
    tried: usize,
}

impl Batching {
    /// Of at most so many rows, at least 1. Until it has learned, that many.
    pub(super) fn at_most(rows: u32) -> Self {
        let mut sizes: Vec<u32> = (0..u32::BITS).map(|power| 1 << power).take_while(|size| *size < rows).collect();
        sizes.push(rows.max(1));
        let learned = Learned {
            measured: vec![(0, 0.0); sizes.len()],
            best: sizes.len() - 1,
            trial: None,
            misses: 0,
            since_trial: 0,
            tried: 0,
        };
        Batching { sizes, learned: Mutex::new(learned) }
    }

    /// How many rows the next batch may have.
    pub(super) fn rows(&self) -> usize {
        let learned = self.lock();
        self.sizes[learned.trial.unwrap_or(learned.best)] as usize
    }

    /// A batch of so many rows has run, whose work had so many units.
    pub(super) fn ran(&self, rows: usize, units: u32, took: Duration) {
        let size = self.sizes.iter().position(|size| *size as usize == rows);
        let mut learned = self.lock();
        if let Some(size) = size {
            let per_unit = took.as_secs_f64() / f64::from(units.max(1));
            let (count, average) = &mut learned.measured[size];
            *count = count.saturating_add(1);
            *average = if *count <= 2 { per_unit } else { *average + WEIGHT * (per_unit - *average) };
        }
        if size == Some(learned.trial.unwrap_or(learned.best)) {
            learned.decide();
        } else if learned.trial.is_some() {
            learned.miss();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    fn is_judged(&self, size: usize) -> bool {
        self.measured[size].0 >= ENOUGH
    }

    /// A batch that was to try a size was not full.
    fn miss(&mut self) {
        self.misses += 1;
        if self.misses >= MISSES {
            (self.trial, self.since_trial) = (None, 0);
        }
    }

    /// After a full batch: which size comes next.
    fn decide(&mut self) {
        if let Some(size) = self.trial {
            if !self.is_judged(size) {
                return;
            }
            self.trial = None;
            self.since_trial = 0;
            if self.measured[size].1 < WORTH * self.measured[self.best].1 {
                self.best = size;
            }
            return;
        }
        self.since_trial += 1;
        if !self.is_judged(self.best) {
            return;
        }
        let sizes = self.measured.len();
        let others = || (1..sizes).map(|step| (self.tried + step) % sizes).filter(|size| *size != self.best);
        let unknown = others().find(|size| !self.is_judged(*size));
        let next = if self.since_trial >= TRIAL_EVERY { others().next() } else { None };
        if let Some(size) = unknown.or(next) {
            (self.trial, self.misses) = (Some(size), 0);
            self.tried = size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs batches under a load that always fills them; gives the sizes that ran.
    fn run(batching: &Batching, batches: usize, mut seconds: impl FnMut(usize) -> f64) -> Vec<usize> {
        let step = |_| {
            let rows = batching.rows();
            batching.ran(rows, rows as u32, Duration::from_secs_f64(seconds(rows)));
            rows
        };
        (0..batches).map(step).collect()
    }

    #[test]
    fn rows_run_together_where_that_pays() {
        let batching = Batching::at_most(8);
        let sizes = run(&batching, 500, |rows| 0.010 + 0.001 * rows as f64);
        assert_eq!(batching.rows(), 8);
        assert!(sizes.iter().filter(|&&rows| rows != 8).count() < 30, "trials are few: {sizes:?}");
    }

    #[test]
    fn rows_run_alone_where_that_pays() {
        let batching = Batching::at_most(8);
        let sizes = run(&batching, 500, |rows| 0.010 * (rows as f64).powf(1.06));
        assert!(sizes[100..].iter().filter(|&&rows| rows == 1).count() > 380, "{sizes:?}");
    }

    #[test]
    fn a_size_in_between_is_found_and_a_change_is_noticed() {
        let batching = Batching::at_most(16);
        let cache = |rows: usize| rows as f64 * if rows > 4 { 0.02 } else { 0.01 } + 0.01;
        run(&batching, 500, cache);
        assert_eq!(batching.rows(), 4);
        let sizes = run(&batching, 3000, |rows| 0.010 + 0.001 * rows as f64);
        assert_eq!(sizes.last(), Some(&16));
    }

    #[test]
    fn noise_does_not_move_it_to_and_fro() {
        let batching = Batching::at_most(8);
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        let sizes = run(&batching, 2000, |rows| rows as f64 * (0.010 + 0.0002 * noise()));
        let changes = sizes.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes < 120, "{changes} changes");
    }

    #[test]
    fn batches_that_are_not_full_change_nothing() {
        let batching = Batching::at_most(8);
        for _ in 0..200 {
            batching.ran(1, 1, Duration::from_millis(1));
            batching.ran(3, 3, Duration::from_millis(1));
        }
        assert_eq!(batching.rows(), 8);
    }

    #[test]
    fn a_trial_that_the_load_does_not_fill_is_given_up() {
        let batching = Batching::at_most(8);
        run(&batching, 100, |rows| 0.010 * (rows as f64).powf(1.06));
        assert_eq!(batching.rows(), 1);
        // From now on there are never more than three frames at once.
        let mut larger = 0;
        for _ in 0..1000 {
            let rows = batching.rows().min(3);
            larger += usize::from(rows > 1);
            batching.ran(rows, rows as u32, Duration::from_secs_f64(0.010 * (rows as f64).powf(1.06)));
        }
        assert!(larger < 100, "{larger} batches were larger than what pays");
    }

    #[test]
    fn sizes_are_powers_of_two_and_the_limit() {
        assert_eq!(Batching::at_most(6).sizes, [1, 2, 4, 6]);
        assert_eq!(Batching::at_most(1).sizes, [1]);
        assert_eq!(Batching::at_most(8).sizes, [1, 2, 4, 8]);
    }
}
