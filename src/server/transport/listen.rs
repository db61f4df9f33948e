//! Sockets, bound to the configured addresses.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener, UnixStream, lookup_host};
use tokio::sync::mpsc;

use crate::config::{ListenAddress, ServerConfig};

/// Why the server cannot listen on an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: ListenAddress, source: io::Error },
    #[error("cannot listen on unix:{}: another server is listening there", path.display())]
    InUse { path: PathBuf },
    #[error("cannot listen on unix:{}: a file that is no socket is there", path.display())]
    NoSocket { path: PathBuf },
    #[error(
        "refusing to serve {address} without TLS: everyone who can reach {reached} could use the models, and everyone \
         on the network could read and change frames and answers. Do one of three things: listen on this machine \
         alone, at 127.0.0.1:PORT or unix:/PATH (enough within a Kubernetes pod); give --tls-certificate and \
         --tls-key; or give --insecure if you trust the whole network"
    )]
    Exposed { address: ListenAddress, reached: SocketAddr },
}

/// A bound socket, or another source of connections.
pub(in crate::server) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
    InProcess(mpsc::Receiver<UnixStream>),
}

/// Connects to a server within this process. Its sockets come in pairs and have no name and no file, so nobody else can
/// connect, and nothing must be writable. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InProcess(mpsc::Sender<UnixStream>);

impl InProcess {
    /// The server's end, and the one that connects to it.
    pub(in crate::server) fn pair() -> (Listener, Self) {
        let (connect, incoming) = mpsc::channel(1);
        (Listener::InProcess(incoming), InProcess(connect))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The server has ended, or no more sockets can be opened.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let (own, servers) = UnixStream::pair()?;
        self.0.send(servers).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(own)
    }
}

/// The file of a Unix socket. Dropping this removes it.
pub(in crate::server) struct SocketFile(PathBuf);

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
    /// Binds a socket. The file of a Unix socket on which no server listens is replaced. TCP beyond loopback needs TLS
    /// or `insecure`.
    ///
    /// # Errors
    /// Why it cannot listen there.
    pub(in crate::server) async fn bind(address: &ListenAddress, config: &ServerConfig) -> Result<Self, ListenError> {
        let fail = |source| ListenError::Bind { address: address.clone(), source };
        match address {
            ListenAddress::Tcp(host) => {
                let resolved: Vec<SocketAddr> = lookup_host(host).await.map_err(fail)?.collect();
                let exposed = resolved.iter().find(|one| !one.ip().to_canonical().is_loopback());
                if let Some(&reached) = exposed
                    && !config.may_listen_beyond_loopback()
                {
                    return Err(ListenError::Exposed { address: address.clone(), reached });
                }
                TcpListener::bind(resolved.as_slice()).await.map(Listener::Tcp).map_err(fail)
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = match bind_unix(path, config.unix_socket_mode) {
                    Ok(listener) => listener,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        return Err(ListenError::InUse { path: path.clone() });
                    }
                    Err(error) => return Err(fail(error)),
                };
                Ok(Listener::Unix(listener, SocketFile(path.clone())))
            }
        }
    }

    /// The address that was bound: for port 0, with the real port.
    pub(in crate::server) fn address(&self, asked: &ListenAddress) -> ListenAddress {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| asked.clone(), |bound| ListenAddress::Tcp(bound.to_string()))
            }
            Listener::Unix(..) | Listener::InProcess(_) => asked.clone(),
        }
    }
}

/// Binds a Unix socket that has its permission bits before anyone can reach it: it is made in a private directory and
/// linked to `path` when it is ready. Fails when `path` exists by then.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Short names: a socket's path has at most about 100 bytes. tempfile's directories have mode 0o700.
    let private = tempfile::Builder::new().prefix(".").rand_bytes(4).tempdir_in(parent)?;
    let private_path = private.path().join("s");
    let listener = UnixListener::bind(&private_path)?;
    std::fs::set_permissions(&private_path, std::fs::Permissions::from_mode(mode))?;
    std::fs::hard_link(&private_path, path)?;
    Ok(listener)
}

/// Removes the file of a Unix socket on which no server listens.
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

    fn modes(unix_socket_mode: u32) -> ServerConfig {
        ServerConfig { unix_socket_mode, ..ServerConfig::default() }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("camlens.sock");
        let address = ListenAddress::Unix(path.clone());
        // Dropping a standard listener leaves its file, as a killed server does.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let alive = Listener::bind(&address, &modes(0o600)).await.expect("the stale file is replaced");
        let mode = std::fs::metadata(&path).expect("the socket's file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Listener::bind(&address, &modes(0o600)).await, Err(ListenError::InUse { .. })));
        drop(alive);
        assert!(!path.exists(), "the file goes with the server");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "mine").expect("a file");
        let bound = Listener::bind(&ListenAddress::Unix(path.clone()), &modes(0o600)).await;
        assert!(matches!(bound, Err(ListenError::NoSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "mine");
    }

    #[tokio::test]
    async fn port_0_becomes_the_port_that_was_taken() {
        let asked = ListenAddress::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind(&asked, &modes(0o600)).await.expect("a free port");
        let bound = listener.address(&asked);
        assert_ne!(bound, asked);
    }

    #[tokio::test]
    async fn a_socket_has_its_mode_and_leaves_nothing_else_behind() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for mode in [0o600, 0o660, 0o666] {
            let path = folder.path().join("camlens.sock");
            let listener = Listener::bind(&ListenAddress::Unix(path.clone()), &modes(mode)).await.expect("a socket");
            let metadata = std::fs::metadata(&path).expect("the socket's file");
            assert_eq!(metadata.permissions().mode() & 0o777, mode);
            assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
            UnixStream::connect(&path).await.expect("it listens there");
            drop(listener);
        }
        std::fs::write(folder.path().join("taken"), "").expect("a file");
        let taken = bind_unix(&folder.path().join("taken"), 0o600).expect_err("a file is not replaced");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn plaintext_stays_on_the_machine_unless_allowed() {
        let bind = async |host: &str, insecure| {
            let config = ServerConfig { insecure, ..ServerConfig::default() };
            Listener::bind(&ListenAddress::Tcp(format!("{host}:0")), &config).await.map(drop)
        };
        for host in ["127.0.0.1", "127.0.0.2", "localhost"] {
            bind(host, false).await.expect(host);
        }
        for host in ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "192.0.2.1"] {
            let error = bind(host, false).await.expect_err(host);
            assert!(matches!(error, ListenError::Exposed { .. }), "{error}");
        }
        bind("0.0.0.0", true).await.expect("it was allowed");
    }
}
