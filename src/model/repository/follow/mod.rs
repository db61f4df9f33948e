//! What a repository that changes asks for: which version is to be loaded, and which one is no longer to be served.
//!
//! The caller looks at the repository now and then ([`Follower::observe`]), carries out one [`Task`] after the other,
//! and reports what became of each. Rules:
//!
//! - A version is loaded once two looks in a row have seen the same stamp, at least `settle` apart: files that are
//!   still being written are not read.
//! - A version whose files have changed is loaded again beside the old one, which serves until the new one does, and
//!   goes on if the new one fails. A failure is not tried again before the files change, except one that may pass.
//! - A version that is gone, or that the version policy no longer serves, is retired once the other versions of its
//!   model have been loaded: never while nothing else is served and another one has still to be loaded, has failed, or
//!   cannot be read at all.
//! - Without `follows`, nothing is loaded or retired except what was ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::files::Stamp;

/// The name of a model, and its version.
pub type VersionKey = (String, i64);

/// A version as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub path: PathBuf,
    pub stamp: Stamp,
}

/// What an operator, or a request, asks for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Load it if it is not served as it lies in the repository.
    Load,
    /// Load it again, even if its files have not changed.
    Reload,
    /// Do not serve it until it is ordered again.
    Unload,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    Load {
        key: VersionKey,
        found: Found,
        /// The contents that are served now: equal ones need not be loaded.
        served: Option<[u8; 32]>,
    },
    /// No longer to be served: open streams finish.
    Retire { key: VersionKey },
}

/// What became of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Served as it lies in the repository.
    Served,
    /// Not in memory. A request loads it.
    Evicted,
    /// To be loaded as soon as its files rest and its turn comes.
    Pending,
    /// It cannot be loaded. What was served before goes on.
    Failed,
    /// Not served: nobody has ordered it, or an operator has unloaded it.
    Unloaded,
}

/// Decides what a repository that changes asks for.
#[derive(Debug)]
pub struct Follower {
    follows: bool,
    settle: Duration,
    versions: BTreeMap<VersionKey, Version>,
    /// The models of which something was there at the last look that cannot be read.
    refused: BTreeSet<String>,
}

/// What a look at a repository has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// The versions that could be loaded.
    pub found: BTreeMap<VersionKey, Found>,
    /// The models of which something is there that cannot be read: a version, or the model's description.
    pub refused: BTreeSet<String>,
}

#[derive(Debug)]
struct Version {
    /// At the last look; `None`: it is gone.
    found: Option<Found>,
    /// When it was first seen that way, and how often since.
    since: Instant,
    looks: u32,
    served: Option<Served>,
    failure: Option<Failure>,
    order: Option<Order>,
}

#[derive(Debug)]
struct Served {
    stamp: Stamp,
    contents: [u8; 32],
    in_memory: bool,
}

#[derive(Debug)]
struct Failure {
    stamp: Stamp,
    reason: String,
    /// When it may be tried again although the files are the same.
    again: Option<Instant>,
}

impl Follower {
    /// Follows a repository, or only what is ordered of it.
    pub fn new(follows: bool, settle: Duration) -> Self {
        Follower { follows, settle, versions: BTreeMap::new(), refused: BTreeSet::new() }
    }

    /// Takes a look into account.
    pub fn observe(&mut self, look: Look, now: Instant) {
        let Look { mut found, refused } = look;
        self.refused = refused;
        for (key, version) in &mut self.versions {
            version.see(found.remove(key), now);
        }
        for (key, found) in found {
            self.versions.insert(key, Version::new(found, now));
        }
        self.versions.retain(|_, version| version.found.is_some() || version.served.is_some());
    }

    /// As [`Follower::observe`], at the start: the files that are there are taken to rest, and all are ordered.
    pub fn begin(&mut self, look: Look, now: Instant) {
        self.observe(look, now);
        for version in self.versions.values_mut() {
            version.order = Some(Order::Load);
            version.looks = SETTLED_LOOKS;
            version.since = now.checked_sub(self.settle).unwrap_or(now);
        }
    }

