//! Frames in, outcomes out: the queue's lock, and the threads that it feeds.

mod worker_loop;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::watch;

use self::worker_loop::device_loop;
use super::admission::{Budget, Budgets, InWork, Limit};
use super::background::Compute;
use super::clock::Clock;
use super::device::AsyncDevice;
use super::error::JobError;
use super::finish::{DoneRow, finish};
use super::job::{Ending, Job};
use super::lane::Lane;
use super::pool::{Pool, Tasks};
use super::prepare::{Chosen, PreparedRow, prepare};
use super::queue::line::MAX_PRIORITY;
use super::queue::next_batch::Prepared;
use super::queue::ticket::{StreamKey, Ticket};
use super::queue::turn::Turn;
use super::queue::{Dispatch, Expired, Workers};
use super::registry::{Models, Registry};
use super::served::Served;
use crate::telemetry::Stage;

/// The engine's limits, delays and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most frames in work, over all streams, from their admission to their rendering.
    pub queued_frames: usize,
    /// The most bytes that they take: as they were sent, decoded, and as the model's input.
    pub queued_bytes: u64,
    /// The same for the frames of one model and for the bytes of one stream.
    pub model_queued_frames: usize,
    pub model_queued_bytes: u64,
    pub stream_queued_bytes: u64,
    /// The longest time that a batch that is not full waits for more frames while a worker waits.
    pub max_batch_delay: Duration,
    /// A stream that waits rises by one priority class each time that this has passed.
    pub priority_ageing: Duration,
    /// Whether models may be bound to some of the workers ([`Served::on_workers`]). Each worker then has batches
    /// prepared for itself.
    pub binds_models: bool,
    /// Threads that decode, prepare and render.
    pub frame_threads: usize,
    /// Whether they compute in the scheduler's idle class. Devices decide for themselves: [`BackgroundDevice`].
    ///
    /// [`BackgroundDevice`]: super::BackgroundDevice
    pub background: bool,
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

    /// A stream's session counts its frames.
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
    next_stream: Arc<AtomicU64>,
    /// Counts what models are used for.
    uses: Arc<AtomicU64>,
    threads: Arc<Mutex<Option<Threads>>>,
}

/// The device's workers and the pool; taken when the engine stops.
type Threads = (Vec<JoinHandle<()>>, Pool);

struct Shared {
    state: Mutex<State>,
    /// For each worker, notified when a row is prepared, a model is to be loaded, the models change, or the engine is
    /// closed.
    signals: Vec<Condvar>,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    /// Where frames are read and rendered.
    compute: Compute,
    registry: Registry,
    /// Nanoseconds that all workers together have spent on batches.
    busy: AtomicU64,
    /// Whether workers may tune their devices.
    tunes: AtomicBool,
    /// Why a device fails until the process ends.
    lost: watch::Sender<Option<String>>,
    workers: usize,
}

struct State {
    dispatch: Dispatch<Chosen, PreparedRow>,
    /// `None` once the engine has stopped.
    tasks: Option<Tasks>,
    /// Models that each worker is to load.
    loads: Vec<VecDeque<Load>>,
    /// Workers that wait.
    idle: usize,
    /// Those of them that were not notified, the one that began to wait last at the end. It is notified first: what it
    /// worked with is still in the caches.
    waiting: Vec<usize>,
    /// Whether workers prepare and render lone frames.
    keeps_lone_frames: bool,
    /// For each worker, a lone frame that it is to prepare.
    lone: Vec<Option<Box<Chosen>>>,
}

/// A model that a worker is to load on its device.
struct Load {
    model: Arc<Served>,
    loaded: mpsc::Sender<Result<(), JobError>>,
}

/// What follows from a change of the state. It is carried out without the lock, which the threads that it wakes need.
struct Consequences {
    chosen: Vec<Chosen>,
    /// A worker that was given a lone frame.
    woken: Option<usize>,
    expired: Expired<Chosen, PreparedRow>,
}

/// Ends a submitted frame.
#[derive(Debug, Clone)]
pub struct Handle {
    ticket: Ticket,
    stream: StreamKey,
}

