//! Explainers on a libtorch device.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::device::{Batch, Device, RowResult};
use super::explainers::Explainers;
use super::model_key::ModelKey;
use super::served::Served;
use crate::explain::{ExplainError, Explainer, HostMap, MapKind, MapSet, Method, RowMaps};
use crate::model::ModelError;
use crate::model::dimension::Dimension;
use crate::plan::{Interrupt, Never};
use crate::telemetry::Stage;
use crate::torch::{self, threads::ModelRun};

/// Models on one libtorch device.
pub struct ExplainDevice {
    source: Explainers,
    explainers: HashMap<ModelKey, Explainer>,
    warms: bool,
    device: tch::Device,
}

impl ExplainDevice {
    /// Loads its models from `source`. With `warms` it explains a made-up input with each model that it loads, so that
    /// no frame waits for this worker to compile a plan.
    pub fn new(source: Explainers, warms: bool, device: tch::Device) -> Self {
        ExplainDevice { source, explainers: HashMap::new(), warms, device }
    }
}

impl Device for ExplainDevice {
    fn load(&mut self, model: &Arc<Served>) -> Result<(), ExplainError> {
        let _run = ModelRun::begin();
        let mut explainer = self.source.share(model.key()).ok_or_else(not_loaded)?;
        if self.warms
            && let Err(error) = warm(&mut explainer, model)
        {
            // A frame that fails for the same reason gets the error.
            tracing::debug!(model = model.metadata.name, %error, "a worker could not be warmed");
        }
        self.explainers.insert(model.key(), explainer);
        Ok(())
    }

    fn unload(&mut self, model: ModelKey) {
        self.explainers.remove(&model);
        self.source.remove(model);
    }

    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        let _run = ModelRun::begin();
        let explainer = self.explainers.get_mut(&batch.model).ok_or_else(not_loaded)?;
        let input = input(batch, explainer.metadata().input.kind, self.device)?;
        ended(Stage::CopyIn);

        let forward = explainer.forward(batch.method, &input, interrupt)?;
        let targets: Vec<_> = batch.targets.iter().map(|targets| targets.to_vec()).collect();
        let chosen = forward.classes(&targets);
        let logits = (0..chosen.len()).map(|row| forward.row(row)).collect::<Result<Vec<_>, _>>()?;
        ended(Stage::Forward);

        // A row whose targets are refused takes no part in the reverse run.
        let classes: Vec<Vec<u32>> =
            chosen.iter().map(|classes| classes.as_ref().cloned().unwrap_or_default()).collect();
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
}

fn not_loaded() -> ExplainError {
    let what = "the model is not loaded on this device".to_owned();
    ExplainError::Model(ModelError::Refused { what, advice: "it has to be offered to the device first".to_owned() })
}

/// Explains a made-up input with a request's defaults.
fn warm(explainer: &mut Explainer, model: &Served) -> Result<(), ExplainError> {
    let [_, channels, height, width] = model.metadata.input.shape.map(Dimension::example);
    let shape = [1, channels, height, width];
    let count: i64 = shape.iter().product();
    let input = Tensor::f_arange(count, (Kind::Float, tch::Device::Cpu))?.f_sin()?.f_view(shape)?;
    let input = input.f_to_kind(model.metadata.input.kind)?;
    let has_layer = !model.metadata.default_target_layers.is_empty();
    let maps = MapSet::of(&[if has_layer { MapKind::GuidedGradCam } else { MapKind::GuidedBackprop }]);
    let forward = explainer.forward(&Method { maps, mode: model.mode, ..Method::default() }, &input, &Never)?;
    forward.reverse(&[vec![0]], &Never)?.fuse()?;
    Ok(())
}

/// `[N, C, H, W]` on the device.
fn input(batch: &Batch<'_>, kind: Kind, device: tch::Device) -> Result<Tensor, ExplainError> {
    Ok(torch::stack(&batch.inputs, &batch.shape.map(i64::from))?.f_to_device(device)?.f_to_kind(kind)?)
}

fn host(tensor: &Tensor) -> Result<HostMap, ExplainError> {
    let shape = tensor.size().into_iter().map(|side| u32::try_from(side).unwrap_or(0)).collect();
    Ok(HostMap { values: torch::to_vec(tensor)?, shape })
}
