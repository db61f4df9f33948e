//! Explainers on one CUDA device: two batches in flight, copies beside computation, and recorded graphs.
//!
//! Each batch in flight has a [`Slot`]: page-locked memory for what goes in and what comes out, and the recordings that
//! it runs. A batch goes up in one copy, pictures as bytes, runs forward and in reverse as two graphs, and comes back
//! in one copy; three streams do so for several batches at a time, ordered by events alone. Between the two graphs the
//! host may stop a batch that nobody waits for. What cannot be recorded runs operator by operator.

mod recording;
mod slot;
mod staging;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::device::{AsyncDevice, Batch, RowResult};
use super::explain_device::{default_batch, explain, not_loaded};
use super::explainers::Explainers;
use super::model_key::ModelKey;
use super::served::Served;
use crate::explain::{ExplainError, Explainer};
use crate::frame::Preparation;
use crate::plan::{Interrupt, PlanError};
use crate::telemetry::Stage;
use crate::torch::cuda::{Cuda, CudaError, Stream};

use recording::{Key, Recording};
use slot::{Events, Slot};

/// Batches in flight.
const DEPTH: usize = 2;
/// The lowest priority: work of other programs on the card goes first.
const PRIORITY: i32 = 0;

/// Models on one CUDA device.
pub struct CudaDevice {
    cuda: Cuda,
    index: u32,
    source: Explainers,
    models: HashMap<ModelKey, Loaded>,
    streams: Streams,
    slots: Vec<Slot>,
    /// Batches that cannot be recorded.
    unrecordable: HashSet<Key>,
}

/// A model on the device.
struct Loaded {
    explainer: Explainer,
    /// How the device normalises pictures.
    preparation: Preparation,
}

/// Each does one kind of work, in order; events order them among each other.
struct Streams {
    copy_in: Stream,
    compute: Stream,
    copy_out: Stream,
}

/// A batch that was submitted.
pub struct InFlight {
    slot: Taken,
    work: Work,
}

enum Work {
    /// It was queued at that moment.
    Recorded { key: Key, submitted: Instant },
    /// It runs when it is collected.
    Eager,
}

/// The slot of a batch in flight. It is free again when this is dropped, whatever becomes of the batch.
struct Taken {
    index: usize,
    is_free: Arc<AtomicBool>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.is_free.store(true, Ordering::Relaxed);
    }
}

impl CudaDevice {
    /// A device with this index. It loads its models from `source`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: Cuda, index: u32, source: Explainers) -> Result<Self, CudaError> {
        let stream = || Stream::new(cuda, index, PRIORITY);
        let streams = Streams { copy_in: stream()?, compute: stream()?, copy_out: stream()? };
        let slots = (0..DEPTH).map(|_| Slot::new(cuda, index)).collect::<Result<_, _>>()?;
        Ok(CudaDevice { cuda, index, source, models: HashMap::new(), streams, slots, unrecordable: HashSet::new() })
    }

    fn device(&self) -> tch::Device {
        tch::Device::Cuda(self.index as usize)
    }

    fn take_slot(&self) -> Result<Taken, ExplainError> {
        let free = self.slots.iter().enumerate().find(|(_, slot)| slot.is_free.load(Ordering::Relaxed));
        let (index, slot) = free.ok_or_else(|| PlanError::Inconsistent("more batches than slots".into()))?;
        slot.is_free.store(false, Ordering::Relaxed);
        Ok(Taken { index, is_free: Arc::clone(&slot.is_free) })
    }

    /// Records a batch for a slot, unless it has the recording. `false`: it cannot be recorded.
    fn prepare(&mut self, slot: usize, key: &Key) -> Result<bool, ExplainError> {
        if self.slots[slot].recording(key).is_some() {
            return Ok(true);
        }
        if self.unrecordable.contains(key) {
            return Ok(false);
        }
        let mut made = self.record(slot, key);
        if made.as_ref().is_err_and(ExplainError::is_out_of_memory) {
            // Recordings of other batches, which may not come again, hold memory.
            self.slots.iter_mut().filter(|slot| slot.is_free.load(Ordering::Relaxed)).for_each(Slot::forget_all);
            self.slots[slot].forget_all();
            self.cuda.release_memory(self.index)?;
            made = self.record(slot, key);
        }
        match made {
            Ok(recording) => {
                self.slots[slot].keep(recording);
                Ok(true)
            }
            Err(error) if error.is_out_of_memory() || error.is_lost() => Err(error),
            Err(error) => {
                self.cuda.check(self.index)?;
                let model = self.models.get(&key.model).map(|model| &model.explainer.metadata().name);
                tracing::warn!(model, rows = key.rows, %error, "a batch is not recorded: it runs operator by operator");
                self.unrecordable.insert(key.clone());
                Ok(false)
            }
        }
    }

    fn record(&mut self, slot: usize, key: &Key) -> Result<Recording, ExplainError> {
        let model = self.models.get_mut(&key.model).ok_or_else(not_loaded)?;
        Recording::new(model, key, &self.slots[slot].pool, &self.streams.compute, self.index)
    }

    /// Queues the copy of a batch to the device and its forward run.
    fn queue(&mut self, slot: usize, batch: &Batch<'_>, key: &Key) -> Result<Instant, ExplainError> {
        let Streams { copy_in, compute, .. } = &self.streams;
        let Slot { input, recordings, events, .. } = &mut self.slots[slot];
        let recording = recordings.iter().find(|recording| recording.key == *key).ok_or_else(not_loaded)?;
        let bytes = recording.write(input.at_least(recording.input_bytes(), Some(&events.copied_in))?, batch);
        let submitted = Instant::now();
        copy_in.record(&events.begun)?;
        copy_in.copy(&recording.input(bytes)?, &input.first(bytes)?)?;
        copy_in.record(&events.copied_in)?;
        compute.wait_for(&events.copied_in)?;
        recording.forward.launch(compute)?;
        compute.record(&events.forward_over)?;
        Ok(submitted)
    }

    fn collect_recorded(
        &mut self,
        slot: usize,
        (key, submitted): (&Key, Instant),
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<Option<RowResult>>, ExplainError> {
        let Streams { compute, copy_out, .. } = &self.streams;
        let Slot { output, recordings, events, .. } = &mut self.slots[slot];
        let recording = recordings.iter().find(|recording| recording.key == *key).ok_or_else(not_loaded)?;
        events.forward_over.synchronize()?;
        let at = |event| Events::moment(events, submitted, event);
        ended(Stage::CopyIn, at(&events.copied_in));
        ended(Stage::Forward, at(&events.forward_over));
        if interrupt.stop() {
            return Err(PlanError::Interrupted.into());
        }
        recording.reverse.launch(compute)?;
        compute.record(&events.reverse_over)?;
        let values = recording.packed.len();
        output.at_least(values * size_of::<f32>(), Some(&events.copied_out))?;
        copy_out.wait_for(&events.reverse_over)?;
        copy_out.copy(&recording.output_to(output)?, &recording.packed.values)?;
        copy_out.record(&events.copied_out)?;
        let values = output.read_after(&events.copied_out, values)?;
        ended(Stage::Backward, at(&events.reverse_over));
        ended(Stage::Fuse, at(&events.reverse_over));
        let rows = recording.packed.rows(values, &batch.targets);
        ended(Stage::CopyOut, None);
        Ok(rows)
    }

    /// Runs a batch operator by operator on the compute stream.
    fn run_eagerly(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let device = self.device();
        let model = self.models.get_mut(&batch.model).ok_or_else(not_loaded)?;
        self.streams.compute.within(|| explain(&mut model.explainer, batch, device, interrupt, ended))?
    }
}

