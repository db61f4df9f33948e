//! Which of several ways to the same result is the fastest here.

use std::time::{Duration, Instant};

use tch::Tensor;

use crate::torch::OperatorError;

/// Runs of each way that are timed, after one that is not.
const TRIALS: usize = 3;
/// The part of its time that a way must save for each time more that its weights take the memory of the smallest.
const PRICE_OF_MEMORY: f64 = 0.1;

/// The fastest of the `ways`, where more memory has its price. `size` is how many numbers the weights of one have, `prepared` gives
/// what runs it.
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
    let smallest = ways.iter().map(&size).min().unwrap_or(0).max(1) as f64;
    let cost = |(way, time): &(T, Duration)| {
        time.as_secs_f64() * (1.0 + PRICE_OF_MEMORY * (size(way) as f64 / smallest - 1.0))
    };
    let cheapest = ways.into_iter().zip(times).min_by(|a, b| cost(a).total_cmp(&cost(b)));
    cheapest.map(|(way, _)| way).ok_or_else(|| OperatorError::Unsupported { operator: "a convolution".into() })
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

    /// The place of the fastest of ways that take so many milliseconds and numbers.
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
        // A tenth less time for sixteen times the memory.
        assert_eq!(place_of_fastest(&[(50, 9), (45, 144)]), 0);
        assert_eq!(place_of_fastest(&[(500, 9)]), 0);
    }

    #[test]
    fn no_way_at_all_is_an_error() {
        let none = fastest(Vec::new(), |_: &i32| 1, |_| Ok(|| Ok(Tensor::new())));
        assert!(none.unwrap_err().to_string().contains("a convolution"));
    }
}
