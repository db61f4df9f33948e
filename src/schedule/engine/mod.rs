//! The handle by which everyone else uses the device.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::admission::{Budget, Budgets, InWork, Limit};
use super::clock::Clock;
use super::device::Device;
use super::finish::finish;
use super::job::{Ending, Job};
use super::lane::Lane;
use super::pool::{Pool, Tasks};
use super::prepare::{Chosen, PreparedRow, prepare};
use super::queue::line::MAX_PRIORITY;
use super::queue::next_batch::{Prepared, Taken};
use super::queue::ticket::StreamKey;
use super::queue::ticket::Ticket;
use super::queue::turn::{Turn, cost};
use super::queue::{Dispatch, Expired};
use super::served::Served;
use super::worker;
use crate::explain::Target;
use crate::telemetry::Stage;

/// What the engine may use, and how it shares it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Frames in work at once, over all streams, from their admission to their rendering.
    pub queued_frames: usize,
    /// Bytes that they take: as they were sent, decoded, and as the model's input.
    pub queued_bytes: u64,
    /// The same for the frames of one model, and the bytes of one stream.
    pub model_queued_frames: usize,
    pub model_queued_bytes: u64,
    pub stream_queued_bytes: u64,
    /// How long a batch that is not full waits for more frames while the device has nothing to do.
    pub max_batch_delay: Duration,
    /// A stream that waits rises by one class of priority each time that this has passed.
    pub priority_ageing: Duration,
    /// Threads that decode, prepare and render.
    pub frame_threads: usize,
}

impl EngineConfig {
    fn process(&self) -> Budget {
        Budget::new(Limit {
            frames: ("limits.queued_frames", self.queued_frames),
            bytes: ("limits.queued_bytes", self.queued_bytes),
        })
    }

    fn model(&self) -> Budget {
        Budget::new(Limit {
            frames: ("limits.model_queued_frames", self.model_queued_frames),
            bytes: ("limits.model_queued_bytes", self.model_queued_bytes),
        })
    }

    /// A stream's frames are counted by its session.
    fn stream(&self) -> Budget {
        Budget::new(Limit {
            frames: ("limits.max_in_flight", usize::MAX),
            bytes: ("limits.stream_queued_bytes", self.stream_queued_bytes),
        })
    }
}

/// The engine cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("no thread could be started: {0}")]
pub struct EngineError(#[from] io::Error);

/// Explains frames. Cheap to clone; the threads end when [`Engine::stop`] is called.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    process: Budget,
    /// By name and version: the place among `served`, and the budget.
    models: Arc<HashMap<(String, i64), (usize, Budget)>>,
    served: Arc<[Arc<Served>]>,
    next_stream: Arc<AtomicU64>,
    threads: Arc<Mutex<Option<Threads>>>,
}

/// The device's workers and the pool; taken when the engine stops.
type Threads = (Vec<JoinHandle<()>>, Pool);

struct Shared {
    state: Mutex<State>,
    /// Something is prepared, or the end has come.
    device: Condvar,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    /// Nanoseconds that workers have spent on batches, all together.
    busy: AtomicU64,
    workers: usize,
}

struct State {
    dispatch: Dispatch<Chosen, PreparedRow>,
    /// `None` once the engine has stopped.
    tasks: Option<Tasks>,
    /// Workers that wait.
    idle: usize,
    /// Those of them that were woken, and have not come yet.
    woken: usize,
}

/// What follows from a change of the state. It is done without the lock: whoever is woken by it wants the lock, too.
struct Consequences {
    chosen: Vec<Chosen>,
    expired: Expired<Chosen, PreparedRow>,
}

/// A submitted frame, for whoever may end it.
#[derive(Debug, Clone)]
pub struct Handle {
    ticket: Ticket,
    stream: StreamKey,
}

