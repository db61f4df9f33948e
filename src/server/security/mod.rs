//! Who may reach the server: TLS with or without client certificates, and bearer tokens.
//!
//! Both are read from files that are read again when they change ([`watch`]): connections and calls that begin later meet
//! the new ones, those that run go on. `pem` reads certificates and keys, `identity` makes of them what a handshake
//! needs, `handshake` turns a listener's connections into TLS ones, `token_file` reads tokens, and `gate` asks every call
//! for one of them.

mod error;
mod gate;
mod handshake;
mod identity;
pub(crate) mod pem;
pub(crate) mod token_file;
mod watch;

use tokio_rustls::rustls;

pub use error::SecurityError;
pub(super) use gate::GateLayer;
pub(super) use handshake::handshakes;

use super::config::ServerConfig;
use token_file::TokenSet;
use watch::Watched;

/// What every listener of a server shares. Cheap to clone.
#[derive(Clone)]
pub(super) struct Security {
    /// None: TCP is plaintext.
    pub(super) tls: Option<Watched<rustls::ServerConfig>>,
    /// None: no call needs a token.
    tokens: Option<Watched<TokenSet>>,
}

impl Security {
    /// Reads what `config` names, and from now on follows the files. Must be called in a runtime.
    ///
    /// # Errors
    /// A file that cannot be read or used, in words for the person who starts the server.
    pub(super) fn open(config: &ServerConfig) -> Result<Self, SecurityError> {
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => Some(identity::watch(certificate, key, config.tls.client_ca.as_deref())?),
            // `ServerConfig::check` lets no half of a pair pass.
            _ => None,
        };
        let tokens = config.token_file.as_deref().map(token_file::watch).transpose()?;
        Ok(Security { tls, tokens })
    }

    /// Asks each call for a token, if there are any.
    pub(super) fn gate(&self) -> GateLayer {
        GateLayer::new(self.tokens.clone())
    }
}
