//! Addresses, and sockets bound to them.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener, UnixStream};

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

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: ListenAddress, source: io::Error },
    #[error("cannot listen on unix:{}: another server is listening there", path.display())]
    InUse { path: PathBuf },
    #[error("cannot listen on unix:{}: a file that is no socket lies there", path.display())]
    NoSocket { path: PathBuf },
}

/// A bound socket.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's file, removed with it.
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "the socket's file could not be removed");
        }
    }
}

impl Listener {
    /// Binds. A socket file that a dead server left behind is replaced; one that is alive is not.
    pub(super) async fn bind(address: &ListenAddress, unix_socket_mode: u32) -> Result<Self, ListenError> {
        let fail = |source| ListenError::Bind { address: address.clone(), source };
        match address {
            ListenAddress::Tcp(host) => TcpListener::bind(host).await.map(Listener::Tcp).map_err(fail),
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(fail)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(unix_socket_mode)).map_err(fail)?;
                Ok(Listener::Unix(listener, file))
            }
        }
    }

    /// Where it listens really: the port that was taken for 0.
    pub(super) fn address(&self, asked: &ListenAddress) -> ListenAddress {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| asked.clone(), |bound| ListenAddress::Tcp(bound.to_string()))
            }
            Listener::Unix(..) => asked.clone(),
        }
    }
}

/// Removes a socket that nobody answers.
async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let fail = |source| ListenError::Bind { address: ListenAddress::Unix(path.to_owned()), source };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NoSocket { path: path.to_owned() });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(fail),
        Err(error) => Err(fail(error)),
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

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("camlens.sock");
        let address = ListenAddress::Unix(path.clone());
        // Dropping a standard listener leaves its file, as a killed server does.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let alive = Listener::bind(&address, 0o600).await.expect("the stale file is replaced");
        let mode = std::fs::metadata(&path).expect("the socket's file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Listener::bind(&address, 0o600).await, Err(ListenError::InUse { .. })));
        drop(alive);
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "mine").expect("a file");
        let bound = Listener::bind(&ListenAddress::Unix(path.clone()), 0o600).await;
        assert!(matches!(bound, Err(ListenError::NoSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "mine");
    }

    #[tokio::test]
    async fn port_0_becomes_the_port_that_was_taken() {
        let asked = ListenAddress::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind(&asked, 0o600).await.expect("a free port");
        let bound = listener.address(&asked);
        assert_ne!(bound, asked);
    }
}