impl Engine {
    /// Starts the threads: one worker for each of `devices`, which are called on their workers' threads. They have the models in
    /// the order of `served`.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start<D: Device + 'static>(
        config: EngineConfig,
        served: Vec<Arc<Served>>,
        devices: Vec<impl FnOnce() -> D + Send + 'static>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        let pool = Pool::start(config.frame_threads)?;
        let count = devices.len();
        let state = State { tasks: Some(pool.tasks()), ..State::empty(&config, count) };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            config,
            device: Condvar::new(),
            clock,
            busy: AtomicU64::new(0),
            workers: count,
        });
        let models = served
            .iter()
            .enumerate()
            .map(|(index, model)| ((model.metadata.name.clone(), model.metadata.version), (index, config.model())))
            .collect();
        let mut workers = Vec::with_capacity(count);
        for (index, device) in devices.into_iter().enumerate() {
            let name = if count == 1 { "camlens-device".to_owned() } else { format!("camlens-dev-{index}") };
            // Whatever ends here, an error included, closes the engine, and the workers that there are end.
            let shared = CloseAtEnd(Arc::clone(&shared));
            workers.push(thread::Builder::new().name(name).spawn(move || device_loop(device(), &shared.0))?);
        }
        Ok(Engine {
            shared,
            process: config.process(),
            models: Arc::new(models),
            served: served.into(),
            next_stream: Arc::default(),
            threads: Arc::new(Mutex::new(Some((workers, pool)))),
        })
    }

    /// The models, in the order in which they were given.
    pub fn served(&self) -> &[Arc<Served>] {
        &self.served
    }

    /// A way in for a stream, or for a single frame. For a model that is not served, frames end with
    /// [`super::JobError::Stopped`].
    pub fn lane(&self, model: &Arc<Served>) -> Lane {
        let stream = self.shared.config.stream();
        let own = self.place(model).map_or_else(|| self.shared.config.model(), |(_, budget)| budget.clone());
        Lane {
            key: StreamKey(self.next_stream.fetch_add(1, Ordering::Relaxed)),
            model: Arc::clone(model),
            budgets: Budgets([stream, own, self.process.clone()]),
        }
    }

    /// What each model has in work.
    pub fn in_work(&self) -> impl Iterator<Item = (&Arc<Served>, InWork)> {
        self.served.iter().filter_map(|model| Some((model, self.place(model)?.1.in_work())))
    }

    /// How long the device has been busy with batches that are over, since the engine started: the mean of its workers.
    pub fn device_busy(&self) -> Duration {
        Duration::from_nanos(self.shared.busy.load(Ordering::Relaxed) / self.shared.workers.max(1) as u64)
    }

    fn place(&self, model: &Served) -> Option<&(usize, Budget)> {
        self.models.get(&(model.metadata.name.clone(), model.metadata.version))
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Puts a frame into its stream's line.
    pub fn submit(&self, job: Job) -> Handle {
        let Job { lane, priority, expires_at, method, targets, outputs, payload, progress, admission, reply } = job;
        let Lane { key: stream, model, .. } = lane;
        let now = self.shared.clock.now();
        let ticket = Ticket::new();
        let handle = Handle { ticket: ticket.clone(), stream };
        progress.mark(Stage::Receive, now);
        let ending = Ending::new(ticket.clone(), reply);
        // An unknown model, or an engine that has stopped: dropping the ending says so.
        let Some(&(model_index, _)) = self.place(&model) else { return handle };
        let reverses = if method.maps.is_empty() { 0 } else { targets.iter().map(rows).sum() };
        let turn = Turn::new(stream, ticket, priority.min(MAX_PRIORITY), cost(reverses), expires_at, now);
        let chosen =
            Chosen { turn, model_index, model, method, targets, outputs, payload, progress, admission, ending };
        let mut state = self.shared.lock();
        if state.tasks.is_some() {
            state.dispatch.push(chosen, now);
            self.shared.choose(state, now);
        } else {
            drop(state);
            drop(chosen);
        }
        handle
    }

    /// Ends a frame that has not been taken to the device. `true`: it is ended, and its reply will not be called.
    pub fn withdraw(&self, handle: &Handle) -> bool {
        let won = handle.ticket.withdraw();
        if won {
            self.shared.forget(handle.stream);
        }
        won
    }

    /// Ends a frame wherever it is. `true`: it is ended, and its reply will not be called.
    pub fn cancel(&self, handle: &Handle) -> bool {
        let won = handle.ticket.end();
        if won {
            self.shared.forget(handle.stream);
        }
        won
    }

    /// Stops: what waits ends with [`super::JobError::Stopped`], what runs is finished. Blocks until the threads have ended.
    pub fn stop(&self) {
        self.shared.close();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((workers, pool)) = threads {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a thread of the device broke");
                }
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

    /// Fills the batch that is prepared ahead, and tells those who have become too old meanwhile.
    fn choose(self: &Arc<Self>, mut state: MutexGuard<'_, State>, now: Instant) {
        let Some(tasks) = state.tasks.clone() else { return };
        let consequences = state.choose(now);
        drop(state);
        self.carry_out(consequences, &tasks);
    }

    fn carry_out(self: &Arc<Self>, consequences: Consequences, tasks: &Tasks) {
        for chosen in consequences.chosen {
            let shared = Arc::clone(self);
            tasks.run(move || shared.prepare(chosen));
        }
        tell(consequences.expired);
    }

    /// A stream's frame was ended by its handle: its place is free.
    fn forget(self: &Arc<Self>, stream: StreamKey) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.dispatch.sweep(stream);
        self.choose(state, now);
    }

    /// On a thread of the pool.
    fn prepare(self: &Arc<Self>, chosen: Chosen) {
        let turn = chosen.turn.clone();
        // However it ends, the batch must not wait for it. A frame that breaks tells so as it is dropped.
        let prepared = catch_unwind(AssertUnwindSafe(|| prepare(chosen, &*self.clock))).unwrap_or_else(|_| {
            tracing::error!("a frame broke while it was prepared");
            Prepared::Refused
        });
        let now = self.clock.now();
        let mut state = self.lock();
        if state.tasks.is_none() {
            // It comes too late. Its reply is called without the lock.
            drop(state);
            drop(prepared);
            return;
        }
        state.dispatch.prepared(&turn, prepared, now);
        let wakes = state.wakes();
        self.choose(state, now);
        if wakes {
            self.device.notify_one();
        }
    }

    /// Ends everything that waits.
    fn close(&self) {
        let left = std::mem::replace(&mut *self.lock(), State::empty(&self.config, self.workers));
        // Replies are called as these go, without the lock.
        drop(left);
        self.device.notify_all();
    }
}

