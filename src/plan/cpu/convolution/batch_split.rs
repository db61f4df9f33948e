//! Chooses between running a batch as a whole and row by row.
//!
//! Weights are packed for the first number of rows, usually one. For another number oneDNN may want another layout, and
//! then packs the weights again at every call, which can take longer than the convolution. Otherwise the whole batch is
//! sometimes faster, above all on many cores. So the first batches of each size are run both ways in turn, and the
//! faster way is kept. Later it is measured again, since other programs may have held the processor. The same holds for
//! several gradients of one result.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::plan::Timing;
use crate::plan::autotune::undisturbed;
use crate::torch::{OperatorError, channels_last};

/// Batches that are timed each way before the faster is kept, without those in which other programs held the processor.
/// The first one finds memory and caches cold.
const TRIALS: u32 = 3;
/// The same with those.
const MAX_TRIALS: u32 = 6;
/// Batches before the two ways are measured again, at first. The number doubles each time.
const MIN_PAUSE: u32 = 256;
const MAX_PAUSE: u32 = 1 << 16;

/// Timings by batch shape.
#[derive(Debug)]
pub(in crate::plan) struct BatchSplit {
    timing: Timing,
    tried: Mutex<HashMap<Shape, Tried>>,
}

/// The number of tensors, and the rows of each.
type Shape = (usize, i64);

#[derive(Debug, Clone, Copy)]
struct Tried {
    /// As a whole, and row by row.
    ways: [Measured; 2],
    /// Batches since the faster way is known.
    since: u32,
    pause: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Measured {
    count: u32,
    undisturbed: u32,
    least: Duration,
}

impl Measured {
    fn note(&mut self, time: Duration, is_undisturbed: bool) {
        self.least = if self.count == 0 { time } else { self.least.min(time) };
        self.count += 1;
        self.undisturbed += u32::from(is_undisturbed);
    }

    fn is_enough(&self) -> bool {
        self.undisturbed >= TRIALS || self.count >= MAX_TRIALS
    }
}

impl Default for Tried {
    fn default() -> Self {
        Tried { ways: Default::default(), since: 0, pause: MIN_PAUSE }
    }
}

impl Tried {
    fn is_decided(&self) -> bool {
        self.ways.iter().all(Measured::is_enough)
    }

    fn runs_at_once(&self) -> bool {
        let [at_once, one_by_one] = &self.ways;
        if self.is_decided() { at_once.least <= one_by_one.least } else { at_once.count <= one_by_one.count }
    }

    /// A batch has run the way that is known to be the faster.
    fn has_run(&mut self) {
        self.since += 1;
        if self.since >= self.pause {
            *self = Tried { pause: (self.pause * 2).min(MAX_PAUSE), ..Tried::default() };
        }
    }
}

impl BatchSplit {
    /// With [`Timing::Never`] every batch is run as a whole.
    pub fn new(timing: Timing) -> Self {
        BatchSplit { timing, tried: Mutex::default() }
    }

    /// Runs `run` on the batch `input`, as a whole or row by row.
    pub fn run(
        &self,
        input: &Tensor,
        run: impl Fn(&Tensor) -> Result<Tensor, OperatorError>,
    ) -> Result<Tensor, OperatorError> {
        let rows = input.size()[0];
        if rows == 1 {
            return run(input);
        }
        self.faster((1, rows), |at_once| if at_once { run(input) } else { one_by_one(input, rows, &run) })
    }

    /// Runs `run` on each of several tensors of one shape, concatenated or one by one.
    pub fn run_each(
        &self,
        inputs: &[&Tensor],
        run: impl Fn(&Tensor) -> Result<Tensor, OperatorError>,
    ) -> Result<Vec<Tensor>, OperatorError> {
        let each = || inputs.iter().map(|input| run(input)).collect();
        let [first, _, ..] = inputs else { return each() };
        let together = || Ok(run(&channels_last(&Tensor::f_cat(inputs, 0)?)?)?.f_chunk(inputs.len() as i64, 0)?);
        self.faster((inputs.len(), first.size()[0]), |at_once| if at_once { together() } else { each() })
    }

    /// Runs `run` with whether to take all rows of this shape at once, and times it until both ways are measured.
    fn faster<T>(&self, shape: Shape, run: impl FnOnce(bool) -> Result<T, OperatorError>) -> Result<T, OperatorError> {
        if self.timing == Timing::Never {
            return run(true);
        }
        let tried = self.lock().get(&shape).copied().unwrap_or_default();
        let at_once = tried.runs_at_once();
        if tried.is_decided() {
            let result = run(at_once)?;
            self.lock().entry(shape).or_default().has_run();
            return Ok(result);
        }
        let start = Instant::now();
        let (result, is_undisturbed) = undisturbed(|| run(at_once));
        let time = start.elapsed();
        let result = result?;
        self.lock().entry(shape).or_default().ways[usize::from(!at_once)].note(time, is_undisturbed);
        Ok(result)
    }

