//! Checks of a request that need the model's metadata alone, so that it can be refused before it waits for the device.

use crate::model::{LayerError, Metadata};

use super::cam::layout::Layout;
use super::{ExplainError, Method};

/// Checks that a method can be run on a model.
///
/// # Errors
/// [`ExplainError::Layer`] for a name that means no value or no default, [`ExplainError::NotSpatial`] for a layer without a
/// map. Both list the layers that will do.
pub fn check_method(metadata: &Metadata, method: &Method) -> Result<(), ExplainError> {
    if !method.maps.needs_grad_cam() {
        return Ok(());
    }
    let names = if method.target_layers.is_empty() { &metadata.default_target_layers } else { &method.target_layers };
    if let (true, Some(problem)) = (names.is_empty(), &metadata.default_target_problem) {
        return Err(LayerError::NoDefault {
            problem: problem.clone(),
            candidates: metadata.spatial_layers().join(", "),
        }
        .into());
    }
    names.iter().try_for_each(|name| layout_of(metadata, name, metadata.layer_shape(name)?).map(|_| ()))
}

/// How a value of this shape is read as a map.
pub(super) fn layout_of(metadata: &Metadata, name: &str, shape: &[i64]) -> Result<Layout, ExplainError> {
    Layout::of(shape, metadata.token_grid, metadata.class_tokens, metadata.channels_last).map_err(|problem| {
        ExplainError::NotSpatial {
            layer: name.to_owned(),
            shape: shape.to_vec(),
            problem,
            candidates: metadata.spatial_layers().join(", "),
        }
    })
}
