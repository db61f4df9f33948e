//! The flags that name a client's credentials.

use std::path::PathBuf;

use clap::Args;

use crate::cli::failure::Failure;
use crate::client::{Address, Bearer, TlsSettings};

/// The flags of TLS.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsArgs {
    /// Certificate authorities to trust for an https:// server, PEM [default: those of this machine]
    #[arg(long, env = "CAMLENS_TLS_CA", value_name = "FILE", help_heading = "Server")]
    pub tls_ca: Option<PathBuf>,

    /// Client certificate for an https:// server that requires one, PEM
    #[arg(long, env = "CAMLENS_TLS_CERTIFICATE", value_name = "FILE", help_heading = "Server")]
    pub tls_certificate: Option<PathBuf>,

    /// Private key of the client certificate, PEM
    #[arg(long, env = "CAMLENS_TLS_KEY", value_name = "FILE", help_heading = "Server")]
    pub tls_key: Option<PathBuf>,

    /// Name to expect in the certificate of an https:// server [default: the host of its address]
    #[arg(long, env = "CAMLENS_TLS_SERVER_NAME", value_name = "NAME", help_heading = "Server")]
    pub tls_server_name: Option<String>,
}

impl TlsArgs {
    /// The settings for a connection to `address`. With a plaintext address the certificate and key are ignored: the
    /// server reads the same environment variables.
    pub fn settings(&self, address: &Address) -> Result<TlsSettings, Failure> {
        let TlsArgs { tls_ca, tls_certificate, tls_key, tls_server_name } = self;
        if address.tls_host().is_none() {
            let given = [("--tls-ca", tls_ca.is_some()), ("--tls-server-name", tls_server_name.is_some())];
            return match (given.into_iter().find(|(_, given)| *given), address) {
                (Some((option, _)), Address::Tcp(_)) => {
                    Err(Failure::usage(format!("{option} cannot be used with {address}: the address is plaintext"))
                        .hint("the address of a server with TLS is https://HOST:PORT"))
                }
                _ => Ok(TlsSettings::default()),
            };
        }
        let identity = match (tls_certificate, tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("--tls-certificate is given without --tls-key")),
            (None, Some(_)) => return Err(Failure::usage("--tls-key is given without --tls-certificate")),
        };
        Ok(TlsSettings { authorities: tls_ca.clone(), identity, server_name: tls_server_name.clone() })
    }
}

/// The flags of the bearer token.
#[derive(Debug, Clone, Default, Args)]
pub struct TokenArgs {
    /// File of bearer tokens, TOKEN or NAME: TOKEN per line; the first token is sent with every call
    #[arg(long, env = "CAMLENS_TOKEN_FILE", value_name = "FILE", help_heading = "Server")]
    pub token_file: Option<PathBuf>,

    /// Allow the token over plaintext TCP beyond loopback: anybody on the network can read it
    #[arg(
        long,
        env = "CAMLENS_INSECURE",
        help_heading = "Server",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub insecure: bool,
}

impl TokenArgs {
    /// The token for `address`.
    ///
    /// # Errors
    /// The connection is not encrypted, beyond loopback and without `--insecure`; or the file cannot be read.
    pub fn bearer(&self, address: &Address) -> Result<Bearer, Failure> {
        let Some(path) = &self.token_file else { return Ok(Bearer::default()) };
        if !self.insecure && address.is_open_to_others() {
            return Err(Failure::usage(format!("the token would be sent unencrypted to {address}"))
                .hint("use a server with TLS, https://HOST:PORT, or --insecure if the whole network is trusted"));
        }
        Ok(Bearer::read(path)?)
    }
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderMap;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect(text)
    }

    #[test]
    fn a_token_is_sent_unencrypted_only_with_insecure() {
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
            assert!(args.bearer(&address(open)).expect_err(open).to_string().contains("sent unencrypted"));
        }
        args.insecure = true;
        args.bearer(&address("10.0.0.1:1")).expect("--insecure allows it");
    }

    #[test]
    fn contradictory_flags_are_refused() {
        let ca = TlsArgs { tls_ca: Some("ca.crt".into()), ..TlsArgs::default() };
        assert!(ca.settings(&address("localhost:1")).expect_err("plaintext").to_string().contains("--tls-ca"));
        assert!(ca.settings(&address("unix:/s")).expect("TLS is for TCP").authorities.is_none());
        let half = TlsArgs { tls_key: Some("tls.key".into()), ..TlsArgs::default() };
        assert!(half.settings(&address("https://h:1")).expect_err("half").to_string().contains("--tls-certificate"));
        assert!(half.settings(&address("h:1")).expect("not needed").identity.is_none());
    }
}