    /// Takes an order for a version, or for all of a model. Returns the versions that it concerns: none if there is no
    /// such model or version. For all of a model, [`Order::Load`] and [`Order::Reload`] also retire what is gone.
    pub fn order(&mut self, name: &str, version: Option<i64>, order: Order) -> Vec<VersionKey> {
        let mut concerned = Vec::new();
        for (key, known) in &mut self.versions {
            if key.0 == name && version.is_none_or(|version| key.1 == version) {
                known.order = Some(order);
                concerned.push(key.clone());
            }
        }
        concerned
    }

    /// Whether the files of these versions rest, or are gone for good.
    pub fn rest(&self, keys: &[VersionKey], now: Instant) -> bool {
        keys.iter().filter_map(|key| self.versions.get(key)).all(|version| version.rests(self.settle, now))
    }

    /// What is to be done next; `None`: nothing for now. Report what became of it before asking again.
    pub fn task(&self, now: Instant) -> Option<Task> {
        self.load(now).or_else(|| self.retire(now))
    }

    /// Newer versions first: they are the ones that requests get.
    fn load(&self, now: Instant) -> Option<Task> {
        let due = |(_, version): &(&VersionKey, &Version)| {
            version.rests(self.settle, now) && version.wants_load(self.follows, now)
        };
        let (key, version) = self.versions.iter().filter(due).max_by_key(|(key, _)| key.1)?;
        let served = version.served.as_ref().filter(|served| served.in_memory && version.order != Some(Order::Reload));
        let found = version.found.clone()?;
        Some(Task::Load { key: key.clone(), found, served: served.map(|served| served.contents) })
    }

    fn retire(&self, now: Instant) -> Option<Task> {
        let due = |(key, version): &(&VersionKey, &Version)| match version.order {
            _ if version.served.is_none() => false,
            Some(Order::Unload) => true,
            order => {
                let is_followed = self.follows || order.is_some();
                is_followed && version.found.is_none() && version.rests(self.settle, now) && !self.must_stay(key)
            }
        };
        let (key, _) = self.versions.iter().find(due)?;
        Some(Task::Retire { key: key.clone() })
    }

    /// Whether another version of the model has still to be loaded, has failed or cannot be read, while none of those
    /// that are there is served.
    fn must_stay(&self, (name, own): &VersionKey) -> bool {
        let others = || {
            let is_other = |(key, _): &(&VersionKey, &Version)| key.0 == *name && key.1 != *own;
            let others = self.versions.iter().filter(is_other);
            others.map(|(_, version)| version).filter(|version| version.found.is_some())
        };
        let is_awaited = |version: &Version| {
            let is_wanted = self.follows || version.order.is_some() || version.failure.is_some();
            is_wanted && version.served.is_none() && version.order != Some(Order::Unload)
        };
        (self.refused.contains(name) || others().any(is_awaited)) && !others().any(|version| version.served.is_some())
    }

    /// A version serves what its files held.
    pub fn loaded(&mut self, key: &VersionKey, stamp: Stamp, contents: [u8; 32]) {
        if let Some(version) = self.versions.get_mut(key) {
            version.served = Some(Served { stamp, contents, in_memory: true });
            version.settled(None);
        }
    }

    /// The files of a version hold what is served already.
    pub fn unchanged(&mut self, key: &VersionKey, stamp: Stamp) {
        if let Some(version) = self.versions.get_mut(key) {
            if let Some(served) = &mut version.served {
                served.stamp = stamp;
            }
            version.settled(None);
        }
    }

    /// The files of a version changed while they were read: they have to rest first.
    pub fn changing(&mut self, key: &VersionKey, now: Instant) {
        if let Some(version) = self.versions.get_mut(key) {
            (version.looks, version.since) = (0, now);
        }
    }

    /// A version cannot be loaded; with `again` it is tried again then.
    pub fn failed(&mut self, key: &VersionKey, stamp: Stamp, reason: String, again: Option<Instant>) {
        if let Some(version) = self.versions.get_mut(key) {
            version.settled(Some(Failure { stamp, reason, again }));
        }
    }

