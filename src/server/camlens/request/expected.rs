//! What another program predicted of a frame.

use crate::explain::Expected;
use crate::model::Metadata;
use crate::proto::v1;
use crate::proto::v1::expected_prediction::Kind;
use crate::server::refusal::Refusal;

/// Checks `frame.expected` against the model, and fills in the tolerance.
///
/// # Errors
/// A class that is missing or that the model does not have; a probability or a tolerance that is not 0 to 1.
pub(in crate::server) fn resolve(
    given: Option<&v1::ExpectedPrediction>,
    model: &Metadata,
) -> Result<Option<Expected>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    let &v1::ExpectedPrediction { ref kind, probability, tolerance } = given;
    let class_index = match kind {
        Some(Kind::ClassIndex(class)) => {
            if let Some(classes) = model.class_count().filter(|classes| class >= classes) {
                const FIELD: &str = "frame.expected.class_index";
                let message = format!("{FIELD} is {class}: the model has {classes} classes, 0 to {}", classes - 1);
                return Err(Refusal::invalid(FIELD, message));
            }
            *class
        }
        Some(Kind::Label(label)) => {
            const FIELD: &str = "frame.expected.label";
            model.class_of_label(label).map_err(|error| Refusal::invalid(FIELD, format!("{FIELD}: {error}")))?
        }
        None => {
            const FIELD: &str = "frame.expected";
            return Err(Refusal::invalid(FIELD, format!("{FIELD} names no class: give class_index or label")));
        }
    };
    for (field, value) in [("frame.expected.probability", probability), ("frame.expected.tolerance", tolerance)] {
        if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
            return Err(Refusal::invalid(field, format!("{field} is {value}: 0 to 1 is allowed")));
        }
    }
    Ok(Some(Expected { class_index, probability, tolerance: tolerance.unwrap_or(Expected::DEFAULT_TOLERANCE) }))
}