    /// Measures both ways again: batches run on another kernel from now on.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Shape, Tried>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn one_by_one(
    input: &Tensor,
    rows: i64,
    run: &impl Fn(&Tensor) -> Result<Tensor, OperatorError>,
) -> Result<Tensor, OperatorError> {
    let results =
        (0..rows).map(|row| run(&channels_last(&input.f_narrow(0, row, 1)?)?)).collect::<Result<Vec<_>, _>>()?;
    channels_last(&Tensor::f_cat(&results, 0)?)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::thread::sleep;

    use tch::{Device, Kind};

    use super::*;

    /// Runs batches through `split` whose calls take these times, and returns the rows of each call.
    fn calls(split: &BatchSplit, batches: u32, rows: i64, at_once: Duration, one: Duration) -> Vec<Vec<i64>> {
        let input = channels_last(&Tensor::randn([rows, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        (0..batches)
            .map(|_| {
                let seen = RefCell::new(Vec::new());
                let result = split.run(&input, |part| {
                    seen.borrow_mut().push(part.size()[0]);
                    sleep(if part.size()[0] == 1 { one } else { at_once });
                    Ok(part * 2.0)
                });
                assert!(result.unwrap().equal(&(&input * 2.0)));
                seen.into_inner()
            })
            .collect()
    }

    const SLOW: Duration = Duration::from_millis(50);
    const FAST: Duration = Duration::ZERO;
    /// Batches after which both ways have been measured.
    const MEASURED: u32 = 2 * MAX_TRIALS;

    #[test]
    fn the_faster_way_is_kept_after_both_were_timed() {
        for (at_once, one, kept) in [(SLOW, FAST, vec![1, 1, 1]), (FAST, SLOW, vec![3])] {
            let split = BatchSplit::new(Timing::AtFirstRun);
            let tried = calls(&split, MEASURED, 3, at_once, one);
            assert_eq!(tried[..4], [vec![3], vec![1, 1, 1], vec![3], vec![1, 1, 1]]);
            assert_eq!(calls(&split, 5, 3, at_once, one), vec![kept; 5]);
        }
    }

    #[test]
    fn the_ways_are_measured_again_later() {
        let split = BatchSplit::new(Timing::WhenTuning);
        calls(&split, MEASURED, 2, SLOW, FAST);
        // The slow way is not taken while the fast one is known.
        calls(&split, MIN_PAUSE, 2, FAST, FAST);
        calls(&split, MEASURED, 2, FAST, SLOW);
        assert_eq!(calls(&split, 2, 2, FAST, SLOW), [[2], [2]]);
    }

    #[test]
    fn the_ways_are_measured_again_for_another_kernel() {
        let split = BatchSplit::new(Timing::WhenTuning);
        calls(&split, MEASURED, 2, SLOW, FAST);
        split.forget();
        calls(&split, MEASURED, 2, FAST, SLOW);
        assert_eq!(calls(&split, 2, 2, FAST, SLOW), [[2], [2]]);
    }

    #[test]
    fn without_timing_a_batch_is_run_as_a_whole() {
        assert_eq!(calls(&BatchSplit::new(Timing::Never), MEASURED, 2, SLOW, FAST), vec![[2]; MEASURED as usize]);
    }

    #[test]
    fn several_tensors_are_run_together_or_each_for_itself() {
        let random = || channels_last(&Tensor::randn([2, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        let inputs = [random(), random(), random()];
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        for (slow, kept) in [(6, vec![2, 2, 2]), (2, vec![6])] {
            let split = BatchSplit::new(Timing::AtFirstRun);
            let mut seen = Vec::new();
            for _ in 0..=MEASURED {
                let rows = RefCell::new(Vec::new());
                let found = split.run_each(&inputs, |input| {
                    rows.borrow_mut().push(input.size()[0]);
                    if input.size()[0] == slow {
                        sleep(SLOW);
                    }
                    Ok(input * 2.0)
                });
                assert!(found.unwrap().iter().zip(&inputs).all(|(found, input)| found.equal(&(*input * 2.0))));
                seen.push(rows.into_inner());
            }
            assert_eq!(seen[..2], [vec![6], vec![2, 2, 2]]);
            assert_eq!(seen.last(), Some(&kept));
            // Another number of tensors of the same rows is timed by itself.
            let rows = RefCell::new(Vec::new());
            let random = || channels_last(&Tensor::randn([3, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
            let pair = [random(), random()];
            let note = |input: &Tensor| {
                rows.borrow_mut().push(input.size()[0]);
                Ok(input * 2.0)
            };
            split.run_each(&[&pair[0], &pair[1]], note).unwrap();
            assert_eq!(rows.into_inner(), [6]);
        }
        let split = BatchSplit::new(Timing::AtFirstRun);
        assert_eq!(split.run_each(&inputs[..1], |input| Ok(input * 2.0)).unwrap().len(), 1);
    }

    #[test]
    fn one_row_is_run_as_it_is() {
        assert_eq!(calls(&BatchSplit::new(Timing::AtFirstRun), 3, 1, FAST, FAST), [[1], [1], [1]]);
    }
}
