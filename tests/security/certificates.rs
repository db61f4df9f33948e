//! A certificate authority, and the certificates that it signs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Signs certificates and keeps the files in a folder of its own.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn certificate_pem(&self) -> String {
        std::fs::read_to_string(&self.certificate).expect("a certificate")
    }

    pub fn key_pem(&self) -> String {
        std::fs::read_to_string(&self.key).expect("a key")
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).expect("a file");
        Authority { folder, issuer: Issuer::new(params, key) }
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    pub fn certificate_pem(&self) -> String {
        std::fs::read_to_string(self.certificate()).expect("a certificate")
    }

    /// A certificate for `localhost` and `127.0.0.1`; `file` must not have been used before.
    pub fn sign(&self, file: &str) -> Files {
        self.sign_as(file, &["localhost", "127.0.0.1"], |_| {})
    }

    pub fn sign_as(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Files {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("sound names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let at = |ending: &str| self.folder.path().join(format!("{file}.{ending}"));
        let files = Files { certificate: at("crt"), key: at("key") };
        std::fs::write(&files.certificate, certificate.pem()).expect("a file");
        write_secret(&files.key, &key.serialize_pem());
        files
    }
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a file of ours");
}
