//! The model that a request selects.

use std::sync::Arc;

use tonic::Code;

use crate::model::Metadata;
use crate::proto::v1;
use crate::schedule::{Models, Served};
use crate::server::refusal::Refusal;
use crate::server::service::Service;

/// How often a model that leaves memory again before it is used is brought back for one request.
const MAX_RETURNS: usize = 3;

impl Service {
    /// The model of a selector, in memory.
    ///
    /// # Errors
    /// As [`select`]; UNAVAILABLE when the model has left memory and cannot be loaded again.
    pub(in crate::server) async fn model(&self, selector: Option<&v1::ModelSelector>) -> Result<Arc<Served>, Refusal> {
        for _ in 0..MAX_RETURNS {
            let about = {
                // Not held any longer: it keeps every model in memory.
                let models = self.engine.models();
                let about = select(&models, selector)?;
                if let Some(served) = models.find(&about.name, about.version) {
                    return Ok(Arc::clone(served));
                }
                Arc::clone(about)
            };
            self.bring_back(&about).await?;
        }
        let message = "the model leaves memory as often as it is loaded: models.memory_limit is too low for the models \
                       that are in use";
        Err(Refusal::new(Code::Unavailable, "model.name", message))
    }

    async fn bring_back(&self, about: &Metadata) -> Result<(), Refusal> {
        let Some(repository) = &self.repository else { return Ok(()) };
        let (name, version) = (about.name.clone(), about.version);
        repository.bring_back((name.clone(), version)).await.map_err(|why| {
            let message = format!("{name} version {version} has left memory, and cannot be loaded again: {why}");
            Refusal::new(Code::Unavailable, "model.name", message)
        })
    }
}

/// The model of a selector. Without a name it is the only one there is; without a version, the newest.
///
/// # Errors
/// NOT_FOUND, or INVALID_ARGUMENT when there are several models and the name is empty.
pub(in crate::server) fn select<'a>(
    models: &'a Models,
    selector: Option<&v1::ModelSelector>,
) -> Result<&'a Arc<Metadata>, Refusal> {
    let (name, version) = selector.map_or(("", None), |selector| (selector.name.as_str(), selector.version));
    let names = names(models);
    let name = match (name, names.as_slice()) {
        ("", [only]) => *only,
        ("", []) => {
            let message = match models.problems.iter().next() {
                Some(((name, _), why)) => format!("no model can be served: {name}: {why}"),
                None => "no model is served".to_owned(),
            };
            return Err(Refusal::new(Code::NotFound, "model.name", message));
        }
        ("", _) => {
            let message = format!("model.name is empty, and there are several models: {}", names.join(", "));
            return Err(Refusal::invalid("model.name", message));
        }
        (name, _) => name,
    };
    let versions: Vec<_> = models.available().filter(|model| model.name == name).collect();
    if versions.is_empty() {
        let message = match models.problems.iter().find(|((known, _), _)| known == name) {
            Some((_, why)) => format!("model.name: {name} cannot be served: {why}"),
            None if names.is_empty() => format!("model.name: there is no model {name:?}, and no other"),
            None => format!("model.name: there is no model {name:?}; there is {}", names.join(", ")),
        };
        return Err(Refusal::new(Code::NotFound, "model.name", message));
    }
    let found = match version {
        Some(version) => versions.iter().find(|model| model.version == version),
        None => versions.iter().max_by_key(|model| model.version),
    };
    found.copied().ok_or_else(|| {
        let asked = version.unwrap_or_default();
        let message = match models.problems.get(&(name.to_owned(), Some(asked))) {
            Some(why) => format!("model.version: {name} version {asked} cannot be served: {why}"),
            None => {
                let there: Vec<String> = versions.iter().map(|model| model.version.to_string()).collect();
                format!("model.version: {name} has no version {asked}; it has {}", there.join(", "))
            }
        };
        Refusal::new(Code::NotFound, "model.version", message)
    })
}

/// Each name once, sorted.
fn names(models: &Models) -> Vec<&str> {
    let mut names: Vec<&str> = models.available().map(|model| model.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}
