//! Work on threads of its own.

use std::panic::resume_unwind;
use std::thread;

use crate::process;

/// Runs `work` on a thread that ends with it. A thread of tokio's blocking pool would stay for ten seconds, with all
/// that libtorch and the kernels keep for a thread.
pub(super) async fn on_a_thread_of_its_own<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (alive, ended) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let _alive = alive;
        work()
    });
    // An error, since nothing is ever sent: the thread is at its end, whether it panicked or not.
    let _ = ended.await;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs `work` on a thread of the scheduler's idle class.
pub(super) fn in_background<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        if let Err(error) = process::enter_idle_class() {
            tracing::warn!(%error, "cannot lower the priority of the thread that loads models");
        }
        work()
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
