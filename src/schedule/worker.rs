//! The device's thread: submits batches, collects them in order, and passes their rows on.

use std::any::Any;
use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::device::{AsyncDevice, Batch};
use super::error::JobError;
use super::finish::DoneRow;
use super::model_key::ModelKey;
use super::prepare::PreparedRow;
use super::served::Served;
use crate::explain::{ExplainError, HostMap, MapKind, RowMaps};
use crate::plan::{Interrupt, Never};
use crate::telemetry::{BatchOutcome, BatchRecord, Stage};

/// A device, its batches in flight, and its models.
pub(super) struct Worker<D: AsyncDevice> {
    device: D,
    clock: Arc<dyn Clock>,
    /// In the order of submission.
    flights: VecDeque<Flight<D::InFlight>>,
    /// The moment at which the last batch was collected.
    free_since: Instant,
    models: Vec<(ModelKey, Weak<Served>)>,
    /// Batches since the device was tuned.
    untuned_batches: u32,
    /// Why the device fails until the process ends.
    lost: Option<String>,
}

/// Batches after which a device that is never idle is tuned, and for how long.
const BATCHES_BEFORE_TUNING: u32 = 16;
const TUNING_BETWEEN_BATCHES: Duration = Duration::from_millis(50);
/// The longest time that a device which has nothing to do is tuned for at once.
const TUNING: Duration = Duration::from_secs(1);

/// A batch that was submitted.
struct Flight<F> {
    rows: Vec<PreparedRow>,
    attempt: Attempt<F>,
    is_interrupted: bool,
}

/// One try to run some rows together.
struct Attempt<F> {
    record: Arc<BatchRecord>,
    began: Instant,
    submitted: Result<F, Failure>,
}

/// Why an attempt has no results.
enum Failure {
    Explain(ExplainError),
    /// The device panicked, or gave another number of results than there are rows.
    Broken,
}

/// A row's result and the number of rows that ran with it; `None` if the batch was interrupted.
type Ran = Option<(Result<RowMaps, JobError>, u32)>;

/// What became of an attempt.
enum Fate {
    Done(Vec<Ran>),
    OutOfMemory,
    Broken,
}

impl<D: AsyncDevice> Worker<D> {
    pub(super) fn new(device: D, clock: Arc<dyn Clock>) -> Self {
        let free_since = clock.now();
        Worker {
            device,
            clock,
            flights: VecDeque::new(),
            free_since,
            models: Vec::new(),
            untuned_batches: 0,
            lost: None,
        }
    }