impl State {
    fn empty(config: &EngineConfig, workers: usize) -> Self {
        let dispatch = Dispatch::new(config.priority_ageing, config.max_batch_delay, workers);
        State { dispatch, tasks: None, idle: 0, woken: 0 }
    }

    /// Whether a worker waits that nobody has woken yet; it is to be woken now.
    fn wakes(&mut self) -> bool {
        let wakes = self.woken < self.idle;
        self.woken += usize::from(wakes);
        wakes
    }

    fn choose(&mut self, now: Instant) -> Consequences {
        let chosen = std::iter::from_fn(|| self.dispatch.choose(now)).collect();
        Consequences { chosen, expired: self.dispatch.take_expired() }
    }
}

impl Consequences {
    fn is_empty(&self) -> bool {
        self.chosen.is_empty() && self.expired.is_empty()
    }
}

fn tell(expired: Expired<Chosen, PreparedRow>) {
    expired.waiting.iter().for_each(|chosen| chosen.ending.expire());
    expired.ready.iter().for_each(|row| row.about.ending.expire());
}

/// Reverse runs that a target asks for.
fn rows(target: &Target) -> u32 {
    match target {
        Target::Class(_) => 1,
        Target::Top(count) => *count,
    }
}

/// Closes the engine when a thread of the device ends, however it does: nothing may wait for a device that is gone.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The life of a worker.
fn device_loop<D: Device>(mut device: D, shared: &Arc<Shared>) {
    while let Some((rows, tasks)) = next_rows(shared) {
        let began = shared.clock.now();
        let done = worker::run(&mut device, rows, &*shared.clock);
        let took = shared.clock.now().saturating_duration_since(began);
        shared.busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        for row in done {
            let clock = Arc::clone(&shared.clock);
            tasks.run(move || finish(row, &*clock));
        }
    }
}

/// Waits for rows; `None` once the engine has been closed.
fn next_rows(shared: &Arc<Shared>) -> Option<(Vec<PreparedRow>, Tasks)> {
    let mut state = shared.lock();
    loop {
        let tasks = state.tasks.clone()?;
        let now = shared.clock.now();
        let idle = state.idle;
        let until = match state.dispatch.take(idle, now) {
            Taken::Rows(rows) => {
                let wakes = state.dispatch.has_rows() && state.wakes();
                // The next batch is prepared while this one runs.
                shared.choose(state, now);
                if wakes {
                    shared.device.notify_one();
                }
                return Some((rows, tasks));
            }
            Taken::NotBefore(until) => Some(until),
            Taken::Nothing => None,
        };
        let consequences = state.choose(now);
        if !consequences.is_empty() {
            drop(state);
            shared.carry_out(consequences, &tasks);
            state = shared.lock();
            continue;
        }
        state.idle += 1;
        state = match until {
            // A clock of a test does not drive the system's timers; it is asked again soon.
            Some(until) => {
                let wait = until.saturating_duration_since(now).max(Duration::from_micros(50));
                shared.device.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
            }
            None => shared.device.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.idle = state.idle.saturating_sub(1);
        state.woken = state.woken.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests;
