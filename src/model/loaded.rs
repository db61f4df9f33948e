//! A loaded model: its graph, description and metadata.

use crate::model::LoadLimits;
use crate::model::Metadata;
use crate::model::ModelError;
use crate::model::assembly::Assembly;
use crate::model::description::Description;
use crate::model::graph::Graph;
use crate::model::import::identity;
use crate::model::import::pt2::archive::Archive;
use crate::model::load::{Imported, digest};
use std::path::Path;
use std::sync::Arc;
/// A loaded model. It is not bound to a device.
pub struct Model {
    pub graph: Graph,
    pub description: Description,
    pub metadata: Arc<Metadata>,
}

impl Model {
    /// The same model for another thread. Tensors are shared.
    pub fn share(&self) -> Self {
        Model { graph: self.graph.share(), description: self.description.clone(), metadata: Arc::clone(&self.metadata) }
    }

    /// Loads `model.pt2` and `model.toml` of a version's directory, a bare `.pt2` with the defaults, or the built-in model
    /// at [`identity::PLACE`].
    ///
    /// # Errors
    /// Everything that is wrong with the file or its description, in words for the person who has it.
    pub fn load(name: &str, version: i64, path: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        let (imported, digest, loaded) = if identity::is_builtin(path) {
            identity::place(path)?;
            (Imported::run(&identity::program(limits)?, None)?, identity::digest(), identity::description())
        } else {
            let (file, loaded) = if path.is_dir() {
                (path.join("model.pt2"), Description::load(path)?)
            } else {
                (path.to_owned(), super::description::Loaded::default())
            };
            (Imported::load(Archive::open(&file, limits)?)?, digest(&file)?, loaded)
        };
        let max_rows = imported.max_rows()?;
        Assembly { name, version, digest, max_rows, graph: imported.graph, loaded }.finish()
    }
}
