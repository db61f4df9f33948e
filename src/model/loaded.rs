//! A loaded model: its graph, description and metadata.

use std::sync::Arc;

use super::Metadata;
use super::description::Description;
use super::graph::Graph;

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
}
