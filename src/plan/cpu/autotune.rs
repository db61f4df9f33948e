//! Chooses the fastest of several kernels for one operation by timing them.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::plan::KernelChoice;
use crate::process::release_memory;
use crate::torch::OperatorError;

/// Timed runs per kernel after one warm-up run; `EXTRA_TRIALS` more unless one kernel is `CLEARLY` times faster.
const TRIALS: usize = 3;
const EXTRA_TRIALS: usize = 5;
const CLEARLY: f64 = 1.15;
/// Assumed memory bandwidth for weights. During a trial a kernel's weights are in the caches; in a whole network they
/// are not. A kernel that reads weights packed for another one pays nothing, because it takes no memory of its own.
const BYTES_PER_SECOND: f64 = 30e9;

/// A kernel that may be chosen. Its weights are packed when its turn comes.
pub(in crate::plan) struct Candidate<'a, T> {
    /// Lower bound on the bytes of its packed weights.
    min_bytes: usize,
    pack: Box<dyn FnOnce() -> Result<Option<T>, OperatorError> + 'a>,
}

impl<'a, T: 'a> Candidate<'a, T> {
    /// `pack` returns `None` where the kernel does not suit.
    pub fn new(pack: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Self::of_bytes(0, pack)
    }

    /// A candidate whose packed weights take at least `min_bytes`.
    pub fn of_bytes(min_bytes: usize, pack: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Candidate { min_bytes, pack: Box::new(pack) }
    }

    pub fn pack(self) -> Result<Option<T>, OperatorError> {
        (self.pack)()
    }

    /// The same candidate, wrapped into another type.
    pub fn map<U: 'a>(self, into: impl FnOnce(T) -> U + 'a) -> Candidate<'a, U> {
        Candidate::of_bytes(self.min_bytes, move || Ok((self.pack)()?.map(into)))
    }
}

/// The fastest of `candidates`. `size` is the bytes of weights packed for a kernel alone; `prepared` returns a closure
/// that runs it. At most two kernels are packed at once: the fastest so far and the one that is timed against it.
/// `operator` names the operation in errors. With [`KernelChoice::First`] nothing is timed: the first that suits is
/// returned.
///
/// # Errors
/// What packing or a run says; [`OperatorError::Argument`] when no candidate suits.
pub(in crate::plan) fn autotune<T, R>(
    operator: &str,
    choice: KernelChoice,
    candidates: Vec<Candidate<T>>,
    size: impl Fn(&T) -> usize,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<T, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    let of_memory = |bytes: usize| bytes as f64 / BYTES_PER_SECOND;
    // With its shortest time, once it was timed against another kernel.
    let mut best: Option<(T, Option<Duration>)> = None;
    for candidate in candidates {
        if let Some((kernel, Some(time))) = &best
            && of_memory(candidate.min_bytes) >= time.as_secs_f64() + of_memory(size(kernel))
        {
            continue;
        }
        let Some(kernel) = candidate.pack()? else { continue };
        let Some((best_kernel, known)) = best.take() else {
            best = Some((kernel, None));
            if choice == KernelChoice::First {
                break;
            }
            continue;
        };
        let [of_champion, of_kernel] = least_times(&[prepared(&best_kernel)?, prepared(&kernel)?])?;
        let of_champion = known.map_or(of_champion, |known| known.min(of_champion));
        let cost = |kernel: &T, time: Duration| time.as_secs_f64() + of_memory(size(kernel));
        let is_faster = cost(&kernel, of_kernel) < cost(&best_kernel, of_champion);
        best = Some(if is_faster { (kernel, Some(of_kernel)) } else { (best_kernel, Some(of_champion)) });
    }
    best.map(|(kernel, _)| kernel).ok_or_else(|| OperatorError::Argument {
        operator: operator.into(),
        argument: "weight".into(),
        problem: "suits no kernel".into(),
    })
}

/// Runs `choose`, then returns the memory of rejected kernels to the system: later weights seldom fit into it.
pub(in crate::plan) fn releasing_memory<T>(choose: impl FnOnce() -> T) -> T {
    let chosen = choose();
    release_memory();
    chosen
}

/// The bytes of a tensor's elements.
pub(in crate::plan) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.f_kind().map_or(0, Kind::elt_size_in_bytes)
}

