//! Threads for decoding, preprocessing and rendering, which take time but no device.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

type Task = Box<dyn FnOnce() + Send>;

/// A few threads that run tasks in order. The engine bounds the number of tasks that wait: its admission bounds frames,
/// and a frame has one task at a time.
pub(super) struct Pool {
    tasks: Tasks,
    threads: Vec<JoinHandle<()>>,
}

/// The sending end.
#[derive(Clone)]
pub(super) struct Tasks(Arc<Sender>);

/// Closes the line when the last sender has been dropped.
struct Sender(Arc<Line>);

/// A queue of tasks. The standard library's channel has one receiver, which threads would share behind a lock: each
/// task would then wake two threads, one for the lock and one for the task.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    /// Threads that sleep and have not been notified.
    sleeping: usize,
    closed: bool,
}

impl Tasks {
    /// Runs the task on one of the threads. It wakes one that sleeps: do not hold a lock that a task needs.
    pub(super) fn run(&self, task: impl FnOnce() + Send + 'static) {
        let line = &self.0.0;
        let mut state = line.state.lock();
        state.tasks.push_back(Box::new(task));
        let wakes = state.sleeping > 0;
        state.sleeping -= usize::from(wakes);
        drop(state);
        if wakes {
            line.idle.notify_one();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.idle.notify_all();
    }
}

impl Line {
    /// The oldest task; waits for one. `None` once the line is closed and empty.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.closed {
                return None;
            }
            state.sleeping += 1;
            self.idle.wait(&mut state);
        }
    }
}

impl Pool {
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        Self::start_with("camlens-frame", threads, || {})
    }

    /// A pool whose threads have this name, and call `begin` before their first task.
    pub(super) fn start_with(name: &str, threads: usize, begin: fn()) -> io::Result<Self> {
        let line = Arc::<Line>::default();
        let tasks = Tasks(Arc::new(Sender(Arc::clone(&line))));
        let threads = (0..threads.max(1))
            .map(|number| {
                let line = Arc::clone(&line);
                thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                    begin();
                    work(&line);
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Pool { tasks, threads })
    }

    pub(super) fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Runs the tasks that wait and ends the threads, once every [`Tasks`] has been dropped.
    pub(super) fn join(self) {
        drop(self.tasks);
        for thread in self.threads {
            // Tasks do not panic: `work` catches.
            let _ = thread.join();
        }
    }
}

fn work(line: &Line) {
    while let Some(task) = line.next() {
        // A task whose frame broke has told its frame; the thread lives on.
        if catch_unwind(AssertUnwindSafe(task)).is_err() {
            tracing::error!("a frame broke outside of the device");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
