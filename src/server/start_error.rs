//! Why a server cannot start.

use std::{fmt, io};

use super::transport::listen::ListenError;
use crate::config::{ConfigError, DeviceName};
use crate::credentials::CredentialError;
use crate::frame::PreparationError;
use crate::model::ModelError;
use crate::schedule::{EngineError, WarmUpError};
use crate::torch::cuda::CudaError;

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0.div_ceil(1 << 20))
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot listen on {address} ({key}): {source}")]
    Operators { address: String, key: &'static str, source: io::Error },
    #[error(
        "view.listen = \"{address}\" shows frames beyond this machine: {problem} (or listen on 127.0.0.1, and let an \
         SSH tunnel, kubectl port-forward or a proxy with TLS reach it)"
    )]
    Exposed { address: String, problem: &'static str },
    #[error(transparent)]
    Security(#[from] CredentialError),
    #[error("model {name} version {version}: {source}")]
    Model { name: String, version: i64, source: Box<ModelError> },
    #[error(
        "model {name} version {version} does not fit into the memory: its weights take {weights}, and twice as much \
         once they are laid out for the forward and for the reverse run; the process takes {taken} already, and it may \
         use {granted} (the limit of its cgroup, or the machine's memory)"
    )]
    Memory { name: String, version: i64, weights: Bytes, taken: Bytes, granted: Bytes },
    #[error(
        "model {name} version {version} takes {needed}, twice the bytes of its files, and the models in memory take \
         {held} of {limit} (models.memory_limit): streams have them, or they have just been replaced"
    )]
    Budget { name: String, version: i64, needed: Bytes, held: Bytes, limit: Bytes },
    #[error(
        "model {name} version {version}: its files changed while they were read; try again when nothing writes to them"
    )]
    Changing { name: String, version: i64 },
    #[error("model {name} version {version}: {problem}")]
    NoFile { name: String, version: i64, problem: String },
    /// A panic; the log has its message.
    #[error("model {name} version {version}: something in camlens broke while it was loaded; the log has the cause")]
    Broken { name: String, version: i64 },
    #[error("model {name} version {version}: {source}")]
    Preparation { name: String, version: i64, source: PreparationError },
    #[error(transparent)]
    Repository(Box<ModelError>),
    #[error("device.name = \"{name}\": {source}")]
    Device { name: DeviceName, source: CudaError },
    #[error("device.models: {name}: {problem}")]
    Binding { name: String, problem: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl StartError {
    /// Whether the same model may be loaded later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, StartError::Budget { .. } | StartError::Memory { .. } | StartError::Changing { .. })
    }
}
