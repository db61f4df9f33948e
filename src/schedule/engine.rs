//! The handle by which everyone else uses the device.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::admission::{Admission, AdmissionError, Budget};
use super::clock::Clock;
use super::device::Device;
use super::finish::finish;
use super::job::{Ending, Job, StreamKey};
use super::line::{Line, NextBatch};
use super::pool::{Pool, Tasks};
use super::prepare::{Chosen, prepare};
use super::served::Served;
use super::ticket::Ticket;
use super::worker;
use crate::telemetry::Stage;

/// What the engine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Frames in work at once, over all streams, from their admission to their rendering.
    pub queued_frames: usize,
    /// Bytes of their payloads.
    pub queued_bytes: u64,
    /// Threads that decode, prepare and render.
    pub frame_threads: usize,
}

/// The engine cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("no thread could be started: {0}")]
pub struct EngineError(#[from] io::Error);

/// Explains frames. Cheap to clone; the threads end when [`Engine::stop`] is called.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    budget: Budget,
    models: Arc<HashMap<(String, i64), usize>>,
    served: Arc<[Arc<Served>]>,
    next_stream: Arc<AtomicU64>,
    threads: Arc<Mutex<Option<Threads>>>,
}

/// The device's thread and the pool; taken when the engine stops.
type Threads = (JoinHandle<()>, Pool);

struct Shared {
    state: Mutex<State>,
    /// Something is prepared, or the end has come.
    device: Condvar,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    line: Line,
    next: NextBatch,
    /// `None` once the engine has stopped.
    tasks: Option<Tasks>,
}

/// A submitted frame, for whoever may end it.
#[derive(Debug, Clone)]
pub struct Handle {
    ticket: Ticket,
    stream: StreamKey,
}

impl Engine {
    /// Starts the threads. `device` is called on the device's own thread, with the models in the order of `served`.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start<D: Device + 'static>(
        config: EngineConfig,
        served: Vec<Arc<Served>>,
        device: impl FnOnce() -> D + Send + 'static,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        let pool = Pool::start(config.frame_threads)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { tasks: Some(pool.tasks()), ..State::default() }),
            device: Condvar::new(),
            clock,
        });
        let models = served
            .iter()
            .enumerate()
            .map(|(index, model)| ((model.metadata.name.clone(), model.metadata.version), index))
            .collect();
        let worker = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("camlens-device".to_owned()).spawn(move || {
                let shared = CloseAtEnd(shared);
                device_loop(device(), &shared.0);
            })?
        };
        Ok(Engine {
            shared,
            budget: Budget::new(config.queued_frames, config.queued_bytes),
            models: Arc::new(models),
            served: served.into(),
            next_stream: Arc::default(),
            threads: Arc::new(Mutex::new(Some((worker, pool)))),
        })
    }

    /// The models, in the order in which they were given.
    pub fn served(&self) -> &[Arc<Served>] {
        &self.served
    }

    /// A line of its own for a stream, or for a single frame.
    pub fn new_stream(&self) -> StreamKey {
        StreamKey(self.next_stream.fetch_add(1, Ordering::Relaxed))
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Room for a frame of `bytes`, now or not at all.
    pub fn try_admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budget.try_admit(bytes)
    }

    /// Room for a frame of `bytes`, as soon as there is some.
    pub async fn admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        self.budget.admit(bytes).await
    }

    /// Puts a frame into its stream's line.
    pub fn submit(&self, job: Job) -> Handle {
        let Job { stream, model, method, targets, outputs, payload, mut timings, admission, reply } = job;
        let ticket = Ticket::new();
        let handle = Handle { ticket: ticket.clone(), stream };
        timings.mark(Stage::Receive, self.shared.clock.now());
        let key = (model.metadata.name.clone(), model.metadata.version);
        let ending = Ending::new(ticket, reply);
        // An unknown model, or an engine that has stopped: dropping the ending says so.
        let Some(&model_index) = self.models.get(&key) else { return handle };
        let chosen = Chosen { model_index, model, method, targets, outputs, payload, timings, admission, ending };
        let mut state = self.shared.lock();
        if state.tasks.is_some() {
            state.line.push(stream, chosen);
            self.shared.choose(&mut state);
        } else {
            drop(state);
            drop(chosen);
        }
        handle
    }

    /// Ends a frame that has not been taken to the device. `true`: it is ended, and its reply will not be called.
    pub fn replace(&self, handle: &Handle) -> bool {
        let won = handle.ticket.replace();
        if won {
            self.shared.lock().line.sweep(handle.stream);
        }
        won
    }

    /// Ends a frame wherever it is. `true`: it is ended, and its reply will not be called.
    pub fn cancel(&self, handle: &Handle) -> bool {
        let won = handle.ticket.end();
        if won {
            self.shared.lock().line.sweep(handle.stream);
        }
        won
    }

    /// Stops: what waits ends with [`super::JobError::Stopped`], what runs is finished. Blocks until the threads have ended.
    pub fn stop(&self) {
        self.shared.close();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((worker, pool)) = threads {
            if worker.join().is_err() {
                tracing::error!("the device's thread broke");
            }
            pool.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves whole values: every change is a push, a take or a count.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills the batch that is prepared ahead.
    fn choose(self: &Arc<Self>, state: &mut State) {
        let State { line, next, tasks, .. } = state;
        let Some(tasks) = tasks else { return };
        while let Some(chosen) = next.choose(line) {
            let shared = Arc::clone(self);
            tasks.run(move || shared.prepare(chosen));
        }
    }

    /// On a thread of the pool.
    fn prepare(self: &Arc<Self>, chosen: Chosen) {
        // However it ends, the batch must not wait for it. A frame that breaks tells so as it is dropped.
        let row = catch_unwind(AssertUnwindSafe(|| prepare(chosen, &*self.clock))).unwrap_or_else(|_| {
            tracing::error!("a frame broke while it was prepared");
            None
        });
        let mut state = self.lock();
        let open = state.tasks.is_some();
        let late = state.next.prepared(row, open);
        self.choose(&mut state);
        drop(state);
        drop(late);
        self.device.notify_one();
    }

    /// Ends everything that waits.
    fn close(&self) {
        let left = {
            let mut state = self.lock();
            state.tasks = None;
            (std::mem::take(&mut state.line), std::mem::take(&mut state.next))
        };
        // Replies are called as these go, without the lock.
        drop(left);
        self.device.notify_all();
    }
}

/// Closes the engine when the device's thread ends, however it does: nothing may wait for a device that is gone.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The life of the device's thread.
fn device_loop<D: Device>(mut device: D, shared: &Arc<Shared>) {
    loop {
        let mut state = shared.lock();
        let (rows, tasks) = loop {
            let Some(tasks) = state.tasks.clone() else { return };
            let rows = state.next.take();
            if !rows.is_empty() {
                // The next batch is prepared while this one runs.
                shared.choose(&mut state);
                break (rows, tasks);
            }
            state.next.device_waits();
            shared.choose(&mut state);
            state = shared.device.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        for row in worker::run(&mut device, rows, &*shared.clock) {
            let clock = Arc::clone(&shared.clock);
            tasks.run(move || finish(row, &*clock));
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
