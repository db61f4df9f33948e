//! Who may call the server: TLS with or without client certificates, and bearer tokens.
//!
//! Both come from files that are read again when they change ([`watch`]). New connections and calls use the new
//! contents; running ones go on. `identity` makes the TLS configuration, `handshake` makes a listener's connections TLS
//! ones, `accepted_tokens` holds the tokens, and `gate` checks every call for one.

pub mod accepted_tokens;
pub mod gate;
pub mod handshake;
pub mod identity;
pub mod watch;

use tokio_rustls::rustls;

pub(in crate::server) use gate::GateLayer;
pub(in crate::server) use handshake::handshakes;

use crate::config::ServerConfig;
use crate::credentials::CredentialError;
use accepted_tokens::TokenSet;
use watch::Watched;

/// TLS and tokens of all listeners. Cheap to clone.
#[derive(Clone)]
pub(in crate::server) struct Security {
    /// `None`: TCP is plaintext.
    pub(in crate::server) tls: Option<Watched<rustls::ServerConfig>>,
    /// `None`: no call needs a token.
    tokens: Option<Watched<TokenSet>>,
}

impl Security {
    /// Reads the files that `config` names and watches them. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// A file that cannot be read or used, in words for the operator.
    pub(in crate::server) fn open(config: &ServerConfig) -> Result<Self, CredentialError> {
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => Some(identity::watch(certificate, key, config.tls.client_ca.as_deref())?),
            // `ServerConfig::check` refuses one without the other.
            _ => None,
        };
        let tokens = config.token_file.as_deref().map(accepted_tokens::watch).transpose()?;
        Ok(Security { tls, tokens })
    }

    /// The layer that checks calls for tokens.
    pub(in crate::server) fn gate(&self) -> GateLayer {
        GateLayer::new(self.tokens.clone())
    }
}
