//! What is wrong with a configuration.

use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Parse { path: PathBuf, problem: String },
    /// A value that is not allowed, and what is.
    #[error("{key} = {value}: {allowed}")]
    Value { key: &'static str, value: String, allowed: String },
}

/// # Errors
/// When the value of `key` is 0.
pub(super) fn at_least_one(key: &'static str, number: u64) -> Result<(), ConfigError> {
    if number == 0 { Err(value(key, 0, "at least 1")) } else { Ok(()) }
}

/// The error of a key whose value is not allowed.
pub(super) fn value(key: &'static str, value: impl ToString, allowed: &str) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), allowed: allowed.to_owned() }
}
