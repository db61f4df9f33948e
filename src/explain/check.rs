//! Checks of a method that need only the model's metadata, so that a request can be refused before it waits for the
//! device.

use crate::model::{LayerError, Metadata};

use super::target_layer::TargetLayer;
use super::{ExplainError, Method};

/// Checks that a method can run on a model.
///
/// # Errors
/// [`ExplainError::Layer`] when a name means no value, or when no layer is named and the model has no default;
/// [`ExplainError::NotSpatial`] for a layer whose value is not a map. Both list the layers that are allowed.
pub fn check_method(metadata: &Metadata, method: &Method) -> Result<(), ExplainError> {
    if !method.maps.needs_cam() {
        return Ok(());
    }
    let names = if method.target_layers.is_empty() { &metadata.default_target_layers } else { &method.target_layers };
    if let (true, Some(problem)) = (names.is_empty(), &metadata.default_target_problem) {
        return Err(LayerError::NoDefault { problem: problem.clone(), candidates: metadata.candidates() }.into());
    }
    let size = metadata.example_size();
    let check = |name: &String| TargetLayer::new(metadata, name, &metadata.layer_value(name)?.shape, size).map(drop);
    names.iter().try_for_each(check)
}
