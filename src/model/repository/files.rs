//! The files of one version, as they are now: a stamp that is cheap to compare, and a digest of their contents.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::is_version;
use crate::model::import::identity;

/// Most files of one version, and how deep they may lie in its directory.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 4;
/// What `camlens doctor` compares with: no part of the model.
const CHECK: &str = "check";

/// Which files there are, and what the system says of each: sizes, times and identities. Links are followed, so a link
/// that is pointed elsewhere changes the stamp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp(Vec<FileStamp>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FileStamp {
    path: PathBuf,
    /// `None`: it cannot be read, as a link that leads nowhere.
    facts: Option<Facts>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Facts {
    device: u64,
    inode: u64,
    size: u64,
    /// In seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the file's entry: a copy that keeps the time of modification cannot keep this one.
    changed: (i64, i64),
}

impl Facts {
    fn of(file: &Metadata) -> Self {
        Facts {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// The stamp of a version's directory, with the files of the model's directory that describe every version; or of a
    /// bare file.
    ///
    /// # Errors
    /// When a directory cannot be read, or holds too many files.
    pub fn of(version: &Path) -> io::Result<Self> {
        let facts = |path: PathBuf| {
            let facts = fs::metadata(&path).ok().map(|file| Facts::of(&file));
            FileStamp { path, facts }
        };
        Ok(Stamp(files(version)?.into_iter().map(facts).collect()))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.iter().filter_map(|file| file.facts.as_ref()).map(|facts| facts.size).sum()
    }
}

/// SHA-256 of the names and the contents of all files that [`Stamp::of`] looks at.
///
/// # Errors
/// When one of them cannot be read, or is no regular file: a named pipe would have its reader wait.
pub fn contents(version: &Path) -> io::Result<[u8; 32]> {
    if identity::is_builtin(version) {
        return Ok([0; 32]);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files(version)? {
        // The name alone: the directory may be another one behind a link.
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        if !fs::metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file", path.display())));
        }
        let mut file = File::open(&path)?;
        let mut length = 0u64;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            length += count as u64;
            hash.update(&buffer[..count]);
        }
        hash.update(length.to_le_bytes());
    }
    Ok(hash.finalize().into())
}

/// The files of a version, sorted. Hidden ones are left out: Kubernetes and git-sync keep their copies in them.
fn files(version: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !version.is_dir() {
        found.push(version.to_owned());
        return Ok(found);
    }
    walk(version, MAX_DEPTH, &mut found)?;
    if let Some(model) = is_version(version).and_then(|_| version.parent()) {
        walk(model, 0, &mut found)?;
    }
    found.sort();
    Ok(found)
}

/// Adds the files of a directory, and of those in it down to `depth` levels.
fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if !path.is_dir() {
            found.push(path);
        } else if depth > 0 && name != CHECK {
            walk(&path, depth - 1, found)?;
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::other(format!("it has more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_stamp_changes_with_every_write_and_the_contents_only_with_the_bytes() {
        let root = tempfile::tempdir().unwrap();
        let version = root.path().join("net/1");
        fs::create_dir_all(version.join("check")).unwrap();
        fs::write(version.join("model.onnx"), b"one").unwrap();
        let now = || (Stamp::of(&version).unwrap(), contents(&version).unwrap());
        let first = now();
        assert_eq!((first.0.bytes(), now()), (3, first.clone()));
        // Of equal size, with the time of modification put back: only the entry's own time tells.
        let modified = fs::metadata(version.join("model.onnx")).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(version.join("model.onnx"), b"two").unwrap();
        let file = File::options().write(true).open(version.join("model.onnx")).unwrap();
        file.set_modified(modified).unwrap();
        let second = now();
        assert!(second.0 != first.0 && second.1 != first.1);
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let touched = now();
        assert!(touched.0 != second.0 && touched.1 == second.1);
        fs::write(version.join("check/logits.npy"), b"x").unwrap();
        fs::write(version.join(".hidden"), b"x").unwrap();
        assert_eq!(now(), touched, "no part of the model");
        for (path, what) in [("net/1/data/w.bin", "weights"), ("net/config.pbtxt", "a description")] {
            let before = now();
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), b"x").unwrap();
            assert!(now().0 != before.0 && now().1 != before.1, "{what}");
        }
        fs::write(root.path().join("net/2"), b"x").unwrap();
        assert_ne!(now().0, touched.0);
    }

    #[test]
    fn a_named_pipe_is_refused_and_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let version = root.path().join("net/1");
        fs::create_dir_all(&version).unwrap();
        let pipe = version.join("model.toml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = contents(&version).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("net/1/model.toml is not a file"), "{error}");
    }

    #[test]
    fn links_that_are_swapped_change_the_stamp() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in ["..first", "..second"] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("model.onnx"), folder).unwrap();
        }
        fs::create_dir_all(at("net/1")).unwrap();
        symlink("..first", at("..data")).unwrap();
        symlink("../../..data/model.onnx", at("net/1/model.onnx")).unwrap();
        let first = (Stamp::of(&at("net/1")).unwrap(), contents(&at("net/1")).unwrap());
        symlink("..second", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        let second = (Stamp::of(&at("net/1")).unwrap(), contents(&at("net/1")).unwrap());
        assert!(first.0 != second.0 && first.1 != second.1);
        fs::remove_dir_all(at("..second")).unwrap();
        assert_ne!(Stamp::of(&at("net/1")).unwrap(), second.0);
        assert!(contents(&at("net/1")).is_err(), "it leads nowhere");
    }
}