/// Whether a weight has no infinite and no NaN element.
pub(in crate::plan) fn is_finite(weight: &Tensor) -> Result<bool, OperatorError> {
    let (least, most) = weight.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && most.f_double_value(&[])?.is_finite())
}

/// A bias in float32, as camlens's own kernels take it.
pub(in crate::plan) fn float_bias(bias: Option<&Tensor>) -> Result<Option<Tensor>, OperatorError> {
    Ok(bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?)
}

/// The shortest of several times for each of two kernels: other load on the machine only adds to a time. The kernels
/// take turns, so that such load slows both.
fn least_times<R>(runs: &[R; 2]) -> Result<[Duration; 2], OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    for run in runs {
        drop(run()?);
    }
    let mut least = [Duration::MAX; 2];
    for trial in 0..TRIALS + EXTRA_TRIALS {
        let [less, more] = if least[0] < least[1] { least } else { [least[1], least[0]] };
        if trial == TRIALS && more > less.mul_f64(CLEARLY) {
            break;
        }
        for (run, least) in runs.iter().zip(&mut least) {
            let start = Instant::now();
            let result = run()?;
            *least = start.elapsed().min(*least);
            drop(result);
        }
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::thread::sleep;

    use super::*;

    /// Index of the fastest of kernels with these milliseconds and bytes, and the indices of those that were packed.
    fn index_of_fastest(kernels: &[(u64, usize)]) -> (usize, Vec<usize>) {
        index_of_chosen(KernelChoice::Timed, kernels)
    }

    fn index_of_chosen(choice: KernelChoice, kernels: &[(u64, usize)]) -> (usize, Vec<usize>) {
        let packed = RefCell::new(Vec::new());
        let candidate = |(index, &(_, bytes)): (usize, &(u64, usize))| {
            let packed = &packed;
            Candidate::of_bytes(bytes, move || {
                packed.borrow_mut().push(index);
                Ok(Some(index))
            })
        };
        let candidates = kernels.iter().enumerate().map(candidate).collect();
        let run = |&index: &usize| {
            let time = Duration::from_millis(kernels[index].0);
            Ok(move || {
                sleep(time);
                Ok(Tensor::new())
            })
        };
        let found = autotune("linear", choice, candidates, |&index| kernels[index].1, run).unwrap();
        (found, packed.take())
    }

    #[test]
    fn less_time_wins_after_the_cost_of_memory() {
        assert_eq!(index_of_fastest(&[(40, 9), (1, 9), (40, 9)]).0, 1);
        assert_eq!(index_of_fastest(&[(40, 9), (1, 36)]).0, 1);
        assert_eq!(index_of_fastest(&[(40, 9), (40, 9), (1, 9)]).0, 2);
        // Less time, but weights that take a tenth of a second to load.
        assert_eq!(index_of_fastest(&[(50, 9), (20, 3_000_000_000)]).0, 0);
        assert_eq!(index_of_fastest(&[(500, 9)]).0, 0);
    }

    #[test]
    fn what_would_take_longer_to_come_from_memory_is_not_packed() {
        assert_eq!(index_of_fastest(&[(20, 9), (1, 9), (0, 3_000_000_000), (0, 9)]).1, [0, 1, 3]);
    }

    #[test]
    fn without_timing_the_first_kernel_is_chosen_and_no_other_is_packed() {
        assert_eq!(index_of_chosen(KernelChoice::First, &[(40, 9), (1, 9)]), (0, vec![0]));
    }

    #[test]
    fn kernels_that_do_not_suit_are_skipped() {
        let candidates = || {
            let none = || Candidate::new(|| Ok(None));
            vec![none(), Candidate::new(|| Ok(Some(7))).map(|kernel| kernel + 1), none()]
        };
        let never = |_: &i32| -> Result<fn() -> Result<Tensor, OperatorError>, OperatorError> {
            panic!("one kernel alone is not tried")
        };
        assert_eq!(autotune("linear", KernelChoice::Timed, candidates(), |_| 1, never).unwrap(), 8);
    }

    #[test]
    fn no_kernel_at_all_is_an_error() {
        let none = autotune("linear", KernelChoice::Timed, Vec::new(), |_: &i32| 1, |_| Ok(|| Ok(Tensor::new())));
        assert!(none.unwrap_err().to_string().contains("suits no kernel"));
    }
}
