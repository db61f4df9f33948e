//! The address of a server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use tonic::transport::{Endpoint, Uri};

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `http://HOST:PORT`, or `https://HOST:PORT` for TLS.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH`, `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC also writes unix:///absolute/path.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(not_an_address(text)) } else { Ok(Address::Unix(path.into())) };
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let rest = rest.trim_end_matches('/');
        let url = format!("{scheme}://{rest}");
        let uri = Endpoint::from_shared(url.clone()).map_err(|_| not_an_address(text))?;
        let has_port = host_and_port(uri.uri()).is_some() && uri.uri().path() == "/" && !rest.contains('@');
        if !["http", "https"].contains(&scheme) || !has_port {
            return Err(not_an_address(text));
        }
        Ok(Address::Tcp(url))
    }
}

impl Address {
    /// The host, if the address uses TLS.
    pub fn tls_host(&self) -> Option<String> {
        let Address::Tcp(url) = self else { return None };
        let uri: Uri = url.parse().ok()?;
        let (host, _) = host_and_port(&uri)?;
        (uri.scheme_str() == Some("https")).then(|| host.to_owned())
    }

    /// Whether a connection to the address is plaintext that leaves this machine.
    pub fn is_open_to_others(&self) -> bool {
        let Address::Tcp(url) = self else { return false };
        let Ok(uri) = url.parse::<Uri>() else { return true };
        let host = host_and_port(&uri).map_or("", |(host, _)| host);
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        !loopback && uri.scheme_str() != Some("https")
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(url) => f.write_str(url),
        }
    }
}

fn not_an_address(text: &str) -> String {
    format!("`{text}` is not a server address: give HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH")
}

/// Host, without the brackets of an IPv6 address, and port; `None` if either is missing.
pub(super) fn host_and_port(uri: &Uri) -> Option<(&str, u16)> {
    let host = uri.host().filter(|host| !host.is_empty())?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, uri.port_u16()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_in_all_their_forms() {
        let cases = [
            ("unix:/run/camlens.sock", "unix:/run/camlens.sock"),
            ("unix:///run/camlens.sock", "unix:/run/camlens.sock"),
            ("localhost:8033", "http://localhost:8033"),
            ("http://10.0.0.1:80/", "http://10.0.0.1:80"),
            ("[::1]:8033", "http://[::1]:8033"),
            ("https://camlens.example:443/", "https://camlens.example:443"),
        ];
        for (text, address) in cases {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(address));
        }
        for text in [
            "",
            "localhost",
            ":8033",
            "localhost:http",
            "unix:",
            "ftp://host:1",
            "a b:1",
            "https://host",
            "http://host:1/path",
            "me:secret@host:1",
        ] {
            let error = text.parse::<Address>().expect_err("not an address");
            assert!(error.contains(text), "{error}");
        }
    }
}
