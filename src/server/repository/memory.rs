//! Room in memory for a model that is to be loaded.
//!
//! A model is counted with twice the bytes of its files: its weights are laid out once for the forward and once for the
//! reverse run. It is counted until the last stream that has it ends. Where there is no room, the models that nothing
//! uses are evicted, the one that was used the longest time ago first.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::super::start_error::{Bytes, StartError};
use crate::model::repository::VersionKey;
use crate::process;
use crate::resources::Machine;
use crate::schedule::{Engine, ModelKey, Served};

/// How long a device may take to unload a model that was evicted: as long as the batch that it works on.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(10);
const UNLOAD_INTERVAL: Duration = Duration::from_millis(10);

/// The models in memory, and the most that they may take.
pub(super) struct Memory {
    /// `models.memory_limit`, in bytes; `None`: the memory of the process.
    limit: Option<u64>,
    held: Vec<Held>,
}

struct Held {
    key: ModelKey,
    model: Weak<Served>,
    bytes: u64,
}

/// What a version takes whose files have this many bytes.
pub(super) fn taken_by(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(2)
}

impl Memory {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Memory { limit, held: Vec::new() }
    }

    /// Counts a model that was loaded.
    pub(super) fn hold(&mut self, model: &Arc<Served>, bytes: u64) {
        self.held.push(Held { key: model.key(), model: Arc::downgrade(model), bytes });
    }

    /// The bytes that a model is counted with.
    pub(super) fn bytes_of(&self, key: ModelKey) -> u64 {
        self.held.iter().find(|held| held.key == key).map_or(0, |held| held.bytes)
    }

    /// Forgets the models that have left memory. Returns whether there were any.
    pub(super) fn forget_unloaded(&mut self) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.model.strong_count() > 0);
        self.held.len() < before
    }

    /// Whether it counts models that are no longer served: streams still have them.
    pub(super) fn has_retired(&self, engine: &Engine) -> bool {
        let served = engine.served();
        self.held.iter().any(|held| !served.iter().any(|model| model.key() == held.key))
    }

    /// Makes room for a version that takes `bytes`. Returns the versions that were evicted for it.
    ///
    /// # Errors
    /// There is no room, and nothing else to evict.
    pub(super) fn make_room(
        &mut self,
        engine: &Engine,
        key: &VersionKey,
        bytes: u64,
    ) -> Result<Vec<VersionKey>, StartError> {
        let mut evicted = Vec::new();
        loop {
            self.forget_unloaded();
            let Err(shortage) = self.check(key, bytes) else { return Ok(evicted) };
            let Some(victim) = victim(&engine.served(), key) else { return Err(shortage) };
            let (name, version) = (victim.metadata.name.clone(), victim.metadata.version);
            tracing::info!(
                name,
                version,
                for_model = key.0,
                for_version = key.1,
                "the model leaves memory to make room"
            );
            engine.evict_model(&name, version);
            let gone = Arc::downgrade(&victim);
            drop(victim);
            let began = Instant::now();
            while gone.strong_count() > 0 && began.elapsed() < UNLOAD_PATIENCE {
                thread::sleep(UNLOAD_INTERVAL);
            }
            process::release_memory();
            evicted.push((name, version));
        }
    }

    fn check(&self, (name, version): &VersionKey, bytes: u64) -> Result<(), StartError> {
        let held: u64 = self.held.iter().map(|held| held.bytes).sum();
        if let Some(limit) = self.limit
            && held.saturating_add(bytes) > limit
        {
            let [needed, held, limit] = [bytes, held, limit].map(Bytes);
            return Err(StartError::Budget { name: name.clone(), version: *version, needed, held, limit });
        }
        // A model that surely does not fit is refused with the figures: the system would kill the process without a
        // word.
        let machine = Machine::this();
        let (taken, granted) = (machine.resident(), machine.resources().memory());
        if taken.saturating_add(bytes) > granted {
            let [weights, taken, granted] = [bytes / 2, taken, granted].map(Bytes);
            return Err(StartError::Memory { name: name.clone(), version: *version, weights, taken, granted });
        }
        Ok(())
    }
}

/// The model that nothing uses and that was used the longest time ago. The one that is to be replaced stays: it serves
/// until then.
fn victim(served: &[Arc<Served>], replaced: &VersionKey) -> Option<Arc<Served>> {
    let is_replaced = |model: &Served| model.metadata.name == replaced.0 && model.metadata.version == replaced.1;
    let unused = served.iter().filter(|model| model.open_lanes() == 0 && !is_replaced(model));
    unused.min_by_key(|model| model.last_use()).cloned()
}