    /// Batches that may be in flight.
    pub(super) fn depth(&self) -> usize {
        self.device.depth().max(1)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether another batch may be submitted.
    pub(super) fn has_room(&self) -> bool {
        self.flights.len() < self.depth()
    }

    /// Loads a model on the device.
    pub(super) fn load(&mut self, model: &Arc<Served>) -> Result<(), JobError> {
        match caught(|| self.device.load(model)) {
            Ok(()) => {
                self.models.push((model.key(), Arc::downgrade(model)));
                Ok(())
            }
            Err(Failure::Explain(error)) => Err(JobError::Explain(error)),
            Err(Failure::Broken) => Err(JobError::Broken),
        }
    }

    /// Unloads the models that no frame, no stream and no registry holds.
    pub(super) fn unload_unused(&mut self) {
        let (used, unused) = mem::take(&mut self.models).into_iter().partition(|(_, model)| model.strong_count() > 0);
        self.models = used;
        for (key, _) in unused {
            let _: Result<(), Failure> = caught(|| {
                self.device.unload(key);
                Ok(())
            });
        }
    }

    /// Why the device fails until the process ends, if it does.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Whether the device may get faster by [`Worker::tune`].
    pub(super) fn is_untuned(&self) -> bool {
        self.device.is_untuned()
    }

    /// Tunes a device that has nothing to do, until it is interrupted.
    pub(super) fn tune(&mut self, interrupt: &dyn Interrupt) {
        self.untuned_batches = 0;
        self.tune_for(TUNING, interrupt);
    }

    /// Tunes the device for a moment, if it always has batches to run.
    pub(super) fn tune_between_batches(&mut self) {
        if self.untuned_batches >= BATCHES_BEFORE_TUNING && self.is_idle() && self.is_untuned() {
            self.untuned_batches = 0;
            self.tune_for(TUNING_BETWEEN_BATCHES, &Never);
        }
    }

    fn tune_for(&mut self, time: Duration, interrupt: &dyn Interrupt) {
        let _: Result<(), Failure> = caught(|| {
            self.device.tune(time, interrupt);
            Ok(())
        });
    }

    /// Whether the device has a model that is not among those for which `is_current` holds.
    pub(super) fn has_retired(&self, is_current: impl Fn(ModelKey) -> bool) -> bool {
        self.models.iter().any(|(key, _)| !is_current(*key))
    }

    /// Submits at least one row; all have one batch key and input size. Requires [`Worker::has_room`].
    pub(super) fn submit(&mut self, rows: Vec<PreparedRow>) {
        let now = self.clock.now();
        for row in &rows {
            row.about.progress.mark(Stage::Batch, now);
        }
        let attempt = begin(&mut self.device, &rows, now);
        self.flights.push_back(Flight { rows, attempt, is_interrupted: false });
    }

    /// Collects the oldest batch in flight and returns its rows and the time that the device took for them. Rows of an
    /// interrupted batch are left out.
    pub(super) fn collect(&mut self) -> Option<(Vec<DoneRow>, Duration)> {
        self.interrupt_unwanted();
        let Flight { rows, attempt, .. } = self.flights.pop_front()?;
        let began = attempt.began.max(self.free_since);
        let results = self.finish(&rows, attempt);
        self.untuned_batches = self.untuned_batches.saturating_add(1);
        self.free_since = self.clock.now();
        let took = self.free_since.saturating_duration_since(began);
        Some((rows.into_iter().zip(results).filter_map(|(row, ran)| Some(done(row, ran?))).collect(), took))
    }

    /// Tells the device of each batch that nobody waits for any more.
    fn interrupt_unwanted(&mut self) {
        for flight in self.flights.iter_mut().filter(|flight| !flight.is_interrupted && is_unwanted(&flight.rows)) {
            flight.is_interrupted = true;
            if let Ok(in_flight) = &mut flight.attempt.submitted {
                // If this panics, the batch is collected as it is.
                let _: Result<(), Failure> = caught(|| {
                    self.device.interrupt(in_flight);
                    Ok(())
                });
            }
        }
    }

    /// Ends the first attempt. A batch that is out of memory runs once more in halves; a single row that found no
    /// memory beside the batches before it runs once more without them. A batch that panics runs once more row by row,
    /// so that only the row that causes the panic fails.
    fn finish(&mut self, rows: &[PreparedRow], attempt: Attempt<D::InFlight>) -> Vec<Ran> {
        let has_not_begun = attempt.submitted.is_err();
        match self.end(rows, attempt) {
            Fate::Done(results) => results,
            Fate::OutOfMemory if rows.len() == 1 && has_not_begun => self.run_last(rows),
            Fate::OutOfMemory if rows.len() > 1 => {
                tracing::warn!(rows = rows.len(), "out of memory: the batch runs again in halves");
                let (first, second) = rows.split_at(rows.len() / 2);
                let mut results = self.run_last(first);
                results.extend(self.run_last(second));
                results
            }
            Fate::Broken if rows.len() > 1 => {
                tracing::warn!(rows = rows.len(), "a batch broke: its rows run again one by one");
                rows.chunks(1).flat_map(|row| self.run_last(row)).collect()
            }
            fate => failed(fate, rows.len()),
        }
    }

    /// Runs rows that are not tried again.
    fn run_last(&mut self, rows: &[PreparedRow]) -> Vec<Ran> {
        let attempt = begin(&mut self.device, rows, self.clock.now());
        let fate = self.end(rows, attempt);
        failed(fate, rows.len())
    }

    /// Waits for the end of an attempt.
    fn end(&mut self, rows: &[PreparedRow], attempt: Attempt<D::InFlight>) -> Fate {
        let Attempt { record, began, submitted } = attempt;
        let clock = &*self.clock;
        let ended = &mut |stage, at: Option<Instant>| {
            let now = clock.now();
            rows.iter().for_each(|row| row.about.progress.mark(stage, at.unwrap_or(now)));
            // Between the forward run and the reverse run: frames that have expired go no further.
            if stage == Stage::Forward {
                rows.iter().filter(|row| row.about.turn.has_expired(now)).for_each(|row| row.about.ending.expire());
            }
        };
        let device = &mut self.device;
        let result = submitted
            .and_then(|in_flight| caught(|| device.collect(in_flight, &batch(rows), &|| is_unwanted(rows), ended)));
        let now = clock.now();
        record.ends(now, outcome(&result));
        if let Err(Failure::Explain(error)) = &result
            && error.is_lost()
        {
            self.lost = Some(error.to_string());
        }
        let count = rows.len();
        match result {
            Ok(results) if results.len() == count => {
                if let Some(first) = rows.first() {
                    let units = rows.iter().map(|row| row.about.turn.cost).sum();
                    let took = now.saturating_duration_since(began.max(self.free_since));
                    first.about.model.batching.ran(count, units, took);
                }
                Fate::Done(
                    results.into_iter().map(|row| Some((row.map_err(JobError::Explain), count as u32))).collect(),
                )
            }
            Ok(results) => {
                tracing::error!(rows = count, results = results.len(), "the device lost rows");
                Fate::Broken
            }
            Err(Failure::Explain(error)) if error.is_interrupted() => Fate::Done((0..count).map(|_| None).collect()),
            Err(Failure::Explain(error)) if error.is_out_of_memory() => Fate::OutOfMemory,
            Err(Failure::Explain(error)) => Fate::Done(share(error, count)),
            Err(Failure::Broken) => Fate::Broken,
        }
    }
}

/// Submits rows to the device.
fn begin<D: AsyncDevice>(device: &mut D, rows: &[PreparedRow], began: Instant) -> Attempt<D::InFlight> {
    let record = Arc::new(BatchRecord::new(rows.len() as u32, began));
    rows.iter().for_each(|row| row.about.progress.joins(&record));
    let submitted = caught(|| device.submit(&batch(rows)));
    Attempt { record, began, submitted }
}

fn batch(rows: &[PreparedRow]) -> Batch<'_> {
    let first = &rows[0];
    Batch {
        model: first.about.model.key(),
        method: &first.method,
        shape: first.shape,
        inputs: rows.iter().map(|row| row.input.as_row(&row.about.model.preparation)).collect(),
        targets: rows.iter().map(|row| row.targets.as_slice()).collect(),
    }
}