    /// A version is no longer served.
    pub fn retired(&mut self, key: &VersionKey) {
        if let Some(version) = self.versions.get_mut(key) {
            version.served = None;
            // An unloaded version stays so.
            version.order = version.order.filter(|&order| order == Order::Unload);
        }
        self.versions.retain(|_, version| version.found.is_some() || version.served.is_some());
    }

    /// A version has left memory; a request for it orders it again.
    pub fn evicted(&mut self, key: &VersionKey) {
        if let Some(served) = self.versions.get_mut(key).and_then(|version| version.served.as_mut()) {
            served.in_memory = false;
        }
    }

    /// Everything that was to be done for an order has been done, as far as it can be.
    pub fn fulfilled(&mut self, keys: &[VersionKey]) {
        for key in keys {
            if let Some(version) = self.versions.get_mut(key) {
                version.order = version.order.filter(|&order| order == Order::Unload);
            }
        }
    }

    /// Why a version, as it lies in the repository, cannot be loaded.
    pub fn failure(&self, key: &VersionKey) -> Option<&str> {
        self.versions.get(key)?.failure.as_ref().map(|failure| failure.reason.as_str())
    }

    /// Every version that is there or served, with what became of it.
    pub fn states(&self) -> impl Iterator<Item = (&VersionKey, State)> {
        self.versions.iter().map(|(key, version)| (key, version.state(self.follows)))
    }

    /// What became of a version.
    pub fn state(&self, key: &VersionKey) -> Option<State> {
        self.versions.get(key).map(|version| version.state(self.follows))
    }
}

/// How often a stamp has to be seen.
const SETTLED_LOOKS: u32 = 2;

impl Version {
    fn new(found: Found, now: Instant) -> Self {
        Version { found: Some(found), since: now, looks: 1, served: None, failure: None, order: None }
    }

    fn see(&mut self, found: Option<Found>, now: Instant) {
        if self.found == found {
            self.looks = self.looks.saturating_add(1);
        } else {
            (self.found, self.since, self.looks) = (found, now, 1);
        }
    }

    fn rests(&self, settle: Duration, now: Instant) -> bool {
        self.looks >= SETTLED_LOOKS && now.saturating_duration_since(self.since) >= settle
    }

    fn wants_load(&self, follows: bool, now: Instant) -> bool {
        let Some(found) = &self.found else { return false };
        let is_current = self.served.as_ref().is_some_and(|served| served.stamp == found.stamp && served.in_memory);
        match self.order {
            Some(Order::Unload) => false,
            Some(Order::Reload) => true,
            Some(Order::Load) => !is_current,
            None if !follows => false,
            // What has left memory comes back when it is asked for.
            None if self.served.as_ref().is_some_and(|served| !served.in_memory) => false,
            None => {
                let has_failed = self.failure.as_ref().is_some_and(|failure| {
                    failure.stamp == found.stamp && failure.again.is_none_or(|again| now < again)
                });
                !is_current && !has_failed
            }
        }
    }

    /// What was tried has come to an end.
    fn settled(&mut self, failure: Option<Failure>) {
        self.failure = failure;
        self.order = None;
    }

    fn state(&self, follows: bool) -> State {
        let stamp = self.found.as_ref().map(|found| &found.stamp);
        match (&self.served, &self.failure, self.order) {
            (None, _, Some(Order::Unload)) => State::Unloaded,
            (_, Some(failure), None) if Some(&failure.stamp) == stamp => State::Failed,
            (Some(served), ..) if !served.in_memory => State::Evicted,
            (Some(served), ..) if stamp.is_none_or(|stamp| served.stamp == *stamp) => State::Served,
            (Some(_), _, None) if !follows => State::Served,
            (None, _, None) if !follows => State::Unloaded,
            _ => State::Pending,
        }
    }
}

#[cfg(test)]
mod tests;
