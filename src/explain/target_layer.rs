//! A layer at which CAMs are taken.

use tch::Tensor;

use crate::model::Metadata;

use super::ExplainError;
use super::cam::layout::Layout;

/// A target layer of one method, and how its value is read as a map.
#[derive(Debug, Clone)]
pub struct TargetLayer {
    pub name: String,
    layout: Layout,
}

impl TargetLayer {
    /// The layer `name`, whose value has shape `shape`.
    ///
    /// # Errors
    /// [`ExplainError::NotSpatial`] when the value is not a map; it lists the layers that are.
    pub fn new(metadata: &Metadata, name: &str, shape: &[i64]) -> Result<Self, ExplainError> {
        let layout = Layout::of(shape, metadata.token_grid, metadata.class_tokens, metadata.channels_last);
        let layout = layout.map_err(|problem| ExplainError::NotSpatial {
            layer: name.to_owned(),
            shape: shape.to_vec(),
            problem,
            candidates: metadata.spatial_layers().join(", "),
        })?;
        Ok(TargetLayer { name: name.to_owned(), layout })
    }

    /// The layer's value, or a gradient with respect to it, as `[N, K, h, w]` of f32.
    pub fn read(&self, value: &Tensor) -> Result<Tensor, ExplainError> {
        self.layout.read(value)
    }
}
