//! The model that a request selects.

use std::sync::Arc;

use tonic::Code;

use crate::proto::v1;
use crate::schedule::Served;
use crate::server::refusal::Refusal;

/// The model of a selector. Without a name it is the only one there is; without a version, the newest.
///
/// # Errors
/// NOT_FOUND, or INVALID_ARGUMENT when there are several models and the name is empty.
pub(in crate::server) fn select<'a>(
    served: &'a [Arc<Served>],
    selector: Option<&v1::ModelSelector>,
) -> Result<&'a Arc<Served>, Refusal> {
    let (name, version) = selector.map_or(("", None), |selector| (selector.name.as_str(), selector.version));
    let names = names(served);
    let name = match (name, names.as_slice()) {
        ("", [only]) => *only,
        ("", _) => {
            let message = format!("model.name is empty, and there are several models: {}", names.join(", "));
            return Err(Refusal::invalid("model.name", message));
        }
        (name, _) => name,
    };
    let versions: Vec<_> = served.iter().filter(|model| model.metadata.name == name).collect();
    if versions.is_empty() {
        let message = format!("model.name: there is no model {name:?}; there is {}", names.join(", "));
        return Err(Refusal::new(Code::NotFound, "model.name", message));
    }
    let found = match version {
        Some(version) => versions.iter().find(|model| model.metadata.version == version),
        None => versions.iter().max_by_key(|model| model.metadata.version),
    };
    found.copied().ok_or_else(|| {
        let there: Vec<String> = versions.iter().map(|model| model.metadata.version.to_string()).collect();
        let asked = version.unwrap_or_default();
        let message = format!("model.version: {name} has no version {asked}; it has {}", there.join(", "));
        Refusal::new(Code::NotFound, "model.version", message)
    })
}

/// Each name once, sorted.
fn names(served: &[Arc<Served>]) -> Vec<&str> {
    let mut names: Vec<&str> = served.iter().map(|model| model.metadata.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}
