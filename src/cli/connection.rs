//! The server that a command uses: a running one, or a temporary one in this process.

use std::path::PathBuf;

use clap::Args;

use super::credential_args::{TlsArgs, TokenArgs};
use super::device_args::DeviceArgs;
use super::failure::Failure;
use super::no_models;
use super::serve::start_failure;
use crate::client;
use crate::client::{Address, Bearer, Link};
use crate::config::{Config, KernelTiming};
use crate::model::import::identity;
use crate::server::{InProcess, Server, Shutdown};
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

    /// The devices of the temporary server.
    #[command(flatten, next_help_heading = "Server")]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub tls: TlsArgs,

    #[command(flatten)]
    pub token: TokenArgs,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    link: Link,
    server: ServerInUse,
}

/// The server behind a connection.
#[derive(Debug)]
enum ServerInUse {
    Running {
        address: Address,
        tls: TlsArgs,
        bearer: Bearer,
    },
    /// It stops with the connection.
    Own(OwnServer),
}

impl ServerInUse {
    async fn connect(&self) -> Result<Link, Failure> {
        Ok(match self {
            ServerInUse::Running { address, tls, bearer } => {
                client::connect(address, &tls.settings(address)?, bearer.clone()).await?
            }
            ServerInUse::Own(own) => {
                let own = own.in_process.clone();
                let dial = move || {
                    let own = own.clone();
                    async move { own.connect().await }
                };
                client::connect_over(dial).await?
            }
        })
    }
}

impl Connection {
    /// Connects to the server that `args` names, or starts a temporary one in this process.
    pub async fn open(args: &ConnectArgs) -> Result<Self, Failure> {
        Self::open_timing(args, KernelTiming::WhileServing).await
    }

    /// As [`Connection::open`], for a command that measures: a temporary server has timed its kernels before.
    pub async fn open_to_measure(args: &ConnectArgs) -> Result<Self, Failure> {
        Self::open_timing(args, KernelTiming::AtStart).await
    }

    async fn open_timing(args: &ConnectArgs, timing: KernelTiming) -> Result<Self, Failure> {
        match &args.server {
            Some(address) => Self::to(address, &args.tls, args.token.bearer(address)?).await,
            None => {
                let repository = args.models.clone().unwrap_or_else(|| Config::default().models.repository);
                if !identity::is_builtin(&repository) && !repository.exists() {
                    let sentence = format!("no server is named, and there are no models at {}", repository.display());
                    return Err(Failure::usage(sentence)
                        .hint(format!("--server names a running server; {}", no_models::advice())));
                }
                Self::over(ServerInUse::Own(OwnServer::start(repository, args.device.clone(), timing).await?)).await
            }
        }
    }

    /// Connects to a running server.
    pub async fn to(address: &Address, tls: &TlsArgs, bearer: Bearer) -> Result<Self, Failure> {
        Self::over(ServerInUse::Running { address: address.clone(), tls: tls.clone(), bearer }).await
    }

    async fn over(server: ServerInUse) -> Result<Self, Failure> {
        Ok(Connection { link: server.connect().await?, server })
    }

    /// Opens another connection to the same server.
    pub async fn another(&self) -> Result<Link, Failure> {
        self.server.connect().await
    }

    pub fn channel(&self) -> Link {
        self.link.clone()
    }
}

/// A server in this process; commands use it like any other. Nobody else can reach it, and it writes no file.
#[derive(Debug)]
struct OwnServer {
    shutdown: Shutdown,
    in_process: InProcess,
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

impl OwnServer {
    async fn start(repository: PathBuf, device: DeviceArgs, timing: KernelTiming) -> Result<Self, Failure> {
        let mut config = Config::default();
        config.models.repository = repository;
        config.server.drain_timeout_s = 1;
        device.set(&mut config.device);
        config.device.kernel_timing = timing;
        let shutdown = Shutdown::new();
        let (server, in_process) =
            Server::start_in_process(&config, Telemetry::disabled(), shutdown.clone()).await.map_err(start_failure)?;
        tokio::spawn(server.run());
        Ok(OwnServer { shutdown, in_process })
    }
}
