//! The models that are served.

use std::sync::Arc;

use crate::explain::{ExplainError, check_method};
use crate::frame::{InputSize, Limits, Preparation, PreparationError};
use crate::model::Metadata;
use crate::model::graph::Dimension;

use super::Ask;

/// No such model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownModel {
    #[error("there is no model {name}; served are {served}")]
    Name { name: String, served: String },
    #[error("model {name} has no version {version}; it has {served}")]
    Version { name: String, version: i64, served: String },
    #[error("several models are served, so one must be named: {served}")]
    Unnamed { served: String },
}

/// A model that is served. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelHandle(Arc<Served>);

#[derive(Debug)]
struct Served {
    index: usize,
    metadata: Arc<Metadata>,
    preparation: Preparation,
    limits: Limits,
}

impl ModelHandle {
    pub(super) fn new(index: usize, metadata: Arc<Metadata>, limits: Limits) -> Result<Self, PreparationError> {
        let [_, channels, height, width] = metadata.input.shape;
        let fixed = |dimension| match dimension {
            Dimension::Fixed(size) => Some(size as u32),
            Dimension::Dynamic { .. } => None,
        };
        let input = InputSize { channels: channels.example() as u32, height: fixed(height), width: fixed(width) };
        let preparation = Preparation::new(&metadata.preprocessing, input, &limits)?;
        Ok(ModelHandle(Arc::new(Served { index, metadata, preparation, limits })))
    }

    /// Its place among the worker's explainers.
    pub(super) fn index(&self) -> usize {
        self.0.index
    }

    pub fn metadata(&self) -> &Arc<Metadata> {
        &self.0.metadata
    }

    pub(super) fn preparation(&self) -> &Preparation {
        &self.0.preparation
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The example input's height and width.
    pub(super) fn example_size(&self) -> [i64; 2] {
        let shape = self.0.metadata.input.shape;
        [shape[2].example(), shape[3].example()]
    }

    /// Whether inputs may differ in size, so that frames of one method cannot always run together.
    pub(super) fn has_free_size(&self) -> bool {
        let input = self.0.preparation.input();
        input.height.is_none() || input.width.is_none()
    }

    /// Checks what is asked without running it.
    pub fn check(&self, ask: &Ask) -> Result<(), ExplainError> {
        check_method(self.metadata(), &ask.method)
    }
}

/// Finds a model: without a name the only one, without a version the newest.
pub(super) fn find(models: &[ModelHandle], name: Option<&str>, version: Option<i64>) -> Result<ModelHandle, UnknownModel> {
    let mut names: Vec<&str> = models.iter().map(|m| m.metadata().name.as_str()).collect();
    names.dedup();
    let served = || names.join(", ");
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => *only,
        (None, _) => return Err(UnknownModel::Unnamed { served: served() }),
    };
    let versions: Vec<&ModelHandle> = models.iter().filter(|m| m.metadata().name == name).collect();
    let Some(newest) = versions.iter().max_by_key(|m| m.metadata().version) else {
        return Err(UnknownModel::Name { name: name.to_owned(), served: served() });
    };
    let Some(version) = version else { return Ok((*newest).clone()) };
    let found = versions.iter().find(|m| m.metadata().version == version);
    found.map(|m| (*m).clone()).ok_or_else(|| UnknownModel::Version {
        name: name.to_owned(),
        version,
        served: versions.iter().map(|m| m.metadata().version.to_string()).collect::<Vec<_>>().join(", "),
    })
}
