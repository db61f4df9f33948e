//! Loaded models, from which each worker's device takes its own explainers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::model_key::ModelKey;
use crate::explain::Explainer;
use crate::model::Model;

/// One explainer for each model; devices share its weights. Cheap to clone.
#[derive(Clone, Default)]
pub struct Explainers(Arc<Mutex<HashMap<ModelKey, Explainer>>>);

impl Explainers {
    /// Offers a model to devices of one kind. `key` is that of the [`super::Served`] made from the model's metadata.
    pub fn insert(&self, key: ModelKey, model: Model, device: tch::Device) {
        self.0.lock().insert(key, Explainer::new(model, device));
    }

    /// An explainer for another thread: weights are shared, plans are its own.
    pub(super) fn share(&self, key: ModelKey) -> Option<Explainer> {
        self.0.lock().get(&key).map(Explainer::share)
    }

    pub(super) fn remove(&self, key: ModelKey) {
        // Dropped without the lock.
        let removed = self.0.lock().remove(&key);
        drop(removed);
    }
}
