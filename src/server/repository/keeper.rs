//! Carries out what the repository asks for. Everything here blocks.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::start_error::StartError;
use super::loader::Loader;
use super::memory::{Memory, taken_by};
use super::view::{Change, VersionView, View};
use crate::model::Model;
use crate::model::repository::{
    Follower, Found, Look, Order, ProblemKey, Repository, Stamp, State, Task, VersionKey, contents,
};
use crate::schedule::{Engine, Served, add_model};

/// How long a version that found no memory waits before it is tried again.
const MEMORY_RETRY: Duration = Duration::from_secs(30);

/// Keeps the engine's models as the repository has them.
pub(in crate::server) struct Keeper {
    root: PathBuf,
    engine: Engine,
    loader: Loader,
    follower: Follower,
    memory: Memory,
    /// What the last look found that cannot be loaded as it is.
    problems: BTreeMap<ProblemKey, String>,
    /// Why the repository could not be looked at.
    unseen: Option<String>,
    view: Arc<Mutex<View>>,
}

/// What became of a version that was to be loaded.
enum Outcome {
    Loaded(Arc<Served>, [u8; 32]),
    /// Its files hold what is served already.
    Unchanged,
    /// Its files changed while they were read.
    Changing,
}

impl Keeper {
    pub(in crate::server) fn new(
        root: PathBuf,
        engine: Engine,
        loader: Loader,
        follower: Follower,
        memory_limit: Option<u64>,
    ) -> Self {
        let memory = Memory::new(memory_limit);
        let (problems, unseen, view) = (BTreeMap::new(), None, Arc::default());
        Keeper { root, engine, loader, follower, memory, problems, unseen, view }
    }

    /// The repository as operators and metrics see it.
    pub(super) fn view(&self) -> &Arc<Mutex<View>> {
        &self.view
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }

    /// Loads everything that the repository holds.
    ///
    /// # Errors
    /// With `is_strict`, the first version that cannot be loaded; otherwise, a repository that cannot be looked at.
    pub(in crate::server) fn begin(&mut self, is_strict: bool) -> Result<(), StartError> {
        let unreadable = |error| StartError::Repository(Box::new(error));
        let open = if is_strict { Repository::open } else { Repository::look };
        let repository = open(&self.root).map_err(unreadable)?;
        for ((name, version), why) in repository.problems() {
            tracing::warn!(name, version, why, "a model of the repository cannot be explained");
        }
        let found = self.found(&repository);
        self.follower.begin(found, Instant::now());
        while let Some(task) = self.follower.task(Instant::now()) {
            if let Err(error) = self.carry_out(task)
                && is_strict
            {
                return Err(error);
            }
        }
        self.tell();
        Ok(())
    }

    /// Looks at the repository. Where that is not possible, everything stays as it is.
    pub(super) fn look(&mut self) {
        match Repository::look(&self.root) {
            Ok(repository) => {
                if self.unseen.take().is_some() {
                    tracing::info!("the repository of models can be read again");
                }
                let known = self.problems.clone();
                let found = self.found(&repository);
                for ((name, version), why) in self.problems.iter().filter(|(key, why)| known.get(key) != Some(why)) {
                    tracing::warn!(name, version, why, "a model of the repository cannot be explained");
                }
                self.follower.observe(found, Instant::now());
            }
            Err(error) => {
                let why = error.to_string();
                if self.unseen.as_ref() != Some(&why) {
                    tracing::warn!(why, "the repository of models cannot be read: everything stays as it is");
                    self.unseen = Some(why);
                }
            }
        }
        self.tell();
    }

    /// The versions that are there with their stamps. Notes what cannot be loaded as it is.
    fn found(&mut self, repository: &Repository) -> Look {
        self.problems = repository.problems().clone();
        let mut found = BTreeMap::new();
        for entry in repository.entries() {
            for (version, path) in &entry.versions {
                match Stamp::of(path) {
                    Ok(stamp) => {
                        let path = path.clone();
                        found.insert((entry.name.clone(), *version), Found { path, stamp });
                    }
                    Err(error) => {
                        let why = format!("{}: {error}", path.display());
                        self.problems.insert((entry.name.clone(), Some(*version)), why);
                    }
                }
            }
        }
        Look { found, refused: self.problems.keys().map(|(name, _)| name.clone()).collect() }
    }

    /// Does everything that is to be done now.
    pub(super) fn work(&mut self) {
        while let Some(task) = self.follower.task(Instant::now()) {
            // What is wrong has been logged and noted.
            let _: Result<(), StartError> = self.carry_out(task);
            self.tell();
        }
    }

    /// Whether streams have models that are no longer served.
    pub(super) fn has_retired(&self) -> bool {
        self.memory.has_retired(&self.engine)
    }

    /// Whether models have left memory since the last time. Does not block.
    pub(super) fn has_unloaded(&mut self) -> bool {
        self.memory.forget_unloaded()
    }

