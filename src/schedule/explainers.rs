//! Loaded models, from which each worker's device takes its own explainers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::model_key::ModelKey;
use crate::explain::Explainer;
use crate::model::Model;
use crate::plan::KernelChoice;

/// One explainer for each model; devices share its weights, and all models what was measured of kernels. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct Explainers {
    of: Arc<Mutex<HashMap<ModelKey, Explainer>>>,
    kernels: KernelChoice,
}

impl Explainers {
    /// Explainers whose devices choose kernels so.
    pub fn choosing(kernels: KernelChoice) -> Self {
        Explainers { kernels, ..Explainers::default() }
    }

    /// Offers a model to devices. `key` is that of the [`super::Served`] made from the model's metadata.
    pub fn insert(&self, key: ModelKey, model: Model) {
        self.of.lock().insert(key, Explainer::choosing(model, tch::Device::Cpu, self.kernels.clone()));
    }

    /// An explainer for a worker of `device`: weights in the host's memory are shared, plans are its own.
    pub(super) fn share(&self, key: ModelKey, device: tch::Device) -> Option<Explainer> {
        self.of.lock().get(&key).map(|explainer| explainer.share_on(device))
    }

    /// Takes a model back.
    pub fn remove(&self, key: ModelKey) {
        // Dropped without the lock.
        let removed = self.of.lock().remove(&key);
        drop(removed);
    }

    /// Keeps what was measured of kernels for the next start.
    pub fn save_timings(&self) {
        if let Err(error) = self.kernels.known.save() {
            tracing::warn!(%error, "device.cache cannot be written: the next start times kernels again");
        }
    }
}
