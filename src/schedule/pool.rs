//! Threads for what takes time and no device: decoding, preprocessing, rendering.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

type Task = Box<dyn FnOnce() + Send>;

/// A few threads that work off tasks in order. How many tasks wait is bounded by whoever gives them: the engine's
/// admission bounds frames, and a frame has one task at a time.
pub(super) struct Pool {
    tasks: mpsc::Sender<Task>,
    threads: Vec<JoinHandle<()>>,
}

/// The giving end.
#[derive(Clone)]
pub(super) struct Tasks(mpsc::Sender<Task>);

impl Tasks {
    /// Runs the task on one of the threads; drops it when they have ended.
    pub(super) fn run(&self, task: impl FnOnce() + Send + 'static) {
        if self.0.send(Box::new(task)).is_err() {
            tracing::debug!("a task came after the end");
        }
    }
}

impl Pool {
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        let (tasks, waiting) = mpsc::channel::<Task>();
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = (0..threads.max(1))
            .map(|number| {
                let waiting = Arc::clone(&waiting);
                thread::Builder::new().name(format!("camlens-frame-{number}")).spawn(move || work(&waiting))
            })
            .collect::<io::Result<_>>()?;
        Ok(Pool { tasks, threads })
    }

    pub(super) fn tasks(&self) -> Tasks {
        Tasks(self.tasks.clone())
    }

    /// Works off what waits and ends, once every [`Tasks`] is gone.
    pub(super) fn join(self) {
        drop(self.tasks);
        for thread in self.threads {
            // Tasks do not panic: `work` catches.
            let _ = thread.join();
        }
    }
}

fn work(waiting: &Mutex<mpsc::Receiver<Task>>) {
    loop {
        // The lock is held while waiting for a task, never while running one.
        let task = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(task) = task else { return };
        // A task whose frame broke has told its frame; the thread lives on.
        if catch_unwind(AssertUnwindSafe(task)).is_err() {
            tracing::error!("a frame broke outside of the device");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_leaves_the_threads_alive_and_the_rest_is_done() {
        let pool = Pool::start(1).expect("a thread");
        let (done, results) = mpsc::channel();
        let tasks = pool.tasks();
        tasks.run(|| panic!("expected by the test"));
        tasks.run(move || done.send(7).expect("the test waits"));
        drop(tasks);
        pool.join();
        assert_eq!(results.recv(), Ok(7));
    }
}
