//! Why a server cannot start.

use std::io;

use super::transport::listen::ListenError;
use super::transport::security::SecurityError;
use crate::config::ConfigError;
use crate::frame::PreparationError;
use crate::model::ModelError;
use crate::schedule::{EngineError, WarmUpError};

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot listen on {address} (admin.listen): {source}")]
    Admin { address: String, source: io::Error },
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("model {name} version {version}: {source}")]
    Model { name: String, version: i64, source: Box<ModelError> },
    #[error("model {name} version {version}: {source}")]
    Preparation { name: String, version: i64, source: PreparationError },
    #[error(transparent)]
    Repository(Box<ModelError>),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
