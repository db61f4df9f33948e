//! The models that an engine serves, by name and version.
//!
//! A model can be added, replaced, retired and evicted while frames run:
//!
//! - A frame keeps the model that it was submitted with, and so does a stream: its options were checked against that
//!   model, and the client has been told that model's identity. Streams that open later get the new model.
//! - A model that was replaced, retired or evicted goes on for the streams that have it ([`Served::retired`] tells
//!   them). A device unloads it when the last stream and the last frame that hold it have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Budget;
use super::model_key::ModelKey;
use super::served::Served;
use crate::model::Metadata;

/// The registered models at one moment.
#[derive(Debug, Clone, Default)]
pub struct Models {
    /// Those that can run, in the order of their registration.
    pub served: Arc<[Arc<Served>]>,
    /// Those that have left memory until they are asked for.
    pub evicted: Vec<Arc<Metadata>>,
    /// What cannot run, by name and version, and why. Without a version: all of a model. An older model of the same
    /// name and version may be served.
    pub problems: BTreeMap<(String, Option<i64>), String>,
}

impl Models {
    /// Whether a version of the model can run; `None` for a name that is not registered.
    pub fn can_run(&self, name: &str) -> Option<bool> {
        if self.available().any(|model| model.name == name) {
            return Some(true);
        }
        self.problems.keys().any(|(failed, _)| failed == name).then_some(false)
    }

    /// Each registered name once, in alphabetical order.
    pub fn names(&self) -> BTreeSet<&str> {
        let available = self.available().map(|model| model.name.as_str());
        available.chain(self.problems.keys().map(|(name, _)| name.as_str())).collect()
    }

    /// Those that a request can have: served ones, and evicted ones.
    pub fn available(&self) -> impl Iterator<Item = &Arc<Metadata>> {
        self.served.iter().map(|model| &model.metadata).chain(&self.evicted)
    }

    /// A model that can run now.
    pub fn find(&self, name: &str, version: i64) -> Option<&Arc<Served>> {
        self.served.iter().find(|model| is_called(&model.metadata, name, version))
    }
}

impl Models {
    /// Takes a model out: new streams no longer get it.
    fn take(&mut self, name: &str, version: i64) -> Option<Arc<Served>> {
        let model = Arc::clone(self.find(name, version)?);
        let others = self.served.iter().filter(|other| other.key() != model.key());
        self.served = others.cloned().collect();
        model.retire();
        Some(model)
    }
}

fn is_called(model: &Metadata, name: &str, version: i64) -> bool {
    model.version == version && model.name == name
}

/// Names and versions, each with the model that new streams get.
#[derive(Debug)]
pub(super) struct Registry {
    models: watch::Sender<Arc<Models>>,
}

impl Registry {
    pub(super) fn new() -> Self {
        Registry { models: watch::Sender::new(Arc::default()) }
    }

    pub(super) fn models(&self) -> Arc<Models> {
        Arc::clone(&self.models.borrow())
    }

