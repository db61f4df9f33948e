//! An address to listen on.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ListenAddress {
    /// `HOST:PORT`.
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    /// `HOST:PORT` or `unix:/PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is no address to listen on: give HOST:PORT, such as 127.0.0.1:8033, or unix:/PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC also writes unix:///absolute/path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(refuse()) } else { Ok(ListenAddress::Unix(path.into())) };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() && !host.contains('/') => {
                Ok(ListenAddress::Tcp(text.to_owned()))
            }
            _ => Err(refuse()),
        }
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => f.write_str(address),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
