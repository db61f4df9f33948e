//! Which of several ways to the same result is the fastest here.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::process::release_memory;
use crate::torch::OperatorError;

/// Runs of each way that are timed, after one that is not; and so many more where one is not that much faster than the other.
const TRIALS: usize = 3;
const MORE_TRIALS: usize = 5;
const CLEARLY: f64 = 1.15;
/// How fast weights come from memory. While ways are tried theirs are in the caches; of a whole network's they are not. A way that reads weights
/// which another one has laid out pays nothing: it takes no memory, which is worth that time.
const BYTES_A_SECOND: f64 = 30e9;

/// A way that may be taken. Nothing is laid out for it before it is tried.
pub(in crate::plan) struct Candidate<'a, T> {
    /// Its weights take at least so many bytes.
    least_bytes: usize,
    lay_out: Box<dyn FnOnce() -> Result<Option<T>, OperatorError> + 'a>,
}

impl<'a, T: 'a> Candidate<'a, T> {
    /// `lay_out` gives none where the way does not suit.
    pub fn new(lay_out: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Self::of_bytes(0, lay_out)
    }

    /// One whose weights take at least so many bytes.
    pub fn of_bytes(least_bytes: usize, lay_out: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Candidate { least_bytes, lay_out: Box::new(lay_out) }
    }

    pub fn lay_out(self) -> Result<Option<T>, OperatorError> {
        (self.lay_out)()
    }

    /// The same as a way of another type.
    pub fn map<U: 'a>(self, into: impl FnOnce(T) -> U + 'a) -> Candidate<'a, U> {
        Candidate::of_bytes(self.least_bytes, move || Ok((self.lay_out)()?.map(into)))
    }
}

/// The fastest of some ways. `size` is how many bytes the weights of one take beside those that are there, `prepared` gives what runs it. No
/// more than two are laid out at once: the fastest so far, and the one that is tried beside it.
///
/// # Errors
/// What laying out or a run says; [`OperatorError::Unsupported`] when there is no way at all.
pub(in crate::plan) fn fastest<T, R>(
    candidates: Vec<Candidate<T>>,
    size: impl Fn(&T) -> usize,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<T, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    let of_memory = |bytes: usize| bytes as f64 / BYTES_A_SECOND;
    // With its least time, once it was compared with another.
    let mut best: Option<(T, Option<Duration>)> = None;
    for candidate in candidates {
        if let Some((way, Some(time))) = &best
            && of_memory(candidate.least_bytes) >= time.as_secs_f64() + of_memory(size(way))
        {
            continue;
        }
        let Some(way) = candidate.lay_out()? else { continue };
        let Some((champion, known)) = best.take() else {
            best = Some((way, None));
            continue;
        };
        let [of_champion, of_way] = least_times(&[prepared(&champion)?, prepared(&way)?])?;
        let of_champion = known.map_or(of_champion, |known| known.min(of_champion));
        let cost = |way: &T, time: Duration| time.as_secs_f64() + of_memory(size(way));
        let is_faster = cost(&way, of_way) < cost(&champion, of_champion);
        best = Some(if is_faster { (way, Some(of_way)) } else { (champion, Some(of_champion)) });
    }
    best.map(|(way, _)| way).ok_or_else(|| OperatorError::Unsupported { operator: "a product".into() })
}

/// Leaves none of the memory that ways took which were tried and not chosen: the next ones seldom fit into it.
pub(in crate::plan) fn sparingly<T>(choose: impl FnOnce() -> T) -> T {
    let chosen = choose();
    release_memory();
    chosen
}

/// How many bytes of memory the numbers of a tensor take.
pub(in crate::plan) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.f_kind().map_or(0, Kind::elt_size_in_bytes)
}

/// Whether no number of a weight is infinite or NaN.
pub(in crate::plan) fn is_finite(weight: &Tensor) -> Result<bool, OperatorError> {
    let (least, most) = weight.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && most.f_double_value(&[])?.is_finite())
}

/// A bias as camlens's own products take it.
pub(in crate::plan) fn in_float(bias: Option<&Tensor>) -> Result<Option<Tensor>, OperatorError> {
    Ok(bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?)
}

/// The least of several times for each: whatever else the machine does only adds to it. They take turns, so that it adds to both.
fn least_times<R>(runs: &[R; 2]) -> Result<[Duration; 2], OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    for run in runs {
        drop(run()?);
    }
    let mut least = [Duration::MAX; 2];
    for trial in 0..TRIALS + MORE_TRIALS {
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

    /// The place of the fastest of ways that take so many milliseconds and bytes, and of those that were laid out.
    fn place_of_fastest(ways: &[(u64, usize)]) -> (usize, Vec<usize>) {
        let laid_out = RefCell::new(Vec::new());
        let candidate = |(place, &(_, bytes)): (usize, &(u64, usize))| {
            let laid_out = &laid_out;
            Candidate::of_bytes(bytes, move || {
                laid_out.borrow_mut().push(place);
                Ok(Some(place))
            })
        };
        let candidates = ways.iter().enumerate().map(candidate).collect();
        let run = |&place: &usize| {
            let time = Duration::from_millis(ways[place].0);
            Ok(move || {
                sleep(time);
                Ok(Tensor::new())
            })
        };
        let found = fastest(candidates, |&place| ways[place].1, run).unwrap();
        (found, laid_out.take())
    }

    #[test]
    fn less_time_wins_and_memory_has_its_price() {
        assert_eq!(place_of_fastest(&[(40, 9), (1, 9), (40, 9)]).0, 1);
        assert_eq!(place_of_fastest(&[(40, 9), (1, 36)]).0, 1);
        assert_eq!(place_of_fastest(&[(40, 9), (40, 9), (1, 9)]).0, 2);
        // Less time, and weights that take a tenth of a second to come.
        assert_eq!(place_of_fastest(&[(50, 9), (20, 3_000_000_000)]).0, 0);
        assert_eq!(place_of_fastest(&[(500, 9)]).0, 0);
    }

    #[test]
    fn what_would_take_longer_to_come_from_memory_is_not_laid_out() {
        assert_eq!(place_of_fastest(&[(20, 9), (1, 9), (0, 3_000_000_000), (0, 9)]).1, [0, 1, 3]);
    }

    #[test]
    fn ways_that_do_not_suit_are_passed_over() {
        let candidates = || {
            let none = || Candidate::new(|| Ok(None));
            vec![none(), Candidate::new(|| Ok(Some(7))).map(|way| way + 1), none()]
        };
        let never = |_: &i32| -> Result<fn() -> Result<Tensor, OperatorError>, OperatorError> {
            panic!("one way alone is not tried")
        };
        assert_eq!(fastest(candidates(), |_| 1, never).unwrap(), 8);
    }

    #[test]
    fn no_way_at_all_is_an_error() {
        let none = fastest(Vec::new(), |_: &i32| 1, |_| Ok(|| Ok(Tensor::new())));
        assert!(none.unwrap_err().to_string().contains("a product"));
    }
}
