//! Loads one version of a model, for the devices of this server.

use std::path::Path;
use std::sync::Arc;

use super::super::devices::Devices;
use super::super::own_thread::in_background;
use super::super::start_error::StartError;
use crate::config::{Config, DeviceConfig, LimitsConfig};
use crate::frame;
use crate::model::description::Precision;
use crate::model::{LoadLimits, Metadata, Model, dtype};
use crate::plan::Mode;
use crate::process;
use crate::schedule::{Explainers, ModelKey, Served, ServedLimits};

/// What loading needs, at the start and later.
pub(in crate::server) struct Loader {
    pub(in crate::server) explainers: Explainers,
    pub(in crate::server) devices: Devices,
    device: DeviceConfig,
    limits: ServedLimits,
    load_limits: LoadLimits,
}

impl Loader {
    pub(in crate::server) fn new(config: &Config, explainers: Explainers, devices: Devices) -> Self {
        Loader {
            explainers,
            devices,
            device: config.device.clone(),
            limits: served_limits(&config.limits),
            load_limits: LoadLimits { max_weight_bytes: config.models.max_weight_bytes, ..LoadLimits::default() },
        }
    }

    /// Loads a version. It is to be [offered](Loader::offer) to the devices.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn load(&self, name: &str, version: i64, path: &Path) -> Result<(Arc<Served>, Model), StartError> {
        let load = || self.read(name, version, path);
        let (served, model) = if self.device.background { in_background(load) } else { load() }?;
        let served = served.allowing_tf32(self.device.allow_tf32);
        let served = match self.devices.bound_to(&self.device, name)? {
            Some(workers) => served.on_workers(workers),
            None => served,
        };
        Ok((Arc::new(served), model))
    }

    /// Lets the devices load a model.
    pub(super) fn offer(&self, served: &Served, model: Model) {
        self.explainers.insert(served.key(), model);
    }

    /// Takes back a model that was offered and is not served. Devices take back those that they have loaded.
    pub(super) fn withdraw(&self, key: ModelKey) {
        self.explainers.remove(key);
    }

    fn read(&self, name: &str, version: i64, path: &Path) -> Result<(Served, Model), StartError> {
        tracing::info!(name, version, "loading");
        let model = Model::load(name, version, path, &self.load_limits).map_err(|source| StartError::Model {
            name: name.to_owned(),
            version,
            source: Box::new(source),
        })?;
        // Gives back what the model's run at load took: plans would only take it in part.
        process::release_memory();
        let served = Served::new(Arc::clone(&model.metadata), self.limits, self.devices.workers[0])
            .map_err(|source| StartError::Preparation { name: name.to_owned(), version, source })?;
        if served.metadata.precision == Precision::Bfloat16 && served.mode != Mode::Bfloat16 {
            let Metadata { name, version, .. } = &*served.metadata;
            tracing::warn!(
                name,
                version,
                "this processor has no bfloat16 (AVX-512 BF16 or Arm BF16): the model runs in float32"
            );
        }
        if let Some(kind) = served.widened_from().filter(|_| served.mode != Mode::Exact) {
            let Metadata { name, version, .. } = &*served.metadata;
            let saved_in = dtype::name(kind);
            tracing::warn!(
                name,
                version,
                saved_in,
                "this processor has no instructions for the model's dtype: the model runs in float32"
            );
        }
        for notice in &served.metadata.notices {
            tracing::warn!(name, version, "{notice}");
        }
        Ok((served, model))
    }
}

fn served_limits(limits: &LimitsConfig) -> ServedLimits {
    ServedLimits {
        max_batch: limits.max_batch,
        max_targets: limits.max_targets,
        frame: frame::Limits { max_pixels: limits.max_frame_pixels, max_encoded_bytes: limits.max_frame_bytes },
    }
}
