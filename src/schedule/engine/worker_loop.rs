//! The life of a worker: what it does next, and until when it waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Load, Shared, State};
use crate::schedule::device::AsyncDevice;
use crate::schedule::pool::Tasks;
use crate::schedule::prepare::{Chosen, PreparedRow};
use crate::schedule::queue::next_batch::Taken;
use crate::schedule::worker::Worker;

/// What a worker does next.
enum Work {
    Run(Vec<PreparedRow>),
    /// Prepare a lone frame.
    Prepare(Box<Chosen>),
    Load(Load),
    /// Nothing for now.
    Nothing,
    /// Nothing, for long enough to tune the device.
    Tune,
    /// The engine has been closed.
    End,
}

/// How often a worker with nothing to do looks whether a model that was retired or replaced can be unloaded.
const UNLOAD_INTERVAL: Duration = Duration::from_millis(200);
/// Time without work for any worker before one tunes its device: the next frame of a video may be about to come.
pub(super) const QUIET: Duration = Duration::from_millis(20);

/// The life of a worker.
pub(super) fn device_loop<D: AsyncDevice>(device: D, index: usize, shared: &Arc<Shared>) {
    let mut worker = Worker::new(device, Arc::clone(&shared.clock));
    for model in shared.registry.models().served.iter().filter(|model| model.runs_on(index)) {
        if let Err(error) = worker.load(model) {
            tracing::error!(model = model.metadata.name, %error, "a device could not load a model");
            return;
        }
    }
    let mut state = shared.state.lock();
    state.dispatch.prepare_more(index, worker.depth() - 1);
    let Some(tasks) = state.tasks.clone() else { return };
    drop(state);
    loop {
        worker.unload_unused();
        let work = match (worker.is_idle(), worker.has_room()) {
            (true, _) => wait_for_work(&worker, index, shared, &tasks),
            (false, true) => work_at_hand(index, shared),
            (false, false) => Work::Nothing,
        };
        match work {
            Work::Run(rows) => {
                worker.submit(rows);
                // A device that works on several batches gets the next one before this one is waited for.
                if worker.has_room() {
                    continue;
                }
            }
            Work::Prepare(chosen) => {
                shared.prepare_lone(*chosen);
                continue;
            }
            Work::Load(Load { model, loaded }) => {
                let result = worker.load(&model);
                // Dropped before the caller goes on, which may drop its own. The caller may have gone.
                drop(model);
                let _ = loaded.send(result);
                continue;
            }
            Work::Tune => {
                worker.tune(&|| shared.state.lock().has_work(shared.workers));
                continue;
            }
            Work::End if worker.is_idle() => return,
            Work::End | Work::Nothing => {}
        }
        let Some((done, took)) = worker.collect() else { continue };
        shared.busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let renders = done.len() == 1 && worker.is_idle() && shared.state.lock().is_quiet_but_for_one();
        for row in done {
            if renders {
                shared.finish(row);
            } else {
                let shared = Arc::clone(shared);
                tasks.run(move || shared.finish(row));
            }
        }
        if let Some(why) = worker.lost() {
            shared.lost.send_replace(Some(why.to_owned()));
            return;
        }
        if shared.tunes.load(Ordering::Relaxed) {
            worker.tune_between_batches();
        }
    }
}

/// What a worker does whose device has nothing in flight: waits for rows or a model to load. [`Work::Nothing`] when it
/// is time to look for models to unload, [`Work::Tune`] when all workers have waited for a while.
fn wait_for_work<D: AsyncDevice>(worker: &Worker<D>, index: usize, shared: &Arc<Shared>, tasks: &Tasks) -> Work {
    let mut state = shared.state.lock();
    loop {
        if state.tasks.is_none() {
            return Work::End;
        }
        if let Some(load) = state.loads[index].pop_front() {
            return Work::Load(load);
        }
        if let Some(chosen) = state.lone[index].take() {
            return Work::Prepare(chosen);
        }
        let now = shared.clock.now();
        let idle = state.idle;
        let until = match state.dispatch.take(index, idle, now) {
            Taken::Rows(rows) => {
                rows_taken(state, shared, now);
                return Work::Run(rows);
            }
            Taken::NotBefore(until) => Some(until),
            Taken::Nothing => None,
        };
        let consequences = state.choose(now);
        if !consequences.is_empty() {
            drop(state);
            shared.carry_out(consequences, tasks);
            state = shared.state.lock();
            continue;
        }
        // A test's clock does not drive the system's timers: it is read again soon.
        let wait = until.map(|until| until.saturating_duration_since(now).max(Duration::from_micros(50)));
        let has_retired = worker.has_retired(|key| shared.registry.holds(key));
        let tunes = worker.is_untuned() && shared.tunes.load(Ordering::Relaxed);
        let bounds = [has_retired.then_some(UNLOAD_INTERVAL), tunes.then_some(QUIET)];
        let wait = wait.into_iter().chain(bounds.into_iter().flatten()).min();
        state.idle += 1;
        state.waiting.push(index);
        let is_over = match wait {
            Some(wait) => shared.signals[index].wait_for(&mut state, wait).timed_out(),
            None => {
                shared.signals[index].wait(&mut state);
                false
            }
        };
        let all_wait = state.idle == shared.workers;
        state.idle = state.idle.saturating_sub(1);
        state.waiting.retain(|&waiting| waiting != index);
        let is_free = state.lone[index].is_none() && state.tasks.is_some();
        if tunes && is_over && all_wait && until.is_none() && is_free {
            return Work::Tune;
        }
        if has_retired {
            return if state.tasks.is_none() { Work::End } else { Work::Nothing };
        }
    }
}

/// What a worker does whose device can take another batch beside the one in flight: it does not wait.
fn work_at_hand(index: usize, shared: &Arc<Shared>) -> Work {
    let mut state = shared.state.lock();
    if state.tasks.is_none() {
        return Work::End;
    }
    if let Some(load) = state.loads[index].pop_front() {
        return Work::Load(load);
    }
    let now = shared.clock.now();
    let rows = state.dispatch.take_full(index, now);
    match rows {
        Some(rows) => {
            rows_taken(state, shared, now);
            Work::Run(rows)
        }
        None => {
            shared.choose(state, now);
            Work::Nothing
        }
    }
}

/// A worker has taken rows: the next batch is prepared while they run, and what is left is another worker's.
fn rows_taken(mut state: MutexGuard<'_, State>, shared: &Arc<Shared>, now: Instant) {
    let wakes = if state.dispatch.has_rows() { state.wakes() } else { None };
    shared.choose(state, now);
    shared.notify(wakes);
}
