//! A layer whose activations CAMs are made from.

use tch::Tensor;

use crate::model::{MapLayout, Metadata};

use super::ExplainError;
use super::cam::layout;

/// A target layer, and how its value is read as a feature map.
#[derive(Debug, Clone)]
pub struct TargetLayer {
    /// The module path, as in `layer4`.
    pub name: String,
    layout: MapLayout,
}

impl TargetLayer {
    /// The layer `name`, whose value has shape `shape`, batch axis included, for an input of `size` pixels, height and
    /// width.
    ///
    /// # Errors
    /// [`ExplainError::Layer`] when the name means no value, [`ExplainError::NotSpatial`] when the value is not a
    /// feature map; both list the layers whose values are.
    pub fn new(metadata: &Metadata, name: &str, shape: &[i64], size: [i64; 2]) -> Result<Self, ExplainError> {
        let value = metadata.layer_value(name)?;
        let layout = value.layout.and_then(|layout| layout.scaled(shape, size, metadata.example_size()));
        let layout = layout.map_err(|problem| ExplainError::NotSpatial {
            layer: name.to_owned(),
            shape: shape.to_vec(),
            problem,
            candidates: metadata.candidates(),
        })?;
        Ok(TargetLayer { name: name.to_owned(), layout })
    }

    /// Reads the layer's value, or a gradient with respect to it, as `[N, K, h, w]` of f32: rows, channels, height,
    /// width.
    ///
    /// # Errors
    /// Those of the operators, such as out of memory.
    pub fn read(&self, value: &Tensor) -> Result<Tensor, ExplainError> {
        layout::read(self.layout, value)
    }
}
