//! The device's thread: takes a batch, runs it, passes its rows on.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::clock::Clock;
use super::device::{Batch, Device, HostMap, RowMaps};
use super::error::JobError;
use super::finish::DoneRow;
use super::prepare::PreparedRow;
use crate::explain::ExplainError;
use crate::explain::MapKind;
use crate::telemetry::{BatchOutcome, BatchRecord, Stage};

/// A row's result and how many rows ran with it; `None`: nobody wants it any more.
type Ran = Option<(Result<RowMaps, JobError>, u32)>;

/// Runs rows of one batch key and input size. Rows that nobody wants any more have no result.
pub(super) fn run<D: Device>(device: &mut D, rows: Vec<PreparedRow>, clock: &dyn Clock) -> Vec<DoneRow> {
    let now = clock.now();
    for row in &rows {
        row.about.progress.mark(Stage::Batch, now);
    }
    let results = run_whole(device, &rows, clock);
    rows.into_iter()
        .zip(results)
        .filter_map(|(mut row, ran)| {
            let (result, batch_size) = ran?;
            let wants_input = row.about.outputs.tensors.iter().any(|tensor| tensor.map == MapKind::Input);
            let input = if wants_input {
                HostMap { values: mem::take(&mut row.input.values), shape: row.shape.to_vec() }
            } else {
                HostMap::default()
            };
            Some(DoneRow { about: row.about, input, result, batch_size })
        })
        .collect()
}

/// What became of a batch.
enum Fate {
    Done(Vec<Ran>),
    OutOfMemory,
    Broken,
}

/// Runs all rows at once. Out of memory: once more, in halves. A panic: once more, row by row, so that it costs the row that
/// causes it and no other.
fn run_whole<D: Device>(device: &mut D, rows: &[PreparedRow], clock: &dyn Clock) -> Vec<Ran> {
    match attempt(device, rows, clock) {
        Fate::Done(results) => results,
        Fate::OutOfMemory if rows.len() > 1 => {
            tracing::warn!(rows = rows.len(), "out of memory: the batch runs again in halves");
            let (first, second) = rows.split_at(rows.len() / 2);
            let mut results = run_last(device, first, clock);
            results.extend(run_last(device, second, clock));
            results
        }
        Fate::Broken if rows.len() > 1 => {
            tracing::warn!(rows = rows.len(), "a batch broke: its rows run again one by one");
            rows.chunks(1).flat_map(|row| run_last(device, row, clock)).collect()
        }
        fate => failed(fate, rows.len()),
    }
}

/// Runs rows that get no other chance.
fn run_last<D: Device>(device: &mut D, rows: &[PreparedRow], clock: &dyn Clock) -> Vec<Ran> {
    let fate = attempt(device, rows, clock);
    failed(fate, rows.len())
}

fn failed(fate: Fate, rows: usize) -> Vec<Ran> {
    let all = |error: fn() -> JobError| (0..rows).map(|_| Some((Err(error()), rows as u32))).collect();
    match fate {
        Fate::Done(results) => results,
        Fate::OutOfMemory => all(|| JobError::OutOfMemory),
        Fate::Broken => all(|| JobError::Broken),
    }
}

fn attempt<D: Device>(device: &mut D, rows: &[PreparedRow], clock: &dyn Clock) -> Fate {
    let Some(first) = rows.first() else { return Fate::Done(Vec::new()) };
    let (count, began) = (rows.len(), clock.now());
    let units = rows.iter().map(|row| row.about.turn.cost).sum();
    let record = Arc::new(BatchRecord::new(count as u32, began));
    rows.iter().for_each(|row| row.about.progress.joins(&record));
    let result = {
        let batch = Batch {
            model: first.model_index,
            method: &first.method,
            shape: first.shape,
            inputs: rows.iter().map(|row| row.input.values.as_slice()).collect(),
            targets: rows.iter().map(|row| row.targets.as_slice()).collect(),
        };
        let nobody_waits = || rows.iter().all(|row| row.about.ending.ticket.is_over());
        // The device keeps nothing half-made across calls: plans are cached once they are whole.
        catch_unwind(AssertUnwindSafe(|| {
            device.run(&batch, &nobody_waits, &mut |stage| {
                let now = clock.now();
                rows.iter().for_each(|row| row.about.progress.mark(stage, now));
                // Between the forward run and the reverse one: whoever has become too old by now goes no further.
                if stage == Stage::Forward {
                    rows.iter().filter(|row| row.about.turn.has_expired(now)).for_each(|row| row.about.ending.expire());
                }
            })
        }))
    };
    let now = clock.now();
    record.ends(now, outcome(&result));
    match result {
        Ok(Ok(results)) if results.len() == count => {
            first.about.model.batching.ran(count, units, now.saturating_duration_since(began));
            Fate::Done(results.into_iter().map(|row| Some((row.map_err(JobError::Explain), count as u32))).collect())
        }
        Ok(Ok(results)) => {
            tracing::error!(rows = count, results = results.len(), "the device lost rows");
            Fate::Broken
        }
        Ok(Err(error)) if error.is_interrupted() => Fate::Done((0..count).map(|_| None).collect()),
        Ok(Err(error)) if error.is_out_of_memory() => Fate::OutOfMemory,
        Ok(Err(error)) => Fate::Done(share(error, count)),
        Err(panic) => {
            tracing::error!(rows = count, panic = message(&*panic), "a batch broke");
            Fate::Broken
        }
    }
}

/// One error for every row: rows share the method, so what is wrong with it is wrong for each.
fn share(error: ExplainError, rows: usize) -> Vec<Ran> {
    let shared = Arc::new(error);
    (0..rows).map(|_| Some((Err(JobError::Batch(Arc::clone(&shared))), rows as u32))).collect()
}

fn outcome<T, P>(result: &Result<Result<T, ExplainError>, P>) -> BatchOutcome {
    match result {
        Ok(Ok(_)) => BatchOutcome::Done,
        Ok(Err(error)) if error.is_interrupted() => BatchOutcome::Stopped,
        Ok(Err(error)) if error.is_out_of_memory() => BatchOutcome::OutOfMemory,
        Ok(Err(_)) | Err(_) => BatchOutcome::Failed,
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
