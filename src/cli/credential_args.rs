//! The options that name a client's credentials.

use clap::Args;

use crate::cli::failure::Failure;
use crate::client::Address;
use crate::client::credentials::Bearer;
use std::path::PathBuf;
/// What makes the client known to the server.
#[derive(Debug, Clone, Default, Args)]
pub struct TokenArgs {
    /// A file whose first token is sent with every call: TOKEN or NAME: TOKEN
    #[arg(long, env = "CAMLENS_TOKEN_FILE", value_name = "FILE", help_heading = "Server")]
    pub token_file: Option<PathBuf>,

    /// Send the token over plaintext TCP beyond loopback: anybody on the network can read it
    #[arg(
        long,
        env = "CAMLENS_INSECURE",
        help_heading = "Server",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub insecure: bool,
}

impl TokenArgs {
    /// The token for `address`, if it may go there.
    pub fn bearer(&self, address: &Address) -> Result<Bearer, Failure> {
        let Some(path) = &self.token_file else { return Ok(Bearer::default()) };
        if !self.insecure && address.is_open_to_others() {
            return Err(Failure::usage(format!("a token would go to {address} in the clear"))
                .hint("name the server https://HOST:PORT, or say --insecure if the whole network is to be trusted"));
        }
        Bearer::read(path)
    }
}
