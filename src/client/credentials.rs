//! The TLS settings and the bearer token of a client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::codegen::http::{HeaderMap, HeaderValue, header};

use super::address::Address;
use super::error::ClientError;
use crate::credentials::{self, CredentialError, pem};

/// TLS settings for servers whose address is `https://`. The default trusts the certificate authorities of this
/// machine.
#[derive(Debug, Clone, Default)]
pub struct TlsSettings {
    /// PEM file of the certificate authorities to trust. `None`: those of this machine.
    pub authorities: Option<PathBuf>,
    /// PEM files of the client's certificate and of its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name that the server's certificate must have. `None`: the host of the address.
    pub server_name: Option<String>,
}

/// The TLS configuration of a connection.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    /// Name that the server's certificate must have.
    pub name: ServerName<'static>,
}

impl TlsSettings {
    /// The TLS configuration for `address`; `None` if the address is plaintext.
    pub(super) fn config(&self, address: &Address) -> Result<Option<ClientTls>, ClientError> {
        let Some(host) = address.tls_host() else { return Ok(None) };
        let name = self.server_name.clone().unwrap_or(host);
        let name = ServerName::try_from(name.clone())
            .map_err(|_| ClientError::setting(format!("`{name}` is not a name that a certificate can have")))?;
        let builder = ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Tls { cause: error.to_string() })?
            .with_root_certificates(self.roots()?);
        let mut config = match &self.identity {
            Some((certificate, key)) => {
                let chain = pem::certificates(certificate, &credentials::read(certificate).map_err(unusable)?)
                    .map_err(unusable)?;
                let secret = pem::private_key(key, &credentials::read(key).map_err(unusable)?).map_err(unusable)?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| {
                    let (certificate, key) = (certificate.display(), key.display());
                    ClientError::setting(format!(
                        "{certificate} and {key} cannot be used as a client certificate: {error}"
                    ))
                })?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(ClientTls { config: config.into(), name }))
    }

    /// The certificates of `authorities`, or of this machine's authorities if it is `None`.
    fn roots(&self) -> Result<RootCertStore, ClientError> {
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(path) => {
                let contents = credentials::read(path).map_err(unusable)?;
                for certificate in pem::certificates(path, &contents).map_err(unusable)? {
                    roots
                        .add(certificate)
                        .map_err(|error| ClientError::setting(format!("{}: {error}", path.display())))?;
                }
            }
            None => {
                // Without any authority, connecting fails with an error about the certificate.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(roots)
    }
}

fn unusable(error: CredentialError) -> ClientError {
    ClientError::setting(error.to_string())
}

/// The bearer token of a client; the default has none.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<HeaderValue>);

impl Bearer {
    /// Reads the first token of a token file.
    ///
    /// # Errors
    /// The file cannot be read, or its first token is not a valid header value.
    pub fn read(path: &Path) -> Result<Self, ClientError> {
        let contents = credentials::read(path).map_err(unusable)?;
        let tokens = credentials::tokens(path, &contents).map_err(unusable)?;
        let value = tokens.first().and_then(|token| HeaderValue::from_str(&format!("Bearer {}", token.secret())).ok());
        let mut value = value.ok_or_else(|| {
            ClientError::setting(format!("{}: the first token cannot be sent in a header", path.display()))
        })?;
        // A sensitive value is not logged and not kept in the HPACK table of the connection.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// Adds the token to the headers of a call.
    pub fn join(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.0 {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_configured_only_for_https_and_an_error_names_the_file() {
        let settings = TlsSettings { authorities: Some("ca.crt".into()), ..TlsSettings::default() };
        assert!(settings.config(&"unix:/s".parse().expect("an address")).expect("TLS is for TCP").is_none());
        let error = settings.config(&"https://h:1".parse().expect("an address")).err().expect("no such file");
        assert!(error.to_string().starts_with("cannot read ca.crt"), "{error}");
    }
}
