//! When kernels are timed.
//!
//! A device that has several kernels for an operation times them and keeps the fastest. That takes seconds for a whole
//! model, so a server may take the first kernel that suits and time the others later, on a thread that has nothing else
//! to do: [`tuning`] gives a run some time for it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::timing_cache::TimingCache;

/// When a device times the kernels of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Timing {
    /// At its first run. Results of different choices differ by rounding.
    #[default]
    AtFirstRun,
    /// In runs within [`tuning`]. Until then the operation runs on the first kernel that suits.
    WhenTuning,
    /// Never: every run takes the first kernel that suits, and gives the same at every start.
    Never,
}

/// How a device that has several kernels for an operation chooses one. Clones share what was measured.
#[derive(Debug, Clone, Default)]
pub struct KernelChoice {
    pub timing: Timing,
    /// What was measured before. [`Timing::Never`] does not read it.
    pub known: Arc<TimingCache>,
}

impl From<Timing> for KernelChoice {
    fn from(timing: Timing) -> Self {
        KernelChoice { timing, known: Arc::default() }
    }
}

thread_local! {
    /// What is left of the time for timing kernels.
    static LEFT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Whether an operation has run on a kernel that may not be the fastest.
    static UNTUNED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `run`. Its operations on this thread may time their kernels ([`Timing::WhenTuning`]) until that has taken
/// `time` in all; the operation that is timed then is finished.
pub fn tuning<T>(time: Duration, run: impl FnOnce() -> T) -> T {
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            LEFT.set(Duration::ZERO);
        }
    }
    let _ends = Ends;
    LEFT.set(time);
    run()
}

/// Whether an operation has run on this thread, since the last call, on a kernel that may not be the fastest.
pub fn take_untuned() -> bool {
    UNTUNED.take()
}

/// An operation runs on a kernel that may not be the fastest.
pub(in crate::plan) fn note_untuned() {
    UNTUNED.set(true);
}

/// Whether there is time to time kernels.
pub(in crate::plan) fn has_time() -> bool {
    LEFT.get() > Duration::ZERO
}

/// Runs `run` at the expense of the time that is left.
pub(in crate::plan) fn spending<T>(run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = run();
    LEFT.set(LEFT.get().saturating_sub(began.elapsed()));
    result
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::thread::sleep;

    use super::*;

    #[test]
    fn there_is_time_within_a_tuning_run_until_it_is_spent() {
        assert!(!has_time());
        tuning(Duration::from_millis(1), || {
            assert!(has_time());
            assert_eq!(spending(|| 7), 7);
            spending(|| sleep(Duration::from_millis(2)));
            assert!(!has_time());
        });
        assert!(catch_unwind(|| tuning(Duration::from_secs(9), || panic!("on purpose"))).is_err());
        assert!(!has_time(), "also after a panic");
    }

    #[test]
    fn operations_on_untuned_kernels_are_told_once() {
        assert!(!take_untuned());
        note_untuned();
        assert!(take_untuned());
        assert!(!take_untuned());
    }
}
