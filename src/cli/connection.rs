//! The server that a command uses: a running one, or a temporary one in this process.

use std::path::PathBuf;

use clap::Args;

use super::credential_args::{TlsArgs, TokenArgs};
use super::failure::Failure;
use super::no_models;
use super::serve::start_failure;
use crate::client;
use crate::client::{Address, Bearer, Link};
use crate::config::{Config, ListenAddress};
use crate::model::import::identity;
use crate::server::{Server, Shutdown};
use crate::telemetry::Telemetry;

/// The flags that choose the server.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Address of the server: HOST:PORT, https://HOST:PORT for TLS, or unix:/PATH [default: a temporary server in this
    /// process]
    #[arg(long, env = "CAMLENS_SERVER", value_name = "ADDRESS", help_heading = "Server")]
    pub server: Option<Address>,

    /// Models of the temporary server: a directory, a .pt2 file, or builtin:identity [default: models]
    #[arg(long, env = "CAMLENS_MODELS", value_name = "PATH", help_heading = "Server")]
    pub models: Option<PathBuf>,

    #[command(flatten)]
    pub tls: TlsArgs,

    #[command(flatten)]
    pub token: TokenArgs,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    link: Link,
    address: Address,
    tls: TlsArgs,
    bearer: Bearer,
    /// The temporary server, which stops with the connection.
    _own: Option<OwnServer>,
}

impl Connection {
    /// Connects to the server that `args` names, or starts a temporary one on a private socket.
    pub async fn open(args: &ConnectArgs) -> Result<Self, Failure> {
        match &args.server {
            Some(address) => Self::to(address, &args.tls, args.token.bearer(address)?).await,
            None => {
                let repository = args.models.clone().unwrap_or_else(|| Config::default().models.repository);
                if !identity::is_builtin(&repository) && !repository.exists() {
                    let sentence = format!("no server is named, and there are no models at {}", repository.display());
                    return Err(Failure::usage(sentence)
                        .hint(format!("--server names a running server; {}", no_models::advice())));
                }
                let (own, address) = OwnServer::start(repository).await?;
                let connection = Self::to(&address, &TlsArgs::default(), Bearer::default()).await?;
                Ok(Connection { _own: Some(own), ..connection })
            }
        }
    }

    /// Connects to a running server.
    pub async fn to(address: &Address, tls: &TlsArgs, bearer: Bearer) -> Result<Self, Failure> {
        let link = client::connect(address, &tls.settings(address)?, bearer.clone()).await?;
        Ok(Connection { link, address: address.clone(), tls: tls.clone(), bearer, _own: None })
    }

    /// Opens another connection to the same server.
    pub async fn another(&self) -> Result<Link, Failure> {
        Ok(client::connect(&self.address, &self.tls.settings(&self.address)?, self.bearer.clone()).await?)
    }

    pub fn channel(&self) -> Link {
        self.link.clone()
    }
}

/// A server in this process; commands use it like any other.
#[derive(Debug)]
struct OwnServer {
    shutdown: Shutdown,
    /// The directory of the socket; removed on drop.
    _directory: tempfile::TempDir,
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

impl OwnServer {
    async fn start(repository: PathBuf) -> Result<(Self, Address), Failure> {
        let directory = tempfile::Builder::new()
            .prefix("camlens-")
            .tempdir()
            .map_err(|error| Failure::failed(format!("cannot make a directory for a socket: {error}")))?;
        let socket = directory.path().join("camlens.sock");
        let mut config = Config::default();
        config.models.repository = repository;
        config.server.listen = vec![ListenAddress::Unix(socket.clone())];
        config.server.unix_socket_mode = 0o600;
        config.server.drain_timeout_s = 1;
        let shutdown = Shutdown::new();
        let server = Server::start(&config, Telemetry::disabled(), shutdown.clone()).await.map_err(start_failure)?;
        tokio::spawn(server.run());
        Ok((OwnServer { shutdown, _directory: directory }, Address::Unix(socket)))
    }
}
