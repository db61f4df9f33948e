//! The server that a command talks to.

use clap::Args;
use tonic::transport::Channel;

use super::client::{self, Address};
use super::failure::Failure;

/// Which server.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// The server: HOST:PORT, http://HOST:PORT or unix:/PATH
    #[arg(
        long,
        env = "CAMLENS_SERVER",
        value_name = "ADDRESS",
        help_heading = "Server",
        default_value = "localhost:8033"
    )]
    pub server: Address,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    pub async fn open(args: &ConnectArgs) -> Result<Self, Failure> {
        Ok(Connection { channel: client::connect(&args.server).await? })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}
