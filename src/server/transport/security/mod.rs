//! Who may reach the server: TLS with or without client certificates, and bearer tokens.
//!
//! Both are read from files that are read again when they change ([`watch`]): connections and calls that begin later meet
//! the new ones, those that run go on. `pem` reads certificates and keys, `identity` makes of them what a handshake
//! needs, `handshake` turns a listener's connections into TLS ones, `token_file` reads tokens, and `gate` asks every call
//! for one of them.

use tokio_rustls::rustls;

pub use error::SecurityError;
pub(in crate::server) use gate::GateLayer;
pub(in crate::server) use handshake::handshakes;

use crate::config::ServerConfig;
use token_file::TokenSet;
use watch::Watched;

/// What every listener of a server shares. Cheap to clone.
#[derive(Clone)]
pub(in crate::server) struct Security {
    /// None: TCP is plaintext.
    pub(in crate::server) tls: Option<Watched<rustls::ServerConfig>>,
    /// None: no call needs a token.
    tokens: Option<Watched<TokenSet>>,
}

impl Security {
    /// Reads what `config` names, and from now on follows the files. Must be called in a runtime.
    ///
    /// # Errors
    /// A file that cannot be read or used, in words for the person who starts the server.
    pub(in crate::server) fn open(config: &ServerConfig) -> Result<Self, SecurityError> {
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => Some(identity::watch(certificate, key, config.tls.client_ca.as_deref())?),
            // `ServerConfig::check` lets no half of a pair pass.
            _ => None,
        };
        let tokens = config.token_file.as_deref().map(token_file::watch).transpose()?;
        Ok(Security { tls, tokens })
    }

    /// Asks each call for a token, if there are any.
    pub(in crate::server) fn gate(&self) -> GateLayer {
        GateLayer::new(self.tokens.clone())
    }
}
pub mod error;
pub mod gate;
pub mod handshake;
pub mod identity;
pub mod pem;
pub mod token_file;
pub mod watch;
