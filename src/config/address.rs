//! The address of a socket to listen on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

    /// Parses `HOST:PORT` or `unix:/PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("`{text}` is no address to listen on: give HOST:PORT, such as 127.0.0.1:8033, or unix:/PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC's other form is unix:///absolute/path.
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

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in ["127.0.0.1:0", "[::1]:8033", "localhost:80", "unix:/run/camlens.sock"] {
            assert_eq!(text.parse::<ListenAddress>().expect(text).to_string(), text);
        }
        assert_eq!("unix:///a".parse(), Ok(ListenAddress::Unix("/a".into())));
        for text in ["", "localhost", ":80", "http://host:80", "host:port", "unix:"] {
            assert!(text.parse::<ListenAddress>().expect_err(text).contains("HOST:PORT"), "{text}");
        }
    }
}