    /// Orders versions: all of a model without `version`. Returns those that it concerns.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn order(
        &mut self,
        name: &str,
        version: Option<i64>,
        order: Order,
    ) -> Result<Vec<VersionKey>, OrderError> {
        let concerned = self.follower.order(name, version, order);
        if !concerned.is_empty() {
            return Ok(concerned);
        }
        let mut of_name = self.problems.iter().filter(|((known, _), _)| known == name);
        let problem = of_name.find(|((_, known), _)| version.is_none() || known.is_none() || *known == version);
        Err(match problem {
            Some((_, why)) => OrderError::Refused(why.clone()),
            None => OrderError::Unknown,
        })
    }

    fn carry_out(&mut self, task: Task) -> Result<(), StartError> {
        let now = Instant::now;
        match task {
            Task::Retire { key } => {
                let (name, version) = &key;
                self.engine.retire_model(name, *version);
                self.follower.retired(&key);
                self.view.lock().count(&key, Change::Retired);
                tracing::info!(name, version, "the model is no longer served; streams that have it go on");
                Ok(())
            }
            Task::Load { key, found, served } => {
                let (name, version) = &key;
                let began = now();
                let loaded = match catch_unwind(AssertUnwindSafe(|| self.load(&key, &found, served))) {
                    Ok(loaded) => loaded,
                    Err(_) => Err(StartError::Broken { name: name.clone(), version: *version }),
                };
                match loaded {
                    Ok(Outcome::Loaded(model, contents)) => {
                        self.memory.hold(&model, taken_by(found.stamp.bytes()));
                        self.follower.loaded(&key, found.stamp, contents);
                        self.view.lock().count(&key, Change::Loaded);
                        let (digest, ms) = (&model.metadata.digest, began.elapsed().as_millis() as u64);
                        tracing::info!(name, version, digest, ms, "the model is served");
                        Ok(())
                    }
                    Ok(Outcome::Unchanged) => {
                        self.follower.unchanged(&key, found.stamp);
                        Ok(())
                    }
                    Ok(Outcome::Changing) => {
                        self.follower.changing(&key, now());
                        tracing::info!(
                            name,
                            version,
                            "the model's files changed while they were read; it is loaded when they no longer change"
                        );
                        Err(StartError::Changing { name: name.clone(), version: *version })
                    }
                    Err(error) => {
                        let goes_on = self.engine.models().find(name, *version).is_some();
                        let why = error.to_string();
                        tracing::error!(name, version, why, goes_on, "the model cannot be loaded");
                        let again = error.may_pass().then(|| now() + MEMORY_RETRY);
                        self.follower.failed(&key, found.stamp, why, again);
                        self.view.lock().count(&key, Change::Failed);
                        Err(error)
                    }
                }
            }
        }
    }

    /// Loads a version beside what is served, and lets it take over.
    fn load(&mut self, key: &VersionKey, found: &Found, served: Option<[u8; 32]>) -> Result<Outcome, StartError> {
        let (name, version) = key;
        let before = match contents(&found.path) {
            Ok(before) => before,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(StartError::NoFile { name: name.clone(), version: *version, problem: error.to_string() });
            }
            Err(_) => return Ok(Outcome::Changing),
        };
        if served == Some(before) {
            return Ok(Outcome::Unchanged);
        }
        let bytes = taken_by(found.stamp.bytes());
        for evicted in self.memory.make_room(&self.engine, key, bytes)? {
            self.follower.evicted(&evicted);
            self.view.lock().count(&evicted, Change::Evicted);
        }
        let loaded = self.loader.load(name, *version, &found.path);
        // What was read is one version of the files only if they are as they were, whether it could be loaded or not.
        let rests = Stamp::of(&found.path).is_ok_and(|stamp| stamp == found.stamp)
            && contents(&found.path).is_ok_and(|after| after == before);
        if !rests {
            return Ok(Outcome::Changing);
        }
        let (served, model): (Arc<Served>, Model) = loaded?;
        self.loader.offer(&served, model);
        if let Err(error) = add_model(&self.engine, &served) {
            self.loader.withdraw(served.key());
            return Err(error.into());
        }
        Ok(Outcome::Loaded(served, before))
    }

    /// Tells clients and operators what there is.
    fn tell(&self) {
        let mut problems = self.problems.clone();
        let models = self.engine.models();
        let mut versions = Vec::new();
        for (key, state) in self.follower.states() {
            let reason = self.follower.failure(key).filter(|_| state == State::Failed).unwrap_or_default().to_owned();
            let (name, version) = key;
            if state == State::Failed {
                problems.insert((name.clone(), Some(*version)), reason.clone());
            }
            let served = models.find(name, *version);
            versions.push(VersionView {
                name: name.clone(),
                version: Some(*version),
                state,
                reason,
                digest: served.map(|model| model.metadata.digest.clone()).unwrap_or_default(),
                bytes: served.map_or(0, |model| self.memory.bytes_of(model.key())),
                in_use: served.map_or(0, |model| model.open_lanes()),
            });
        }
        for ((name, version), why) in &self.problems {
            versions.push(VersionView::refused(name, *version, why));
        }
        versions.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        self.engine.set_problems(problems);
        self.view.lock().versions = versions;
    }

    /// These versions as operators see them now.
    pub(super) fn views_of(&self, keys: &[VersionKey]) -> Vec<VersionView> {
        self.tell();
        let view = self.view.lock();
        let is_meant =
            |of: &&VersionView| keys.iter().any(|(name, version)| of.name == *name && of.version == Some(*version));
        view.versions.iter().filter(is_meant).cloned().collect()
    }
}

/// Why an order concerns nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum OrderError {
    /// There is no such model or version.
    Unknown,
    /// It is there, and cannot be loaded.
    Refused(String),
    /// Its files are still being written.
    Changing,
    /// The server is stopping.
    Stopping,
}
