//! The number of rows of a model that run together: the one with the shortest time for each row.
//!
//! A device that is large beside its model answers more frames when rows run together; a CPU whose caches one row fills
//! answers fewer. So the batch size is measured on the clients' frames: now and then a batch is formed of another
//! number of rows, and the size with the shortest time for each row's work is kept.

use std::time::Duration;

use parking_lot::Mutex;

/// Full batches between two trials of another size, at first. The number doubles after each trial that finds nothing
/// better, up to [`MAX_PAUSE`]: trials of larger batches take memory.
const MIN_PAUSE: u32 = 64;
const MAX_PAUSE: u32 = 64 << 8;
/// Measurements before a size is judged. The first one does not count: memory and caches are cold.
const ENOUGH: u32 = 3;
/// Batches with fewer rows than the size on trial, after which the trial ends: the load does not need that size.
const MISSES: u32 = 8;
/// Weight of a new measurement in the moving average.
const WEIGHT: f64 = 0.25;
/// A size replaces the best one when its time is below this fraction of the best one's, so that noise changes nothing.
pub(super) const WORTH: f64 = 0.98;

/// Learns the best batch size of one model.
#[derive(Debug)]
pub(super) struct Batching {
    /// 1, 2, 4, … and the maximum.
    sizes: Vec<u32>,
    learned: Mutex<Learned>,
}

#[derive(Debug)]
struct Learned {
    /// Seconds for a unit of work, of each size that was judged.
    measured: Vec<Option<f64>>,
    /// Index of the size in use.
    best: usize,
    /// Index of the largest size that the device has memory for.
    most: usize,
    /// The size on trial: another one, or the first one before it is judged.
    trial: Option<Trial>,
    /// Full batches since the last trial.
    since_trial: u32,
    /// Full batches before the next one.
    pause: u32,
    /// Index of the size that was tried last.
    tried: usize,
}

#[derive(Debug)]
struct Trial {
    size: usize,
    count: u32,
    average: f64,
    misses: u32,
}

impl Trial {
    fn of(size: usize) -> Self {
        Trial { size, count: 0, average: 0.0, misses: 0 }
    }
}

impl Batching {
    /// Batches of 1 to `rows` rows; of `rows` until something else is learned. `rows` of 0 counts as 1.
    pub(super) fn at_most(rows: u32) -> Self {
        let mut sizes: Vec<u32> = (0..u32::BITS).map(|power| 1 << power).take_while(|size| *size < rows).collect();
        sizes.push(rows.max(1));
        let best = sizes.len() - 1;
        let learned = Learned {
            measured: vec![None; sizes.len()],
            best,
            most: best,
            trial: Some(Trial::of(best)),
            since_trial: MIN_PAUSE,
            pause: MIN_PAUSE,
            tried: 0,
        };
        Batching { sizes, learned: Mutex::new(learned) }
    }

    /// The most rows that the next batch may have.
    pub(super) fn rows(&self) -> usize {
        let learned = self.learned.lock();
        let size = learned.trial.as_ref().map_or(learned.best, |trial| trial.size);
        self.sizes[size] as usize
    }

    /// The device has no memory for more than `rows` rows, at least 1, at a time.
    pub(super) fn fits(&self, rows: usize) {
        let most = self.sizes.iter().rposition(|size| *size as usize <= rows).unwrap_or(0);
        let mut learned = self.learned.lock();
        if most < learned.most {
            learned.most = most;
            if learned.trial.as_ref().is_some_and(|trial| trial.size > most) {
                learned.rest(1);
            }
            if learned.best > most {
                learned.best = most;
                learned.trial = Some(Trial::of(most));
            }
        }
    }

    /// A batch of `rows` rows and `units` units of work has run for `took`.
    pub(super) fn ran(&self, rows: usize, units: u32, took: Duration) {
        let size = self.sizes.iter().position(|size| *size as usize == rows);
        let per_unit = took.as_secs_f64() / f64::from(units.max(1));
        self.learned.lock().learn(size, per_unit);
    }
}

impl Learned {
    /// Learns from a batch. `size` is the index of its size, or `None` for a number of rows that is not among the
    /// sizes.
    fn learn(&mut self, size: Option<usize>, per_unit: f64) {
        match &mut self.trial {
            Some(trial) if size == Some(trial.size) => {
                trial.count += 1;
                let is_first = trial.count <= 2;
                trial.average = if is_first { per_unit } else { trial.average + WEIGHT * (per_unit - trial.average) };
                if trial.count >= ENOUGH {
                    let (size, average) = (trial.size, trial.average);
                    self.judge(size, average);
                }
            }
            // Nothing is known yet: the trial of the first size goes on.
            Some(trial) if trial.size == self.best => {}
            Some(trial) => {
                trial.misses += 1;
                if trial.misses >= MISSES {
                    self.rest(2);
                }
            }
            None if size == Some(self.best) => {
                let average = self.measured[self.best].get_or_insert(per_unit);
                *average += WEIGHT * (per_unit - *average);
                self.since_trial = self.since_trial.saturating_add(1);
                self.try_another();
            }
            // Batches that are not full say nothing about what larger ones do.
            None => {}
        }
    }

    fn judge(&mut self, size: usize, average: f64) {
        let was_known = self.measured[size].replace(average).is_some();
        let best = self.measured[self.best].unwrap_or(f64::INFINITY);
        if size != self.best && average < WORTH * best {
            self.best = size;
            self.rest(0);
        } else {
            self.rest(if was_known { 2 } else { 1 });
        }
        if self.measured[..=self.most].iter().any(Option::is_none) {
            // Whatever is not known yet comes next.
            self.since_trial = self.pause;
            self.try_another();
        }
    }

    /// Ends a trial. The next one comes after `times` times the last pause; 0: after [`MIN_PAUSE`].
    fn rest(&mut self, times: u32) {
        (self.trial, self.since_trial) = (None, 0);
        self.pause = if times == 0 { MIN_PAUSE } else { (self.pause * times).min(MAX_PAUSE) };
    }

    /// Begins a trial when it is time: of what is not known, else of each size in turn.
    fn try_another(&mut self) {
        if self.since_trial < self.pause {
            return;
        }
        let sizes = self.most + 1;
        let others = || (1..=sizes).map(|step| (self.tried + step) % sizes).filter(|size| *size != self.best);
        if let Some(size) = others().find(|size| self.measured[*size].is_none()).or_else(|| others().next()) {
            (self.trial, self.tried) = (Some(Trial::of(size)), size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_the_device_has_no_memory_for_are_not_tried_again() {
        let batching = Batching::at_most(16);
        batching.fits(5);
        let sizes = run(&batching, 2000, |rows| 1.0 / rows as f64);
        assert_eq!(sizes.iter().max(), Some(&4), "4 is the largest size that fits into 5");
        batching.fits(8);
        assert!(run(&batching, 500, |_| 1.0).iter().all(|rows| *rows <= 4), "a limit is not lifted");
        batching.fits(0);
        assert_eq!(run(&batching, 100, |_| 1.0), [1; 100]);
    }

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
        let sizes = run(&batching, 40_000, |rows| 0.010 + 0.001 * rows as f64);
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
        // There are never more than three frames at once from here on.
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
