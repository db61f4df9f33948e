//! What a client shows a server, and by what it knows the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::codegen::http::{HeaderMap, HeaderValue, header};

use super::address::Address;
use crate::cli::failure::Failure;
use crate::server::SecurityError;
use crate::server::transport::security::{pem, token_file};

/// TLS as the client wants it.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Authorities that may have signed the certificate of an https:// server, PEM [default: those of this machine]
    #[arg(long, env = "CAMLENS_TLS_CA", value_name = "FILE", help_heading = "Server")]
    pub tls_ca: Option<PathBuf>,

    /// A certificate to show to an https:// server that wants one, PEM
    #[arg(long, env = "CAMLENS_TLS_CERTIFICATE", value_name = "FILE", help_heading = "Server")]
    pub tls_certificate: Option<PathBuf>,

    /// That certificate's private key, PEM
    #[arg(long, env = "CAMLENS_TLS_KEY", value_name = "FILE", help_heading = "Server")]
    pub tls_key: Option<PathBuf>,

    /// The name in the certificate of an https:// server, where it is not the one in its address
    #[arg(long, env = "CAMLENS_TLS_SERVER_NAME", value_name = "NAME", help_heading = "Server")]
    pub tls_server_name: Option<String>,
}

/// What a TLS connection needs.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    /// What the server's certificate must be for.
    pub name: ServerName<'static>,
}

impl TlsArgs {
    /// What the connection to `address` needs. None: it is plaintext; the certificate and key are not needed then and may
    /// be there for others, since the server reads the same variables.
    pub fn config(&self, address: &Address) -> Result<Option<ClientTls>, Failure> {
        let Some(host) = address.tls_host() else {
            let given = [("--tls-ca", self.tls_ca.is_some()), ("--tls-server-name", self.tls_server_name.is_some())];
            return match (given.into_iter().find(|(_, given)| *given), address) {
                (Some((option, _)), Address::Tcp(_)) => {
                    Err(Failure::usage(format!("{option} is given, and {address} is plaintext"))
                        .hint("a server with TLS is named https://HOST:PORT"))
                }
                _ => Ok(None),
            };
        };
        let name = self.tls_server_name.clone().unwrap_or(host);
        let name = ServerName::try_from(name.clone())
            .map_err(|_| Failure::usage(format!("`{name}` is no name that a certificate can be for")))?;
        let builder = ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::failed(format!("cannot speak TLS: {error}")))?
            .with_root_certificates(self.authorities()?);
        let mut config = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let chain =
                    pem::certificates(certificate, &pem::read(certificate).map_err(unusable)?).map_err(unusable)?;
                let secret = pem::private_key(key, &pem::read(key).map_err(unusable)?).map_err(unusable)?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| {
                    let (certificate, key) = (certificate.display(), key.display());
                    Failure::usage(format!("{certificate} and {key} cannot be shown to a server: {error}"))
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => return Err(Failure::usage("--tls-certificate is given without --tls-key")),
            (None, Some(_)) => return Err(Failure::usage("--tls-key is given without --tls-certificate")),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(ClientTls { config: config.into(), name }))
    }

    /// Those that were named and no others, or those of this machine.
    fn authorities(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        match &self.tls_ca {
            Some(path) => {
                let contents = pem::read(path).map_err(unusable)?;
                for certificate in pem::certificates(path, &contents).map_err(unusable)? {
                    roots.add(certificate).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
                }
            }
            None => {
                // A machine without any trusts nobody, and the connection says so.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(roots)
    }
}

fn unusable(error: SecurityError) -> Failure {
    Failure::usage(error.to_string())
}

/// The token that is sent with each call, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<HeaderValue>);

impl Bearer {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let contents = pem::read(path).map_err(unusable)?;
        let tokens = token_file::parse(path, &contents).map_err(unusable)?;
        let value = tokens.first().and_then(|token| HeaderValue::from_str(&format!("Bearer {}", token.secret())).ok());
        let mut value =
            value.ok_or_else(|| Failure::usage(format!("{}: a token that cannot be sent", path.display())))?;
        // Neither logged nor kept in the connection's table of headers.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// Adds the token to a call.
    pub fn join(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.0 {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::credential_args::TokenArgs;

    fn address(text: &str) -> Address {
        text.parse().expect(text)
    }

    #[test]
    fn a_token_goes_nowhere_in_the_clear_unless_that_is_said() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "camera-4: hush-hush\nother\n").expect("a file");
        let mut args = TokenArgs { token_file: Some(file), insecure: false };
        for safe in ["unix:/run/camlens.sock", "https://10.0.0.1:1", "127.0.0.1:1", "http://localhost:1", "[::1]:1"] {
            let bearer = args.bearer(&address(safe)).expect(safe);
            assert!(!format!("{bearer:?}").contains("hush"), "{bearer:?}");
            let mut headers = HeaderMap::new();
            bearer.join(&mut headers);
            let sent = headers.get("authorization").expect("a token");
            assert!(sent.is_sensitive());
            assert_eq!(sent.to_str().ok(), Some("Bearer hush-hush"));
        }
        for open in ["10.0.0.1:1", "http://camlens.example:1", "localhost.example:1"] {
            assert!(args.bearer(&address(open)).expect_err(open).to_string().contains("in the clear"));
        }
        args.insecure = true;
        args.bearer(&address("10.0.0.1:1")).expect("it was said");
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        let ca = TlsArgs { tls_ca: Some("ca.crt".into()), ..TlsArgs::default() };
        assert!(ca.config(&address("localhost:1")).err().expect("plaintext").to_string().contains("--tls-ca"));
        assert!(ca.config(&address("unix:/s")).expect("TLS is for TCP").is_none());
        let half = TlsArgs { tls_key: Some("tls.key".into()), ..TlsArgs::default() };
        assert!(half.config(&address("https://h:1")).err().expect("half").to_string().contains("--tls-certificate"));
        assert!(half.config(&address("h:1")).expect("not needed").is_none());
        let error = ca.config(&address("https://h:1")).err().expect("no such file").to_string();
        assert!(error.starts_with("cannot read ca.crt"), "{error}");
    }
}
