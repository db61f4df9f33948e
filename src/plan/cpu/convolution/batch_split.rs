//! Chooses between running a batch as a whole and row by row.
//!
//! Weights are packed for the first number of rows, usually one. For another number oneDNN may want another layout, and
//! then packs the weights again at every call, which can take longer than the convolution. Otherwise the whole batch is
//! sometimes faster, above all on many cores. So the first batches of each size are run both ways, and the faster way
//! is kept. The same holds for several gradients of one result.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::torch::{OperatorError, channels_last};

/// Batches that are timed each way before the faster is kept. The first one finds memory and caches cold.
const TRIALS: u32 = 2;

/// Timings by batch shape.
#[derive(Debug, Default)]
pub(in crate::plan) struct BatchSplit(Mutex<HashMap<Shape, Tried>>);

/// The number of tensors, and the rows of each.
type Shape = (usize, i64);

#[derive(Debug, Default, Clone, Copy)]
struct Tried {
    at_once: Measured,
    one_by_one: Measured,
}

#[derive(Debug, Default, Clone, Copy)]
struct Measured {
    count: u32,
    least: Duration,
}

impl Measured {
    fn note(&mut self, time: Duration) {
        self.least = if self.count == 0 { time } else { self.least.min(time) };
        self.count += 1;
    }
}

impl Tried {
    fn is_decided(&self) -> bool {
        self.at_once.count >= TRIALS && self.one_by_one.count >= TRIALS
    }

    fn goes_at_once(&self) -> bool {
        self.at_once.count < TRIALS || (self.is_decided() && self.at_once.least <= self.one_by_one.least)
    }
}

impl BatchSplit {
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
        let tried = self.lock().get(&shape).copied().unwrap_or_default();
        let at_once = tried.goes_at_once();
        let start = Instant::now();
        let result = run(at_once)?;
        if !tried.is_decided() {
            let time = start.elapsed();
            let mut all = self.lock();
            let tried = all.entry(shape).or_default();
            if at_once { &mut tried.at_once } else { &mut tried.one_by_one }.note(time);
        }
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Shape, Tried>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Runs batches whose calls take these times, and returns the rows of each call.
    fn calls(batches: usize, rows: i64, at_once: Duration, one: Duration) -> Vec<Vec<i64>> {
        let input = channels_last(&Tensor::randn([rows, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        let split = BatchSplit::default();
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

    #[test]
    fn the_faster_way_is_kept_after_both_were_tried() {
        let (slow, fast) = (Duration::from_millis(200), Duration::ZERO);
        let together = vec![3];
        let each = vec![1, 1, 1];
        let tried = [&together, &together, &each, &each];
        let expected = |kept| tried.into_iter().chain([kept; 2]).cloned().collect::<Vec<_>>();
        assert_eq!(calls(6, 3, slow, fast), expected(&each));
        assert_eq!(calls(6, 3, fast, slow), expected(&together));
    }

    #[test]
    fn several_tensors_are_run_together_or_each_for_itself() {
        let random = || channels_last(&Tensor::randn([2, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        let inputs = [random(), random(), random()];
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        for (slow, kept) in [(6, vec![2, 2, 2]), (2, vec![6])] {
            let split = BatchSplit::default();
            let mut seen = Vec::new();
            for _ in 0..5 {
                let rows = RefCell::new(Vec::new());
                let found = split.run_each(&inputs, |input| {
                    rows.borrow_mut().push(input.size()[0]);
                    if input.size()[0] == slow {
                        sleep(Duration::from_millis(100));
                    }
                    Ok(input * 2.0)
                });
                assert!(found.unwrap().iter().zip(&inputs).all(|(found, input)| found.equal(&(*input * 2.0))));
                seen.push(rows.into_inner());
            }
            assert_eq!(seen, [vec![6], vec![6], vec![2, 2, 2], vec![2, 2, 2], kept]);
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
        assert_eq!(BatchSplit::default().run_each(&inputs[..1], |input| Ok(input * 2.0)).unwrap().len(), 1);
    }

    #[test]
    fn one_row_is_run_as_it_is() {
        assert_eq!(calls(3, 1, Duration::ZERO, Duration::ZERO), [[1], [1], [1]]);
    }
}
