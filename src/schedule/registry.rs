//! The models that an engine serves, by name and version.
//!
//! A model can be added, replaced and removed while frames run:
//!
//! - A frame keeps the model that it was submitted with, and so does a stream: its options were checked against that
//!   model, and the client has been told that model's identity. Streams that open later get the new model.
//! - When a model is removed, frames submitted before are explained; those that its streams submit later end with
//!   [`super::JobError::ModelRemoved`].
//! - A device unloads a model when the last stream and the last frame that hold it have ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Budget;
use super::model_key::{ModelKey, Slot};
use super::served::Served;

/// The registered models at one moment.
#[derive(Debug, Clone, Default)]
pub struct Models {
    /// Those that can run, in the order of their registration.
    pub served: Arc<[Arc<Served>]>,
    /// Names and versions of those that cannot run.
    pub failed: BTreeSet<(String, i64)>,
}

impl Models {
    /// Whether a version of the model can run; `None` for a name that is not registered.
    pub fn can_run(&self, name: &str) -> Option<bool> {
        if self.served.iter().any(|model| model.metadata.name == name) {
            return Some(true);
        }
        self.failed.iter().any(|(failed, _)| failed == name).then_some(false)
    }

    /// Each registered name once, in alphabetical order.
    pub fn names(&self) -> BTreeSet<&str> {
        let served = self.served.iter().map(|model| model.metadata.name.as_str());
        served.chain(self.failed.iter().map(|(name, _)| name.as_str())).collect()
    }

    fn find(&self, name: &str, version: i64) -> Option<&Arc<Served>> {
        self.served.iter().find(|model| is_called(model, name, version))
    }
}

fn is_called(model: &Served, name: &str, version: i64) -> bool {
    model.metadata.version == version && model.metadata.name == name
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
    pub(super) fn assign_slot(&self, model: &Served, own: impl FnOnce() -> Budget) {
        let known =
            self.models().find(&model.metadata.name, model.metadata.version).and_then(|old| old.slot.get().cloned());
        model.slot.get_or_init(|| known.unwrap_or_else(|| Slot::new(own())));
    }

    /// New streams get this model from now on. It replaces one of the same name and version.
    pub(super) fn publish(&self, model: &Arc<Served>) {
        self.change(|models| {
            let (name, version) = (&model.metadata.name, model.metadata.version);
            models.failed.remove(&(name.clone(), version));
            let mut served = models.served.to_vec();
            match served.iter_mut().find(|other| is_called(other, name, version)) {
                Some(other) => *other = Arc::clone(model),
                None => served.push(Arc::clone(model)),
            }
            models.served = served.into();
        });
    }

    /// The model cannot run. One of the same name and version that can goes on.
    pub(super) fn fail(&self, model: &Served) {
        let (name, version) = (&model.metadata.name, model.metadata.version);
        self.change(|models| {
            if models.find(name, version).is_none() {
                models.failed.insert((name.clone(), version));
            }
        });
    }

    /// `false`: no model of this name and version is registered.
    pub(super) fn remove(&self, name: &str, version: i64) -> bool {
        let mut is_found = false;
        self.change(|models| {
            is_found = models.failed.remove(&(name.to_owned(), version));
            if let Some(model) = models.find(name, version) {
                is_found = true;
                if let Some(slot) = model.slot.get() {
                    slot.remove();
                }
                let others = models.served.iter().filter(|model| !is_called(model, name, version));
                models.served = others.cloned().collect();
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
        registry.assign_slot(&model, budget);
        registry.publish(&model);
        model
    }

    #[test]
    fn a_model_replaces_the_one_of_its_name_and_version_and_shares_its_slot() {
        let registry = Registry::new();
        let (first, other) = (registered(&registry, "m"), registered(&registry, "other"));
        let second = registered(&registry, "m");
        assert_ne!(first.key(), second.key());
        let keys: Vec<ModelKey> = registry.models().served.iter().map(|model| model.key()).collect();
        assert_eq!(keys, [second.key(), other.key()], "the order stays");
        let slot = |model: &Served| Arc::as_ptr(model.slot.get().expect("it is registered"));
        assert_eq!(slot(&first), slot(&second));
        assert_ne!(slot(&first), slot(&other));
        assert!(registry.holds(second.key()) && !registry.holds(first.key()));
    }

    #[test]
    fn a_model_that_fails_is_known_by_name_and_does_not_replace_one_that_runs() {
        let registry = Registry::new();
        let good = registered(&registry, "good");
        registry.fail(&served("bad", 1));
        registry.fail(&served("good", 1));
        let models = registry.models();
        assert_eq!(
            (models.can_run("good"), models.can_run("bad"), models.can_run("none")),
            (Some(true), Some(false), None)
        );
        assert!(registry.holds(good.key()));
        assert_eq!(models.names().into_iter().collect::<Vec<_>>(), ["bad", "good"]);
        registered(&registry, "bad");
        assert_eq!(registry.models().can_run("bad"), Some(true), "its next version of the file is sound");
    }

    #[test]
    fn removal_is_seen_by_every_model_of_the_slot_and_not_by_one_that_is_added_later() {
        let registry = Registry::new();
        let (first, second) = (registered(&registry, "m"), registered(&registry, "m"));
        let mut watch = registry.watch();
        watch.mark_unchanged();
        assert!(registry.remove("m", 1) && !registry.remove("m", 1));
        assert!(watch.has_changed().expect("the registry lives"));
        let is_removed = |model: &Served| model.slot.get().expect("it was registered").is_removed();
        assert!(is_removed(&first) && is_removed(&second));
        let third = registered(&registry, "m");
        assert!(!is_removed(&third));
        assert_eq!(registry.models().can_run("m"), Some(true));
    }
}
