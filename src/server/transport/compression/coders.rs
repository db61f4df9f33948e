//! The threads that compress and inflate.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// Runs a few jobs at a time on threads of their own. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub(in crate::server) struct Coders(Arc<Semaphore>);

impl Coders {
    /// `count` jobs run at the same time.
    pub(in crate::server) fn new(count: usize) -> Self {
        Coders(Arc::new(Semaphore::new(count.max(1))))
    }

    /// Runs a job once it is its turn. It is not begun any more when the future is dropped.
    ///
    /// # Errors
    /// INTERNAL when the job panicked, or the process ends.
    pub(super) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let turns = Arc::clone(&self.0);
        // A task of its own: a turn that has come must not wait until somebody polls the call.
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let turn = turns.acquire_owned().await;
            let job = move || {
                let result = job();
                drop(turn);
                result
            };
            tokio::task::spawn_blocking(job).await
        }));
        let broken = || Status::internal("something in camlens broke; other calls are not affected");
        task.await.map_err(|_| broken())?.map_err(|_| broken())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_job_waits_for_its_turn_and_one_that_breaks_gives_it_back() {
        let coders = Coders::new(1);
        assert_eq!(
            coders.run(|| -> u8 { panic!("expected by the test") }).await.map_err(|s| s.code()),
            Err(tonic::Code::Internal)
        );
        let (go, wait) = mpsc::channel::<()>();
        let (first, second) = (coders.clone(), coders.clone());
        let first = tokio::spawn(async move { first.run(move || wait.recv().is_ok()).await });
        tokio::task::yield_now().await;
        let mut second = Box::pin(second.run(|| 2));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err(), "it is not its turn");
        go.send(()).expect("it waits");
        assert!(first.await.expect("no panic").expect("it runs"));
        assert_eq!(second.await.expect("it runs"), 2);
    }
}