impl AsyncDevice for CudaDevice {
    type InFlight = InFlight;

    fn depth(&self) -> usize {
        DEPTH
    }

    /// Records a request's defaults for one row, so that the first frames do not wait for it, and for as many rows as
    /// the model allows and the device has memory for.
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        let explainer = self.source.share(model.key(), self.device()).ok_or_else(not_loaded)?;
        self.models.insert(model.key(), Loaded { explainer, preparation: model.preparation.clone() });
        let (method, shape) = default_batch(model);
        let of_rows = |rows: usize| Key {
            model: model.key(),
            method: method.clone(),
            shape: shape.map(|side| side as u32),
            rows,
            rounds: 1,
            normalizes: model.takes_pictures(),
        };
        let most = model.limits.max_batch as usize;
        for rows in std::iter::successors(Some(1), |rows| (*rows < most).then(|| (rows * 2).min(most))) {
            let key = of_rows(rows);
            match (0..DEPTH).try_for_each(|slot| self.prepare(slot, &key).map(drop)) {
                Err(error) if error.is_out_of_memory() && rows > 1 => {
                    tracing::warn!(model = model.metadata.name, rows = rows / 2, "the device has memory for no more");
                    model.batching.fits(rows / 2);
                    break;
                }
                recorded => recorded?,
            }
        }
        Ok(())
    }

    fn unload(&mut self, model: ModelKey) {
        self.slots.iter_mut().for_each(|slot| slot.forget(model));
        self.unrecordable.retain(|key| key.model != model);
        self.models.remove(&model);
        self.source.remove(model);
        if let Err(error) = self.cuda.release_memory(self.index) {
            tracing::warn!(%error, "memory of a model could not be given back");
        }
    }

    fn submit(&mut self, batch: &Batch<'_>) -> Result<InFlight, ExplainError> {
        let slot = self.take_slot()?;
        let max_rows = self.models.get(&batch.model).ok_or_else(not_loaded)?.explainer.metadata().max_rows;
        let Some(key) = Key::of(batch, max_rows) else { return Ok(InFlight { slot, work: Work::Eager }) };
        if !self.prepare(slot.index, &key)? {
            return Ok(InFlight { slot, work: Work::Eager });
        }
        let submitted = self.queue(slot.index, batch, &key)?;
        Ok(InFlight { slot, work: Work::Recorded { key, submitted } })
    }

    /// The batch is asked again between its two graphs.
    fn interrupt(&mut self, _: &mut InFlight) {}

    fn collect(
        &mut self,
        InFlight { slot, work }: InFlight,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let (key, submitted) = match work {
            Work::Recorded { key, submitted } => (key, submitted),
            Work::Eager => return self.run_eagerly(batch, interrupt, &mut |stage| ended(stage, None)),
        };
        let rows = self.collect_recorded(slot.index, (&key, submitted), batch, interrupt, ended);
        if rows.as_ref().is_err_and(|error| !error.is_interrupted()) {
            // Nothing of it may run on in memory that the next batch takes.
            self.cuda.synchronize(self.index)?;
        }
        let rows = rows?;
        if rows.iter().all(Option::is_some) {
            return Ok(rows.into_iter().flatten().collect());
        }
        // Two logits that the device takes for equal: the host's order decides.
        let mut again = self.run_eagerly(batch, interrupt, &mut |_| {})?.into_iter();
        Ok(rows.into_iter().filter_map(|row| again.next().map(|other| row.unwrap_or(other))).collect())
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        self.source.save_timings();
    }
}
