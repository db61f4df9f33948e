//! The repository as operators and metrics see it.

use std::collections::BTreeMap;

use crate::model::repository::{State, VersionKey};

/// The repository as it was seen last.
#[derive(Debug, Default)]
pub(in crate::server) struct View {
    /// By name, then version.
    pub(in crate::server) versions: Vec<VersionView>,
    changes: BTreeMap<(VersionKey, Change), u64>,
}

/// A version of a model, or all of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct VersionView {
    pub(in crate::server) name: String,
    /// `None`: all of the model.
    pub(in crate::server) version: Option<i64>,
    pub(in crate::server) state: State,
    /// Why it has failed; else empty.
    pub(in crate::server) reason: String,
    /// Of what is served: its digest, the bytes that it is counted with, and the streams and calls that use it.
    pub(in crate::server) digest: String,
    pub(in crate::server) bytes: u64,
    pub(in crate::server) in_use: usize,
}

/// What happened to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) enum Change {
    Loaded,
    Failed,
    Retired,
    Evicted,
}

impl Change {
    /// The word for metrics.
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Change::Loaded => "loaded",
            Change::Failed => "failed",
            Change::Retired => "retired",
            Change::Evicted => "evicted",
        }
    }
}

impl VersionView {
    /// Of a version that is there and cannot be loaded as it is.
    pub(super) fn refused(name: &str, version: Option<i64>, why: &str) -> Self {
        VersionView {
            name: name.to_owned(),
            version,
            state: State::Failed,
            reason: why.to_owned(),
            digest: String::new(),
            bytes: 0,
            in_use: 0,
        }
    }
}

impl View {
    pub(super) fn count(&mut self, key: &VersionKey, change: Change) {
        *self.changes.entry((key.clone(), change)).or_default() += 1;
    }

    /// How often each change has happened to each version since the start.
    pub(in crate::server) fn changes(&self) -> impl Iterator<Item = (&VersionKey, Change, u64)> {
        self.changes.iter().map(|((key, change), count)| (key, *change, *count))
    }
}
