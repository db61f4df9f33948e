//! Explainers on a libtorch device.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::device::{Batch, Device, RowResult};
use super::explainers::Explainers;
use super::model_key::ModelKey;
use super::served::Served;
use crate::explain::{ExplainError, Explainer, HostMap, MapKind, MapSet, Method, RowMaps};
use crate::model::ModelError;
use crate::model::dimension::Dimension;
use crate::plan::{Interrupt, Never, take_untuned, tuning};
use crate::telemetry::Stage;
use crate::torch::{self, threads::ModelRun};

/// Models on one libtorch device.
pub struct ExplainDevice {
    source: Explainers,
    explainers: HashMap<ModelKey, Explainer>,
    /// Models that may get faster: what is to be explained for it.
    untuned: HashMap<ModelKey, Untuned>,
    warms: bool,
    device: tch::Device,
}

struct Untuned {
    method: Method,
    /// `[C, H, W]` of the input.
    shape: [i64; 3],
    /// Since when it is known that kernels may not be the fastest; `None` for a plan that has to be compiled.
    since: Option<Instant>,
}

impl ExplainDevice {
    /// Loads its models from `source`. So that no frame waits for this worker to compile a plan, it explains a made-up
    /// input with each model: with `warms` when it loads it, otherwise when it has nothing else to do.
    pub fn new(source: Explainers, warms: bool, device: tch::Device) -> Self {
        ExplainDevice { source, explainers: HashMap::new(), untuned: HashMap::new(), warms, device }
    }

    /// Notes whether what ran last on this thread ran on kernels that may not be the fastest.
    fn note_untuned(&mut self, model: ModelKey, method: &Method, shape: [i64; 3]) {
        if take_untuned() {
            let since = self.untuned.get(&model).and_then(|known| known.since).or_else(|| Some(Instant::now()));
            self.untuned.insert(model, Untuned { method: method.clone(), shape, since });
        }
    }
}

impl Device for ExplainDevice {
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        let _run = ModelRun::begin();
        let mut explainer = self.source.share(model.key(), self.device).ok_or_else(not_loaded)?;
        let (method, shape) = default_batch(model);
        if self.warms {
            if let Err(error) = explain_made_up(&mut explainer, &method, shape, &Never) {
                // A frame that fails for the same reason gets the error.
                tracing::debug!(model = model.metadata.name, %error, "a worker could not be warmed");
            }
            self.note_untuned(model.key(), &method, shape);
        } else {
            self.untuned.insert(model.key(), Untuned { method, shape, since: None });
        }
        self.explainers.insert(model.key(), explainer);
        Ok(())
    }

    fn unload(&mut self, model: ModelKey) {
        self.untuned.remove(&model);
        self.explainers.remove(&model);
        self.source.remove(model);
    }

    fn is_untuned(&self) -> bool {
        !self.untuned.is_empty()
    }

    fn tune(&mut self, time: Duration, interrupt: &dyn Interrupt) {
        let Some((&model, Untuned { method, shape, since })) = self.untuned.iter_mut().next() else { return };
        let Some(explainer) = self.explainers.get_mut(&model) else {
            self.untuned.remove(&model);
            return;
        };
        let _run = ModelRun::begin();
        take_untuned();
        let tuned = tuning(time, || explain_made_up(explainer, method, *shape, interrupt));
        let is_untuned = take_untuned();
        if is_untuned {
            since.get_or_insert_with(Instant::now);
        }
        if tuned.as_ref().map_or_else(ExplainError::is_interrupted, |()| is_untuned) {
            return;
        }
        let name = &explainer.metadata().name;
        match (tuned, since) {
            (Ok(()), Some(since)) => {
                tracing::info!(model = name, ms = since.elapsed().as_millis() as u64, "the fastest kernels are known");
            }
            (Ok(()), None) => {}
            (Err(error), _) => tracing::debug!(model = name, %error, "a made-up input could not be explained"),
        }
        self.untuned.remove(&model);
        if self.untuned.is_empty() {
            self.source.save_timings();
        }
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        take_untuned();
        let rows = self.run_batch(batch, interrupt, ended)?;
        self.note_untuned(batch.model, batch.method, batch.shape.map(i64::from));
        Ok(rows)
    }
}

