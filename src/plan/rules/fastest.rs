//! Which of several ways to the same result is the fastest here.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::torch::{OperatorError, give_back_memory};

/// Runs of each way that are timed, after one that is not.
const TRIALS: usize = 3;
/// How fast weights come from memory. While ways are tried theirs are in the caches; of a whole network's they are not.
const BYTES_A_SECOND: f64 = 30e9;

/// The fastest of the `ways`. `size` is how many bytes the weights of one take, `prepared` gives what runs it.
///
/// # Errors
/// What a run says; [`OperatorError::Unsupported`] when there is no way at all.
pub(super) fn fastest<T, R>(
    mut ways: Vec<T>,
    size: impl Fn(&T) -> usize,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<T, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    if ways.len() == 1 {
        return Ok(ways.remove(0));
    }
    let runs = ways.iter().map(prepared).collect::<Result<Vec<_>, _>>()?;
    let times = least_times(&runs)?;
    let cost = |(way, time): &(T, Duration)| time.as_secs_f64() + size(way) as f64 / BYTES_A_SECOND;
    let cheapest = ways.into_iter().zip(times).min_by(|a, b| cost(a).total_cmp(&cost(b)));
    cheapest.map(|(way, _)| way).ok_or_else(|| OperatorError::Unsupported { operator: "a product".into() })
}

/// Leaves none of the memory that ways took which were tried and not chosen: the next ones seldom fit into it.
pub(super) fn sparingly<T>(choose: impl FnOnce() -> T) -> T {
    let chosen = choose();
    give_back_memory();
    chosen
}

/// How many bytes of memory the numbers of a tensor take.
pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.f_kind().map_or(0, Kind::elt_size_in_bytes)
}

/// Whether no number of a weight is infinite or NaN.
pub(super) fn is_finite(weight: &Tensor) -> Result<bool, OperatorError> {
    let (least, most) = weight.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && most.f_double_value(&[])?.is_finite())
}

/// A bias as camlens's own products take it.
pub(super) fn in_float(bias: Option<&Tensor>) -> Result<Option<Tensor>, OperatorError> {
    Ok(bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?)
}

/// The least of several times for each: whatever else the machine does only adds to it. They take turns, so that it adds to all.
fn least_times<R>(runs: &[R]) -> Result<Vec<Duration>, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    for run in runs {
        drop(run()?);
    }
    let mut least = vec![Duration::MAX; runs.len()];
    for _ in 0..TRIALS {
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
    use std::thread::sleep;

    use super::*;

    /// The place of the fastest of ways that take so many milliseconds and bytes.
    fn place_of_fastest(ways: &[(u64, usize)]) -> usize {
        let places = (0..ways.len()).collect();
        let run = |&place: &usize| {
            let time = Duration::from_millis(ways[place].0);
            Ok(move || {
                sleep(time);
                Ok(Tensor::new())
            })
        };
        fastest(places, |&place| ways[place].1, run).unwrap()
    }

    #[test]
    fn less_time_wins_and_memory_has_its_price() {
        assert_eq!(place_of_fastest(&[(40, 9), (1, 9), (40, 9)]), 1);
        assert_eq!(place_of_fastest(&[(40, 9), (1, 36)]), 1);
        // Less time, and weights that take a tenth of a second to come.
        assert_eq!(place_of_fastest(&[(50, 9), (20, 3_000_000_000)]), 0);
        assert_eq!(place_of_fastest(&[(500, 9)]), 0);
    }

    #[test]
    fn no_way_at_all_is_an_error() {
        let none = fastest(Vec::new(), |_: &i32| 1, |_| Ok(|| Ok(Tensor::new())));
        assert!(none.unwrap_err().to_string().contains("a product"));
    }
}
