//! Work in the scheduler's idle class: explanations take the processor time that nobody else wants.
//!
//! A thread of the idle class may stand still for long while others compute, with whatever lock it holds. So threads of
//! this class compute and do nothing else: each works for a thread of the normal class, which waits for it, marks
//! stages, and talks to the engine. They share no lock with threads that serve connections.

mod device;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc;

pub use device::BackgroundDevice;

use super::pool::Pool;
use crate::process;

/// Where a thread's long computations run. Cheap to clone.
#[derive(Clone)]
pub(super) enum Compute {
    /// On the thread itself.
    Here,
    /// On threads of the idle class. They end when the last clone is dropped.
    InBackground(Arc<Pool>),
}

impl Compute {
    /// Starts as many threads as there are threads that compute at the same time.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(super) fn in_background(threads: usize) -> io::Result<Self> {
        Ok(Compute::InBackground(Arc::new(Pool::start_with("camlens-idle", threads, enter_idle_class)?)))
    }

    /// Runs `work` and waits for its result. A panic of `work` goes on here.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Compute::InBackground(pool) = self else { return work() };
        let (done, result) = mpsc::sync_channel(1);
        pool.tasks().run(move || {
            // The receiver waits until it has the result.
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        });
        match result.recv() {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(lost) => resume_unwind(Box::new(lost)),
        }
    }
}

/// Puts the calling thread into the scheduler's idle class.
fn enter_idle_class() {
    if let Err(error) = process::enter_idle_class() {
        tracing::warn!(%error, "a background thread runs at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    /// The scheduling policy of the calling thread, field 41 of `/proc/thread-self/stat`.
    pub(super) fn policy() -> u32 {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit_once(") ").unwrap().1;
        after_name.split(' ').nth(41 - 3).unwrap().parse().unwrap()
    }

    pub(super) const IDLE: u32 = 5;

    #[test]
    fn work_runs_in_the_idle_class_and_its_caller_does_not() {
        let before = policy();
        assert_ne!(before, IDLE);
        let compute = Compute::in_background(2).unwrap();
        assert_eq!(compute.run(policy), IDLE);
        assert_eq!(Compute::Here.run(policy), before);
        assert_eq!(policy(), before);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_live_on() {
        let compute = Compute::in_background(1).unwrap();
        let panicking = compute.clone();
        let panic = thread::spawn(move || panicking.run(|| panic!("expected by the test"))).join().unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"expected by the test"));
        assert_eq!(compute.run(|| 7), 7);
    }
}
