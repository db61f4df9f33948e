//! Several rows at once, or row by row.
//!
//! Weights are laid out for the rows that came first, one as a rule. For another number oneDNN may want another layout, and then
//! arranges the weights anew at every call, which can take longer than the convolution. Where it does not, rows together are
//! sometimes faster, on many cores above all. So the first batches of each number of rows are run one way and the other. The same goes
//! for several gradients of one result.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::torch::{OperatorError, channels_last};

/// Batches that are run each way before the faster one is kept. The first finds memory and caches unprepared.
const TRIALS: u32 = 2;

/// Which way batches of each number of rows are run.
#[derive(Debug, Default)]
pub(in crate::plan) struct Rows(Mutex<HashMap<Shape, Tried>>);

/// So many tensors of so many rows.
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

impl Rows {
    /// What `run` gives for the batch `input`.
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

    /// What `run` gives for each of several tensors of one shape.
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

    /// What `run` gives, which is told whether to take all rows of that shape at once.
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

    /// Runs batches that take that long, and tells how many rows each call had.
    fn calls(batches: usize, rows: i64, at_once: Duration, one: Duration) -> Vec<Vec<i64>> {
        let input = channels_last(&Tensor::randn([rows, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        let ways = Rows::default();
        (0..batches)
            .map(|_| {
                let seen = RefCell::new(Vec::new());
                let result = ways.run(&input, |part| {
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
            let ways = Rows::default();
            let mut seen = Vec::new();
            for _ in 0..5 {
                let rows = RefCell::new(Vec::new());
                let found = ways.run_each(&inputs, |input| {
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
            // Another number of tensors, though of as many rows, is tried for itself.
            let rows = RefCell::new(Vec::new());
            let random = || channels_last(&Tensor::randn([3, 4, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
            let pair = [random(), random()];
            let note = |input: &Tensor| {
                rows.borrow_mut().push(input.size()[0]);
                Ok(input * 2.0)
            };
            ways.run_each(&[&pair[0], &pair[1]], note).unwrap();
            assert_eq!(rows.into_inner(), [6]);
        }
        assert_eq!(Rows::default().run_each(&inputs[..1], |input| Ok(input * 2.0)).unwrap().len(), 1);
    }

    #[test]
    fn one_row_is_run_as_it_is() {
        assert_eq!(calls(3, 1, Duration::ZERO, Duration::ZERO), [[1], [1], [1]]);
    }
}
