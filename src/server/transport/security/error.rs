//! What is wrong with a certificate, a key or a file of tokens. No message quotes a secret file.

use std::io;
use std::path::PathBuf;

/// Why a certificate, key or token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {bytes} bytes at most", path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{}: no certificate in PEM format (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{}: a certificate that cannot be read: {problem}", path.display())]
    BadCertificate { path: PathBuf, problem: String },
    #[error("{}: no private key in PEM format (-----BEGIN PRIVATE KEY-----)", path.display())]
    NoKey { path: PathBuf },
    #[error(
        "{}: the private key is encrypted; `openssl pkey -in {} -out KEY` decrypts it",
        path.display(),
        path.display()
    )]
    EncryptedKey { path: PathBuf },
    #[error("{}: a private key that cannot be read", path.display())]
    BadKey { path: PathBuf },
    #[error("the private key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("{} and {} cannot serve TLS: {problem}", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, problem: String },
    #[error("{}: no token; a server with an empty list would refuse every call", path.display())]
    NoToken { path: PathBuf },
    #[error("{}, line {line}: {problem}", path.display())]
    BadToken { path: PathBuf, line: usize, problem: &'static str },
}