    /// The registered models, and each change of them.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<Models>> {
        self.models.subscribe()
    }

    /// Whether new streams can get the model.
    pub(super) fn holds(&self, key: ModelKey) -> bool {
        self.models.borrow().served.iter().any(|model| model.key() == key)
    }

    /// Settles which frames the model's frames are counted with: those of the model that it will replace, else its own.
    pub(super) fn assign_budget(&self, model: &Served, own: impl FnOnce() -> Budget) {
        let known =
            self.models().find(&model.metadata.name, model.metadata.version).and_then(|old| old.budget.get().cloned());
        model.budget.get_or_init(|| known.unwrap_or_else(own));
    }

    /// New streams get this model from now on. It replaces one of the same name and version.
    pub(super) fn publish(&self, model: &Arc<Served>) {
        self.change(|models| {
            let (name, version) = (&model.metadata.name, model.metadata.version);
            models.problems.remove(&(name.clone(), Some(version)));
            models.evicted.retain(|other| !is_called(other, name, version));
            let mut served = models.served.to_vec();
            match served.iter_mut().find(|other| is_called(&other.metadata, name, version)) {
                Some(other) => std::mem::replace(other, Arc::clone(model)).retire(),
                None => served.push(Arc::clone(model)),
            }
            models.served = served.into();
        });
    }

    /// The model cannot run. One of the same name and version that can goes on.
    pub(super) fn fail(&self, model: &Served, why: String) {
        let key = (model.metadata.name.clone(), Some(model.metadata.version));
        self.change(|models| drop(models.problems.insert(key, why)));
    }

    /// What cannot run, all of it.
    pub(super) fn set_problems(&self, problems: BTreeMap<(String, Option<i64>), String>) {
        self.models.send_if_modified(|models| {
            let is_new = models.problems != problems;
            if is_new {
                Arc::make_mut(models).problems = problems;
            }
            is_new
        });
    }

    /// `false`: no model of this name and version is registered.
    pub(super) fn retire(&self, name: &str, version: i64) -> bool {
        let mut is_found = false;
        self.change(|models| {
            is_found = models.evicted.iter().any(|model| is_called(model, name, version));
            models.evicted.retain(|model| !is_called(model, name, version));
            is_found |= models.take(name, version).is_some();
        });
        is_found
    }

    /// The model leaves memory, and is known until it is loaded again. `false`: it is not served.
    pub(super) fn evict(&self, name: &str, version: i64) -> bool {
        let mut is_found = false;
        self.change(|models| {
            if let Some(model) = models.take(name, version) {
                is_found = true;
                models.evicted.push(Arc::clone(&model.metadata));
            }
        });
        is_found
    }

    fn change(&self, change: impl FnOnce(&mut Models)) {
        self.models.send_modify(|models| change(Arc::make_mut(models)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::Limit;
    use super::super::fake::served;
    use super::*;

    fn budget() -> Budget {
        Budget::new(Limit { frames: ("frames", 4), bytes: ("bytes", 1 << 20) })
    }

    fn registered(registry: &Registry, name: &str) -> Arc<Served> {
        let model = served(name, 1);
        registry.assign_budget(&model, budget);
        registry.publish(&model);
        model
    }

    fn is_retired(model: &Served) -> bool {
        let mut retired = std::pin::pin!(model.retired());
        retired.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn a_model_replaces_the_one_of_its_name_and_version_and_is_counted_with_it() {
        let registry = Registry::new();
        let (first, other) = (registered(&registry, "m"), registered(&registry, "other"));
        let second = registered(&registry, "m");
        assert_ne!(first.key(), second.key());
        let keys: Vec<ModelKey> = registry.models().served.iter().map(|model| model.key()).collect();
        assert_eq!(keys, [second.key(), other.key()], "the order stays");
        let frames = |model: &Served| model.budget.get().expect("it is registered").in_work().frames;
        let lane = first.budget.get().expect("it is registered").clone();
        let frame = lane.try_take(1).expect("there is room");
        assert_eq!((frames(&first), frames(&second), frames(&other)), (1, 1, 0));
        drop(frame);
        assert!(registry.holds(second.key()) && !registry.holds(first.key()));
        assert_eq!([&first, &second, &other].map(|model| is_retired(model)), [true, false, false]);
    }

    #[test]
    fn a_model_that_fails_is_known_by_name_with_the_reason_and_does_not_replace_one_that_runs() {
        let registry = Registry::new();
        let good = registered(&registry, "good");
        registry.fail(&served("bad", 1), "it is broken".to_owned());
        registry.fail(&served("good", 1), "its newer files are broken".to_owned());
        let models = registry.models();
        assert_eq!(
            (models.can_run("good"), models.can_run("bad"), models.can_run("none")),
            (Some(true), Some(false), None)
        );
        assert_eq!(models.problems[&("bad".to_owned(), Some(1))], "it is broken");
        assert!(registry.holds(good.key()));
        assert_eq!(models.names().into_iter().collect::<Vec<_>>(), ["bad", "good"]);
        registered(&registry, "bad");
        let models = registry.models();
        assert_eq!(models.can_run("bad"), Some(true), "its next version of the file is sound");
        assert_eq!(models.problems.len(), 1);
        let mut watch = registry.watch();
        registry.set_problems(models.problems.clone());
        assert!(!watch.has_changed().expect("the registry lives"), "nothing is new");
        registry.set_problems(BTreeMap::new());
        assert!(watch.has_changed().expect("the registry lives") && watch.borrow_and_update().problems.is_empty());
    }

    #[test]
    fn a_model_that_is_retired_is_gone_and_one_that_is_evicted_is_still_known() {
        let registry = Registry::new();
        let (first, second) = (registered(&registry, "a"), registered(&registry, "b"));
        let mut watch = registry.watch();
        watch.mark_unchanged();
        assert!(registry.retire("a", 1) && !registry.retire("a", 1));
        assert!(watch.has_changed().expect("the registry lives"));
        assert_eq!((is_retired(&first), registry.models().can_run("a")), (true, None));
        assert!(registry.evict("b", 1) && !registry.evict("b", 1));
        let models = registry.models();
        assert_eq!((is_retired(&second), models.can_run("b"), models.served.len()), (true, Some(true), 0));
        assert_eq!(models.available().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["b"]);
        registered(&registry, "b");
        assert!(registry.models().evicted.is_empty() && registry.models().served.len() == 1);
        registry.evict("b", 1);
        assert!(registry.retire("b", 1));
        assert_eq!(registry.models().can_run("b"), None);
    }
}
