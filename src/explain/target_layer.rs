//! A layer whose activations CAMs are made from.

use tch::Tensor;

use crate::model::Metadata;

use super::ExplainError;
use super::cam::layout::Layout;

/// A target layer, and how its value is read as a feature map.
#[derive(Debug, Clone)]
pub struct TargetLayer {
    /// The module path, as in `layer4`.
    pub name: String,
    layout: Layout,
}

impl TargetLayer {
    /// The layer `name`, whose value has shape `shape`, batch axis included.
    ///
    /// # Errors
    /// [`ExplainError::NotSpatial`] when the value is not a feature map; the error lists the layers whose values are.
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

    /// Reads the layer's value, or a gradient with respect to it, as `[N, K, h, w]` of f32: rows, channels, height,
    /// width.
    ///
    /// # Errors
    /// Those of the operators, such as out of memory.
    pub fn read(&self, value: &Tensor) -> Result<Tensor, ExplainError> {
        self.layout.read(value)
    }
}
