//! A value made from files, and made again when they change.
//!
//! The contents are compared every second. That notices a rewritten file, a renamed one, and the symbolic links that
//! Kubernetes swaps, without notifications from the file system.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::SecurityError;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Certificates, keys and tokens are small, but a path may name any file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The newest valid value. Clones share it; the files are watched as long as one of the clones lives.
pub(in crate::server) struct Watched<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Watched(Arc::clone(&self.0))
    }
}

/// Makes the value from the contents of the files, in the order of their paths.
type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, SecurityError> + Send + Sync;

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files, makes the value, and spawns the task that watches the files. `what` is for the log.
    ///
    /// # Errors
    /// A file that cannot be read or used.
    pub(in crate::server) fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        make: Arc<Make<T>>,
    ) -> Result<Self, SecurityError> {
        let contents = read_all(&paths)?;
        let state = fingerprint(&Ok(contents.clone()));
        let current = Arc::new(RwLock::new(Arc::new(make(&contents)?)));
        tokio::spawn(follow(what, paths, make, Arc::downgrade(&current), state));
        Ok(Watched(current))
    }

    pub(in crate::server) fn current(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn follow<T: Send + Sync + 'static>(
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Arc<Make<T>>,
    current: Weak<RwLock<Arc<T>>>,
    mut tried: [u8; 32],
) {
    let mut before = tried;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if current.strong_count() == 0 {
            return;
        }
        let (to_read, make) = (paths.clone(), Arc::clone(&make));
        let look = move || {
            let contents = read_all(&to_read);
            let state = fingerprint(&contents);
            // Files that are replaced one after the other must be stable for a second: until then, a certificate
            // without its new key is no error.
            let changed = state != tried && state == before;
            (state, changed.then(|| contents.and_then(|contents| make(&contents))))
        };
        let Ok((state, made)) = tokio::task::spawn_blocking(look).await else {
            tracing::error!(what, "the files cannot be watched any longer");
            return;
        };
        before = state;
        let Some(made) = made else { continue };
        tried = state;
        let Some(current) = current.upgrade() else { return };
        match made {
            Ok(value) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!(what, "the files have changed and were read again");
            }
            Err(error) => tracing::error!(what, %error, "the files have changed and cannot be used: the old ones stay"),
        }
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, SecurityError> {
    paths.iter().map(|path| read(path)).collect()
}

/// Reads a file of at most 4 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    let fail = |source| SecurityError::Read { path: path.to_owned(), source };
    let mut contents = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut contents).map_err(fail)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(SecurityError::TooLarge { path: path.to_owned(), bytes: MAX_FILE_BYTES });
    }
    Ok(contents)
}

/// A digest of the contents or of the error, so that no copy of the secrets is kept.
fn fingerprint(contents: &Result<Vec<Vec<u8>>, SecurityError>) -> [u8; 32] {
    let mut hash = Sha256::new();
    match contents {
        Ok(files) => {
            for file in files {
                hash.update((file.len() as u64).to_le_bytes());
                hash.update(file);
            }
        }
        Err(error) => hash.update(error.to_string()),
    }
    hash.finalize().into()
}

/// Warns when every user of the machine may read a secret file.
pub(in crate::server) fn warn_if_open_to_all(what: &'static str, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.permissions().mode();
        if mode & 0o004 != 0 {
            let mode = format!("{:o}", mode & 0o777);
            tracing::warn!(path = %path.display(), mode, "{what} can be read by every user of this machine");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u64, SecurityError> {
        let digits = std::str::from_utf8(&contents[0]).ok().and_then(|text| text.trim().parse().ok());
        digits.ok_or(SecurityError::NoToken { path: PathBuf::from("number") })
    }

    async fn becomes(watched: &Watched<u64>, value: u64) -> bool {
        for _ in 0..100 {
            if *watched.current() == value {
                return true;
            }
            tokio::time::sleep(POLL_INTERVAL / 10).await;
        }
        false
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("number");
        std::fs::write(&path, "1").expect("a file");
        let watched = Watched::open("the number", vec![path.clone()], Arc::new(number)).expect("a number");
        assert_eq!(*watched.current(), 1);
        std::fs::write(&path, "none").expect("a file");
        tokio::time::sleep(POLL_INTERVAL * 3).await;
        assert_eq!(*watched.current(), 1);
        std::fs::remove_file(&path).expect("a file");
        tokio::time::sleep(POLL_INTERVAL * 3).await;
        assert_eq!(*watched.current(), 1);
        std::fs::write(&path, "2").expect("a file");
        assert!(becomes(&watched, 2).await);
    }

    #[tokio::test]
    async fn swapped_links_are_seen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("v1", "1"), ("v2", "2")] {
            std::fs::create_dir(at(name)).expect("a folder");
            std::fs::write(at(name).join("number"), value).expect("a file");
        }
        std::os::unix::fs::symlink("v1", at("now")).expect("a link");
        let watched = Watched::open("the number", vec![at("now/number")], Arc::new(number)).expect("a number");
        std::os::unix::fs::symlink("v2", at("next")).expect("a link");
        std::fs::rename(at("next"), at("now")).expect("a swap");
        assert!(becomes(&watched, 2).await);
    }

    #[test]
    fn a_file_without_end_is_refused() {
        assert!(matches!(read(Path::new("/dev/zero")), Err(SecurityError::TooLarge { .. })));
    }
}