fn is_unwanted(rows: &[PreparedRow]) -> bool {
    rows.iter().all(|row| row.about.ending.ticket.is_over())
}

/// A call to the device that may panic. Devices keep nothing half-made across calls: plans are cached once they are
/// whole.
fn caught<T>(call: impl FnOnce() -> Result<T, ExplainError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Failure::Explain),
        Err(panic) => {
            tracing::error!(panic = message(&*panic), "a call to the device broke");
            Err(Failure::Broken)
        }
    }
}

fn done(row: PreparedRow, (result, batch_size): (Result<RowMaps, JobError>, u32)) -> DoneRow {
    let wants_input = row.about.outputs.tensors.iter().any(|tensor| tensor.map == MapKind::Input);
    let input = if wants_input {
        HostMap { values: row.input.into_values(&row.about.model.preparation), shape: row.shape.to_vec() }
    } else {
        HostMap::default()
    };
    DoneRow { about: row.about, input, result, batch_size }
}

fn failed(fate: Fate, rows: usize) -> Vec<Ran> {
    let all = |error: fn() -> JobError| (0..rows).map(|_| Some((Err(error()), rows as u32))).collect();
    match fate {
        Fate::Done(results) => results,
        Fate::OutOfMemory => all(|| JobError::OutOfMemory),
        Fate::Broken => all(|| JobError::Broken),
    }
}

/// One error for every row: rows share the method, so its fault concerns each of them.
fn share(error: ExplainError, rows: usize) -> Vec<Ran> {
    let shared = Arc::new(error);
    (0..rows).map(|_| Some((Err(JobError::Batch(Arc::clone(&shared))), rows as u32))).collect()
}

fn outcome<T>(result: &Result<T, Failure>) -> BatchOutcome {
    match result {
        Ok(_) => BatchOutcome::Done,
        Err(Failure::Explain(error)) if error.is_interrupted() => BatchOutcome::Stopped,
        Err(Failure::Explain(error)) if error.is_out_of_memory() => BatchOutcome::OutOfMemory,
        Err(_) => BatchOutcome::Failed,
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