impl Engine {
    /// Starts the threads: one worker for each of `devices`, which are called on their workers' threads and then load
    /// the models. A [`Served`] belongs to one engine.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub fn start<D: AsyncDevice + 'static>(
        config: EngineConfig,
        served: Vec<Arc<Served>>,
        devices: Vec<impl FnOnce() -> D + Send + 'static>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        let pool = Pool::start(config.frame_threads)?;
        let compute = if config.background { Compute::in_background(config.frame_threads)? } else { Compute::Here };
        let count = devices.len();
        let state = State { tasks: Some(pool.tasks()), ..State::empty(&config, count) };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            config,
            compute,
            signals: (0..count).map(|_| Condvar::new()).collect(),
            clock,
            registry: Registry::new(),
            busy: AtomicU64::new(0),
            tunes: AtomicBool::new(false),
            lost: watch::Sender::new(None),
            workers: count,
        });
        for model in &served {
            shared.registry.assign_budget(model, || config.model());
            shared.registry.publish(model);
        }
        let mut workers = Vec::with_capacity(count);
        for (index, device) in devices.into_iter().enumerate() {
            let name = if count == 1 { "camlens-device".to_owned() } else { format!("camlens-dev-{index}") };
            // If the thread cannot be started, dropping this closes the engine, and the other workers end.
            let shared = CloseAtEnd(Arc::clone(&shared));
            workers.push(thread::Builder::new().name(name).spawn(move || device_loop(device(), index, &shared.0))?);
        }
        Ok(Engine {
            shared,
            process: config.process(),
            next_stream: Arc::default(),
            uses: Arc::default(),
            threads: Arc::new(Mutex::new(Some((workers, pool)))),
        })
    }

    /// The models that can run, in the order of their registration.
    pub fn served(&self) -> Arc<[Arc<Served>]> {
        Arc::clone(&self.models().served)
    }

    /// The registered models.
    pub fn models(&self) -> Arc<Models> {
        self.shared.registry.models()
    }

    /// The registered models, and each change of them.
    pub fn watch_models(&self) -> watch::Receiver<Arc<Models>> {
        self.shared.registry.watch()
    }

    /// Loads a model on the device of each worker that runs it; blocks until all have loaded it. Lanes can then be
    /// opened for it, but [`Engine::served`] does not list it until it is published.
    ///
    /// # Errors
    /// The device's error, or [`JobError::Stopped`]. Devices that have loaded the model unload it when it is dropped.
    pub(super) fn load(&self, model: &Arc<Served>) -> Result<(), JobError> {
        self.shared.registry.assign_budget(model, || self.shared.config.model());
        let (loaded, results) = mpsc::channel();
        let mut state = self.shared.state.lock();
        if state.tasks.is_none() {
            return Err(JobError::Stopped);
        }
        let workers = state.loads.iter_mut().enumerate().filter(|(index, _)| model.runs_on(*index));
        let count = workers
            .map(|(_, worker)| worker.push_back(Load { model: Arc::clone(model), loaded: loaded.clone() }))
            .count();
        drop(state);
        drop(loaded);
        self.shared.notify_all();
        (0..count).try_for_each(|_| results.recv().unwrap_or(Err(JobError::Stopped)))
    }

    /// New streams get this model, which has been loaded. A model of the same name and version is replaced: frames and
    /// streams that have begun with it go on with it.
    pub(super) fn publish(&self, model: &Arc<Served>) {
        self.shared.registry.publish(model);
        self.shared.wake_workers();
    }

    /// A model that was to be added cannot run. One that it was to replace goes on.
    pub(super) fn fail(&self, model: &Served, why: String) {
        self.shared.registry.fail(model, why);
    }

    /// Names what cannot run, by name and version, and why; all of it.
    pub fn set_problems(&self, problems: BTreeMap<(String, Option<i64>), String>) {
        self.shared.registry.set_problems(problems);
    }

    /// Retires a model: new streams no longer get it, those that are open go on with it. Devices unload it when the
    /// last one has ended. `false`: there is no such model.
    pub fn retire_model(&self, name: &str, version: i64) -> bool {
        let is_found = self.shared.registry.retire(name, version);
        self.shared.wake_workers();
        is_found
    }

    /// As [`Engine::retire_model`], of a model that is loaded again when it is asked for: [`Models::evicted`] has it
    /// until then. `false`: it is not served.
    pub fn evict_model(&self, name: &str, version: i64) -> bool {
        let is_found = self.shared.registry.evict(name, version);
        self.shared.wake_workers();
        is_found
    }

    /// A lane for a stream or a single frame. Frames for a model that is not registered end with
    /// [`JobError::Stopped`].
    pub fn lane(&self, model: &Arc<Served>) -> Lane {
        let stream = self.shared.config.stream();
        let own = model.budget.get().cloned().unwrap_or_else(|| self.shared.config.model());
        self.use_of(model);
        Lane {
            key: StreamKey(self.next_stream.fetch_add(1, Ordering::Relaxed)),
            model: Arc::clone(model),
            budgets: Budgets([stream, own, self.process.clone()]),
            _open: Arc::clone(&model.lanes),
        }
    }

    fn use_of(&self, model: &Served) {
        model.last_use.store(self.uses.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The frames and bytes in work of each model that can run.
    pub fn in_work(&self) -> Vec<(Arc<Served>, InWork)> {
        let in_work = |model: &Arc<Served>| Some((Arc::clone(model), model.budget.get()?.in_work()));
        self.served().iter().filter_map(in_work).collect()
    }

    /// The time that workers have spent on finished batches since the engine started: the mean of the workers.
    pub fn device_busy(&self) -> Duration {
        Duration::from_nanos(self.shared.busy.load(Ordering::Relaxed) / self.shared.workers.max(1) as u64)
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Queues a frame behind its stream's others.
    pub fn submit(&self, job: Job) -> Handle {
        let Job {
            lane: Lane { key: stream, model, .. },
            priority,
            expires_at,
            method,
            targets,
            outputs,
            payload,
            progress,
            admission,
            onlooker,
            reply,
        } = job;
        let now = self.shared.clock.now();
        let ticket = Ticket::new();
        let handle = Handle { ticket: ticket.clone(), stream };
        progress.mark(Stage::Receive, now);
        let ending = Ending::new(ticket.clone(), reply);
        // Dropping the ending replies that the engine does not serve the model.
        if model.budget.get().is_none() {
            return handle;
        }
        self.use_of(&model);
        let count = targets.iter().fold(0u32, |sum, target| sum.saturating_add(target.count()));
        let cost = method.cost().runs(count);
        let turn = Turn::new(stream, ticket, priority.min(MAX_PRIORITY), cost, expires_at, now);
        let chosen = Chosen { turn, model, method, targets, outputs, payload, progress, admission, onlooker, ending };
        let mut state = self.shared.state.lock();
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

    /// Why a device fails until the process ends, once one does: the engine has then closed, and frames end with
    /// [`JobError::Stopped`].
    pub fn watch_lost(&self) -> watch::Receiver<Option<String>> {
        self.shared.lost.subscribe()
    }

    /// Lets workers tune their devices from now on: while no frame waits, and now and then between batches.
    pub fn tune(&self) {
        self.shared.tunes.store(true, Ordering::Relaxed);
        self.shared.wake_workers();
    }

    /// Stops the engine: frames that wait end with [`super::JobError::Stopped`], batches on the devices are finished.
    /// Blocks until the threads have ended.
    pub fn stop(&self) {
        self.shared.close();
        let threads = self.threads.lock().take();
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
    /// Fills the batch that is prepared ahead, and ends the frames that have expired.
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
        self.notify(consequences.woken);
        tell(consequences.expired);
    }

    /// Removes a frame that was ended by its handle.
    fn forget(self: &Arc<Self>, stream: StreamKey) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.dispatch.sweep(stream);
        self.choose(state, now);
    }

    /// On a thread of the pool: prepares a frame and wakes a worker for its row.
    fn prepare(self: &Arc<Self>, chosen: Chosen) {
        let Some((mut state, now)) = self.prepared(chosen) else { return };
        let wakes = state.wakes();
        self.choose(state, now);
        self.notify(wakes);
    }

    /// On a worker's thread: prepares a lone frame, whose row the worker takes next.
    fn prepare_lone(self: &Arc<Self>, chosen: Chosen) {
        let Some((state, now)) = self.prepared(chosen) else { return };
        self.choose(state, now);
    }

    /// Prepares a frame and takes it back. `None`: the engine has been closed.
    fn prepared(&self, chosen: Chosen) -> Option<(MutexGuard<'_, State>, Instant)> {
        let turn = chosen.turn.clone();
        // The batch must not wait for it, whatever happens. A frame whose preparation panics replies as it is dropped.
        let prepare = || prepare(chosen, &self.clock, &self.compute);
        let prepared = catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|_| {
            tracing::error!("a frame broke while it was prepared");
            Prepared::Refused
        });
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.tasks.is_none() {
            // The frame's reply is called without the lock.
            drop(state);
            drop(prepared);
            return None;
        }
        state.dispatch.prepared(&turn, prepared, now);
        Some((state, now))
    }

    /// Renders a row's outputs on this thread and ends its frame. One whose rendering panics replies as it is dropped.
    fn finish(&self, row: DoneRow) {
        let finish = || finish(row, &*self.clock, &self.compute);
        if catch_unwind(AssertUnwindSafe(finish)).is_err() {
            tracing::error!("a frame broke while it was rendered");
        }
    }

    /// Wakes all workers that wait.
    fn wake_workers(&self) {
        // A worker that has looked already waits on the condition by the time the lock is free.
        drop(self.state.lock());
        self.notify_all();
    }

    fn notify(&self, worker: Option<usize>) {
        if let Some(signal) = worker.and_then(|worker| self.signals.get(worker)) {
            signal.notify_one();
        }
    }

    fn notify_all(&self) {
        for signal in &self.signals {
            signal.notify_one();
        }
    }

    /// Ends everything that waits.
    fn close(&self) {
        let left = std::mem::replace(&mut *self.state.lock(), State::empty(&self.config, self.workers));
        // Replies are called as these go, without the lock.
        drop(left);
        self.notify_all();
    }
}

impl State {
    fn empty(config: &EngineConfig, workers: usize) -> Self {
        let of = if config.binds_models { Workers::Bound(workers) } else { Workers::Alike(workers) };
        let dispatch = Dispatch::new(config.priority_ageing, config.max_batch_delay, of);
        State {
            dispatch,
            tasks: None,
            loads: (0..workers).map(|_| VecDeque::new()).collect(),
            idle: 0,
            waiting: Vec::new(),
            // In the background, threads wait for others of the idle class.
            keeps_lone_frames: !config.background,
            lone: (0..workers).map(|_| None).collect(),
        }
    }

    /// The worker to notify, if one waits that has not been notified.
    fn wakes(&mut self) -> Option<usize> {
        let State { waiting, dispatch, .. } = self;
        let index = waiting.iter().rposition(|&worker| dispatch.has_rows_for(worker));
        index.map(|index| waiting.remove(index)).or_else(|| waiting.pop())
    }

    /// Whether one of the workers has something to do, seen from one that tunes its device.
    fn has_work(&self, workers: usize) -> bool {
        self.idle + 1 < workers
            || self.lone.iter().any(Option::is_some)
            || self.dispatch.has_rows()
            || self.tasks.is_none()
            || self.loads.iter().any(|loads| !loads.is_empty())
    }

    fn choose(&mut self, now: Instant) -> Consequences {
        let mut chosen: Vec<Chosen> = std::iter::from_fn(|| self.dispatch.choose(now)).collect();
        let woken = self.keep_lone(&mut chosen);
        Consequences { chosen, woken, expired: self.dispatch.take_expired() }
    }

    /// Gives a lone frame to a worker that waits: no other is in preparation or ready, and another worker goes on
    /// waiting for the next. Each thread that a frame passes through costs a wake-up, which takes milliseconds on
    /// processors that others use.
    fn keep_lone(&mut self, chosen: &mut Vec<Chosen>) -> Option<usize> {
        let [only] = &chosen[..] else { return None };
        let is_lone = self.dispatch.preparing() == 1 && !self.dispatch.has_rows() && self.waiting.len() > 1;
        if !self.keeps_lone_frames || !is_lone {
            return None;
        }
        let index = self.waiting.iter().rposition(|&worker| only.model.runs_on(worker))?;
        let worker = self.waiting.remove(index);
        self.lone[worker] = chosen.pop().map(Box::new);
        Some(worker)
    }

    /// Whether all workers but one wait, and no frame comes their way. The one may render its frame then.
    fn is_quiet_but_for_one(&self) -> bool {
        let others = self.lone.len() - 1;
        let is_quiet = self.dispatch.preparing() == 0 && !self.dispatch.has_rows();
        self.keeps_lone_frames && is_quiet && others > 0 && self.waiting.len() == others
    }
}

impl Consequences {
    fn is_empty(&self) -> bool {
        self.chosen.is_empty() && self.woken.is_none() && self.expired.is_empty()
    }
}

fn tell(expired: Expired<Chosen, PreparedRow>) {
    expired.waiting.iter().for_each(|chosen| chosen.ending.expire());
    expired.ready.iter().for_each(|row| row.about.ending.expire());
}

/// Closes the engine when a worker ends for any reason: nothing may wait for a device that has gone.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod async_tests;
#[cfg(test)]
mod tests;
