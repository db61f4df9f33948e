//! Certificates and keys in PEM files.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::error::SecurityError;
pub(crate) use super::watch::read;

/// All certificates of a file, in its order; at least one. `path` is for error messages.
pub(crate) fn certificates(path: &Path, contents: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let bad = |problem: String| SecurityError::BadCertificate { path: path.to_owned(), problem };
    let certificates = CertificateDer::pem_slice_iter(contents)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if certificates.is_empty() {
        return Err(SecurityError::NoCertificate { path: path.to_owned() });
    }
    for certificate in &certificates {
        X509Certificate::from_der(certificate).map_err(|error| bad(error.to_string()))?;
    }
    Ok(certificates)
}

/// The first private key of a file.
pub(crate) fn private_key(path: &Path, contents: &[u8]) -> Result<PrivateKeyDer<'static>, SecurityError> {
    let path = path.to_owned();
    match PrivateKeyDer::from_pem_slice(contents) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let encrypted = contents.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED);
            Err(if encrypted { SecurityError::EncryptedKey { path } } else { SecurityError::NoKey { path } })
        }
        // The cause could quote the file.
        Err(_) => Err(SecurityError::BadKey { path }),
    }
}

const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// When a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Validity {
    pub(in crate::server) not_before_s: i64,
    pub(in crate::server) not_after_s: i64,
}

impl Validity {
    /// `None` for bytes that are no certificate.
    pub(in crate::server) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Validity { not_before_s: validity.not_before.timestamp(), not_after_s: validity.not_after.timestamp() })
    }

    /// Days until it expires: negative once it has.
    pub(in crate::server) fn days_left(&self, now: SystemTime) -> i64 {
        (self.not_after_s - seconds(now)).div_euclid(24 * 60 * 60)
    }

    pub(in crate::server) fn has_begun(&self, now: SystemTime) -> bool {
        self.not_before_s <= seconds(now)
    }
}

fn seconds(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn signed() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate")
    }

    #[test]
    fn certificates_and_keys_are_read_and_what_is_none_is_named() {
        let path = Path::new("tls.pem");
        let (cert, key) = (signed().cert.pem(), signed().signing_key.serialize_pem());
        assert_eq!(certificates(path, format!("{cert}{cert}").as_bytes()).expect("two").len(), 2);
        private_key(path, format!("{cert}{key}").as_bytes()).expect("the key behind the certificate");
        assert!(matches!(certificates(path, key.as_bytes()), Err(SecurityError::NoCertificate { .. })));
        assert!(matches!(private_key(path, cert.as_bytes()), Err(SecurityError::NoKey { .. })));
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert!(matches!(private_key(path, encrypted.as_bytes()), Err(SecurityError::EncryptedKey { .. })));
        let no_certificate = cert.replace(&cert[30..60], &"A".repeat(30));
        assert!(matches!(certificates(path, no_certificate.as_bytes()), Err(SecurityError::BadCertificate { .. })));
    }

    #[test]
    fn a_broken_key_is_not_quoted() {
        let key = signed().signing_key.serialize_pem();
        let secret = key.lines().nth(1).expect("the key itself").to_owned();
        for broken in [
            key.replace("-----END", ""),
            key.replace(&secret, &format!("-----BEGIN {secret}")),
            key.replace(&secret, &format!("?{secret}")),
        ] {
            let error = private_key(Path::new("tls.key"), broken.as_bytes()).expect_err("broken");
            for said in [error.to_string(), format!("{error:?}")] {
                assert!(said.contains("tls.key") && !said.contains(&secret[..8]), "{said}");
            }
        }
    }

    #[test]
    fn validity_is_counted_in_days() {
        let day = 24 * 60 * 60;
        let validity = Validity { not_before_s: day, not_after_s: 3 * day };
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!validity.has_begun(at(0)) && validity.has_begun(at(86_400)));
        assert_eq!(validity.days_left(at(86_400)), 2);
        assert_eq!(validity.days_left(at(3 * 86_400 + 1)), -1);
        let real = Validity::of(signed().cert.der()).expect("a certificate");
        assert!(real.has_begun(SystemTime::now()) && real.days_left(SystemTime::now()) > 100);
    }
}
