//! Which of several ways to the same result is the fastest here.

use std::time::{Duration, Instant};

use tch::Tensor;

use crate::torch::OperatorError;

/// Runs of each way that are timed, after one that is not.
const TRIALS: usize = 3;
/// A later way, whose weights take more memory as a rule, is taken if it saves this part of the time.
const WORTH: f64 = 0.1;

/// The fastest of the `ways`; `prepared` gives what runs one.
///
/// # Errors
/// What a run says; [`OperatorError::Unsupported`] when there is no way at all.
pub(super) fn fastest<T, R>(
    mut ways: Vec<T>,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<T, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    if ways.len() == 1 {
        return Ok(ways.remove(0));
    }
    let mut best: Option<(Duration, T)> = None;
    for way in ways {
        let time = least_time(prepared(&way)?)?;
        if best.as_ref().is_none_or(|(least, _)| time < least.mul_f64(1.0 - WORTH)) {
            best = Some((time, way));
        }
    }
    best.map(|(_, way)| way).ok_or_else(|| OperatorError::Unsupported { operator: "a convolution".into() })
}

/// The least of several times: whatever else the machine does only adds to it.
pub(super) fn least_time<T>(run: impl Fn() -> Result<T, OperatorError>) -> Result<Duration, OperatorError> {
    drop(run()?);
    let mut least = Duration::MAX;
    for _ in 0..TRIALS {
        let start = Instant::now();
        let result = run()?;
        least = least.min(start.elapsed());
        drop(result);
    }
    Ok(least)
}
