//! The server's TLS identity: its certificate and key, and the authorities for clients' certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, InconsistentKeys, RootCertStore, ServerConfig};

use super::watch::{Watched, warn_if_open_to_all};
use crate::credentials::CredentialError;
use crate::credentials::pem::{self, Validity};

/// Reads the certificate, the key and, if clients must have certificates, the authorities of these. Reads them again
/// when the files change.
///
/// # Errors
/// A file that cannot be read or used.
pub(in crate::server) fn watch(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<Watched<ServerConfig>, CredentialError> {
    warn_if_open_to_all("the private key", key);
    let paths =
        Paths { certificate: certificate.to_owned(), key: key.to_owned(), client_ca: client_ca.map(PathBuf::from) };
    let mut files = vec![paths.certificate.clone(), paths.key.clone()];
    files.extend(paths.client_ca.clone());
    Watched::open("TLS certificate", files, Arc::new(move |contents| paths.server_config(contents)))
}

struct Paths {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl Paths {
    /// `contents` of the files: certificate, key, and the clients' authorities if `client_ca` is set.
    fn server_config(&self, contents: &[Vec<u8>]) -> Result<ServerConfig, CredentialError> {
        let chain = pem::certificates(&self.certificate, &contents[0])?;
        let key = pem::private_key(&self.key, &contents[1])?;
        let validity = chain.first().and_then(Validity::of);
        let unusable = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CredentialError::Mismatch { certificate: self.certificate.clone(), key: self.key.clone() }
            }
            other => CredentialError::Unusable {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                problem: other.to_string(),
            },
        };
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?;
        let builder = match (&self.client_ca, contents.get(2)) {
            (Some(path), Some(contents)) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(authorities(path, contents)?.into(), provider)
                        .build()
                        .map_err(|error| bad_authority(path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        // HTTP/1.1 is answered with a sentence.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if let Some(validity) = validity {
            self.log(validity);
        }
        Ok(config)
    }

    fn log(&self, validity: Validity) {
        let (path, now) = (self.certificate.display(), SystemTime::now());
        let days_left = validity.days_left(now);
        if days_left < 0 {
            tracing::warn!(certificate = %path, days_left, "the certificate has expired: clients will refuse it");
        } else if !validity.has_begun(now) {
            tracing::warn!(certificate = %path, "the certificate is not valid yet: clients will refuse it");
        } else {
            let client_certificates = if self.client_ca.is_some() { "required" } else { "not asked for" };
            tracing::info!(certificate = %path, days_left, client_certificates, "TLS on TCP addresses");
        }
    }
}

fn authorities(path: &Path, contents: &[u8]) -> Result<RootCertStore, CredentialError> {
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(path, contents)? {
        roots.add(certificate).map_err(|error| bad_authority(path, &error))?;
    }
    Ok(roots)
}

fn bad_authority(path: &Path, error: &dyn std::error::Error) -> CredentialError {
    CredentialError::BadCertificate { path: path.to_owned(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused_and_a_matching_one_offers_http_2_first() {
        let signed = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (mine, other) = (signed(), signed());
        let paths = Paths { certificate: "tls.crt".into(), key: "tls.key".into(), client_ca: Some("ca.crt".into()) };
        let contents = |key: &rcgen::KeyPair| {
            vec![mine.cert.pem().into_bytes(), key.serialize_pem().into_bytes(), mine.cert.pem().into_bytes()]
        };
        let config = paths.server_config(&contents(&mine.signing_key)).expect("a pair");
        assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
        let error = paths.server_config(&contents(&other.signing_key)).expect_err("not a pair");
        assert!(matches!(error, CredentialError::Mismatch { .. }), "{error}");
    }
}