impl ExplainDevice {
    fn run_batch(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let _run = ModelRun::begin();
        let explainer = self.explainers.get_mut(&batch.model).ok_or_else(not_loaded)?;
        explain(explainer, batch, self.device, interrupt, ended)
    }
}

/// Explains a batch; the host follows every stage.
pub(super) fn explain(
    explainer: &mut Explainer,
    batch: &Batch<'_>,
    device: tch::Device,
    interrupt: &dyn Interrupt,
    ended: &mut dyn FnMut(Stage),
) -> Result<Vec<RowResult>, ExplainError> {
    let input = input(batch, explainer.metadata().input.kind, device)?;
    ended(Stage::CopyIn);

    let forward = explainer.forward(batch.method, &input, interrupt)?;
    let targets: Vec<_> = batch.targets.iter().map(|targets| targets.to_vec()).collect();
    let chosen = forward.classes(&targets);
    let logits = (0..chosen.len()).map(|row| forward.row(row)).collect::<Result<Vec<_>, _>>()?;
    ended(Stage::Forward);

    // A row whose targets are refused takes no part in the reverse run.
    let classes: Vec<Vec<u32>> = chosen.iter().map(|classes| classes.as_ref().cloned().unwrap_or_default()).collect();
    let reversed = forward.reverse(&classes, interrupt)?;
    ended(Stage::Backward);
    let maps = reversed.fuse()?;
    ended(Stage::Fuse);

    let rows = maps
        .into_iter()
        .zip(logits)
        .zip(chosen)
        .map(|((maps, logits), chosen)| {
            chosen?;
            let targets = maps.into_iter().map(|maps| maps.try_map(host)).collect::<Result<_, _>>()?;
            Ok(RowMaps { logits, targets })
        })
        .collect();
    ended(Stage::CopyOut);
    Ok(rows)
}

impl Drop for ExplainDevice {
    fn drop(&mut self) {
        self.source.save_timings();
    }
}

pub(super) fn not_loaded() -> ExplainError {
    let what = "the model is not loaded on this device".to_owned();
    ExplainError::Model(ModelError::Refused { what, advice: "it has to be offered to the device first".to_owned() })
}

/// A request's defaults, and the shape `[C, H, W]` of an input.
pub(super) fn default_batch(model: &Served) -> (Method, [i64; 3]) {
    let [_, channels, height, width] = model.metadata.input.shape.map(Dimension::example);
    let has_layer = !model.metadata.default_target_layers.is_empty();
    let maps = MapSet::of(&[if has_layer { MapKind::GuidedGradCam } else { MapKind::GuidedBackprop }]);
    (Method { maps, mode: model.mode, ..Method::default() }, [channels, height, width])
}

/// Explains a made-up input.
fn explain_made_up(
    explainer: &mut Explainer,
    method: &Method,
    shape: [i64; 3],
    interrupt: &dyn Interrupt,
) -> Result<(), ExplainError> {
    let [channels, height, width] = shape;
    let count = channels * height * width;
    let input = Tensor::f_arange(count, (Kind::Float, tch::Device::Cpu))?.f_sin()?;
    let input = input.f_view([1, channels, height, width])?.f_to_kind(explainer.metadata().input.kind)?;
    let forward = explainer.forward(method, &input, interrupt)?;
    forward.reverse(&[vec![0]], interrupt)?.fuse()?;
    Ok(())
}

/// `[N, C, H, W]` on the device.
fn input(batch: &Batch<'_>, kind: Kind, device: tch::Device) -> Result<Tensor, ExplainError> {
    let rows = batch.values();
    let rows: Vec<&[f32]> = rows.iter().map(AsRef::as_ref).collect();
    Ok(torch::stack(&rows, &batch.shape.map(i64::from))?.f_to_device(device)?.f_to_kind(kind)?)
}

fn host(tensor: &Tensor) -> Result<HostMap, ExplainError> {
    let shape = tensor.size().into_iter().map(|side| u32::try_from(side).unwrap_or(0)).collect();
    Ok(HostMap { values: torch::to_vec(tensor)?, shape })
}
