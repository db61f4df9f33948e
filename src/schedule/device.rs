//! What runs batches, as the worker sees it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::model_key::ModelKey;
use super::row_input::RowInput;
use super::served::Served;
use crate::explain::{ExplainError, Method, RowMaps, Target};
use crate::plan::Interrupt;
use crate::telemetry::Stage;

/// Rows that run together: one model, one method, one input size.
pub struct Batch<'a> {
    pub model: ModelKey,
    pub method: &'a Method,
    /// `[C, H, W]` of each row.
    pub shape: [u32; 3],
    pub inputs: Vec<RowInput<'a>>,
    /// Each row's targets.
    pub targets: Vec<&'a [Target]>,
}

impl<'a> Batch<'a> {
    /// Each row's input, `[C, H, W]`.
    pub fn values(&self) -> Vec<Cow<'a, [f32]>> {
        self.inputs.iter().map(|input| input.values()).collect()
    }
}

/// Runs one batch at a time on the thread that calls it, as a CPU does. Every `Device` is an [`AsyncDevice`] of depth
/// 1.
pub trait Device {
    /// As [`AsyncDevice::load`]. By default a device holds no models.
    ///
    /// # Errors
    /// When the model cannot run on the device.
    fn load(&mut self, _model: &Arc<Served>) -> Result<(), ExplainError> {
        Ok(())
    }

    /// As [`AsyncDevice::unload`].
    fn unload(&mut self, _model: ModelKey) {}

    /// As [`AsyncDevice::is_untuned`]. By default a device has nothing to tune.
    fn is_untuned(&self) -> bool {
        false
    }

    /// As [`AsyncDevice::tune`].
    fn tune(&mut self, _time: Duration, _interrupt: &dyn Interrupt) {}

    /// Runs a batch and returns one result for each row, in order. Calls `ended` when a stage of the whole batch has
    /// ended.
    ///
    /// # Errors
    /// What concerns the whole batch. What concerns one row is that row's result.
    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        (**self).load(model)
    }

    fn unload(&mut self, model: ModelKey) {
        (**self).unload(model);
    }

    fn is_untuned(&self) -> bool {
        (**self).is_untuned()
    }

    fn tune(&mut self, time: Duration, interrupt: &dyn Interrupt) {
        (**self).tune(time, interrupt);
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        (**self).run(batch, interrupt, ended)
    }
}

/// Runs several batches at once while its thread does something else. One thread owns it.
///
/// A call that panics must leave the device able to run other batches: the worker goes on with it.
pub trait AsyncDevice {
    /// A batch that was submitted and not collected.
    type InFlight;

    /// Batches in flight at most, at least 1. The worker never submits more.
    fn depth(&self) -> usize;

    /// Loads a model before its first batch.
    ///
    /// # Errors
    /// When the model cannot run on the device.
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError>;

    /// Frees a model. No batch of it is in flight, and none will be submitted.
    fn unload(&mut self, model: ModelKey);

    /// Whether batches may run faster once the device was [tuned](AsyncDevice::tune).
    fn is_untuned(&self) -> bool {
        false
    }

    /// Makes later batches faster, for example measures which kernel is the fastest: for about `time`, or until it is
    /// interrupted. The worker calls it again while the device [is untuned](AsyncDevice::is_untuned). No batch is in
    /// flight.
    fn tune(&mut self, _time: Duration, _interrupt: &dyn Interrupt) {}

    /// Starts a batch. The device copies what it needs later of the inputs.
    ///
    /// # Errors
    /// As [`AsyncDevice::collect`].
    fn submit(&mut self, batch: &Batch<'_>) -> Result<Self::InFlight, ExplainError>;

    /// Nobody waits for the batch: the device may stop it. It is collected all the same, as interrupted or with its
    /// results.
    fn interrupt(&mut self, in_flight: &mut Self::InFlight);

    /// Waits for the batch and returns one result for each row, in order. `batch` is the one that was submitted.
    /// `interrupt` is asked between the forward run and the reverse run, and more often where the device can stop.
    /// `ended` is called when a stage of the whole batch has ended, with the moment where that is not now.
    ///
    /// # Errors
    /// What concerns the whole batch. What concerns one row is that row's result.
    fn collect(
        &mut self,
        in_flight: Self::InFlight,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<RowResult>, ExplainError>;
}

impl<D: Device> AsyncDevice for D {
    type InFlight = ();

    fn depth(&self) -> usize {
        1
    }

    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        Device::load(self, model)
    }

    fn unload(&mut self, model: ModelKey) {
        Device::unload(self, model);
    }

    fn is_untuned(&self) -> bool {
        Device::is_untuned(self)
    }

    fn tune(&mut self, time: Duration, interrupt: &dyn Interrupt) {
        Device::tune(self, time, interrupt);
    }

    fn submit(&mut self, _: &Batch<'_>) -> Result<(), ExplainError> {
        Ok(())
    }

    fn interrupt(&mut self, (): &mut ()) {}

    fn collect(
        &mut self,
        (): (),
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage, Option<Instant>),
    ) -> Result<Vec<RowResult>, ExplainError> {
        self.run(batch, interrupt, &mut |stage| ended(stage, None))
    }
}

/// One row's maps, or what was wrong with the row.
pub type RowResult = Result<RowMaps, ExplainError>;
