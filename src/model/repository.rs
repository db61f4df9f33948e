//! A directory of models: `NAME/VERSION/`, with the file of an importer in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::ModelError;
use super::import::{self, identity};

/// A model that is there, with its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Ascending; at least one. Each with its directory, or the bare file.
    pub versions: Vec<(i64, PathBuf)>,
}

impl Entry {
    /// The newest version.
    pub fn newest(&self) -> (i64, &Path) {
        let (version, path) = &self.versions[self.versions.len() - 1];
        (*version, path)
    }
}

/// The models under a directory.
#[derive(Debug, Clone)]
pub struct Repository {
    entries: Vec<Entry>,
}

impl Repository {
    /// Looks for models under `root`: a repository (`NAME/VERSION/model.pt2`), one model (`VERSION/model.pt2`), one
    /// version (`model.pt2`), a bare model file, or the built-in model by the name of [`identity::PLACE`]. Nothing is
    /// loaded.
    pub fn open(root: &Path) -> Result<Self, ModelError> {
        let fail = |problem: &str| ModelError::Repository { path: root.to_owned(), problem: problem.to_owned() };
        if identity::is_builtin(root) {
            let versions = vec![(1, identity::place(root)?)];
            return Ok(Repository { entries: vec![Entry { name: identity::NAME.to_owned(), versions }] });
        }
        if !root.exists() {
            return Err(fail("does not exist"));
        }
        let entries = if root.is_file() {
            vec![Entry { name: stem(root), versions: vec![(1, root.to_owned())] }]
        } else if import::model_file(root).is_some() {
            vec![one_version(root)]
        } else {
            let own = versions(root)?;
            if own.is_empty() { models(root)? } else { vec![Entry { name: stem(root), versions: own }] }
        };
        if entries.is_empty() {
            let looked_for = import::file_names();
            let found = import::other_formats::find(root)
                .map(|(path, format)| format!("; {} is {format}", path.display()))
                .unwrap_or_default();
            return Err(fail(&format!(
                "holds no model: NAME/VERSION/{looked_for} was looked for, with an integer as VERSION{found}"
            )));
        }
        Ok(Repository { entries })
    }

    /// By name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

fn stem(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    absolute.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned())
}

/// `…/NAME/VERSION`, or a directory of another name.
fn one_version(directory: &Path) -> Entry {
    let absolute = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let last = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match (last.parse::<i64>(), absolute.parent().and_then(Path::file_name)) {
        (Ok(version), Some(name)) if version >= 0 => {
            Entry { name: name.to_string_lossy().into_owned(), versions: vec![(version, directory.to_owned())] }
        }
        _ => Entry { name: last, versions: vec![(1, directory.to_owned())] },
    }
}

fn directories(path: &Path) -> Result<Vec<(String, PathBuf)>, ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn versions(path: &Path) -> Result<Vec<(i64, PathBuf)>, ModelError> {
    let mut found: Vec<(i64, PathBuf)> = directories(path)?
        .into_iter()
        .filter_map(|(name, path)| Some((name.parse::<i64>().ok().filter(|v| *v >= 0)?, path)))
        .filter(|(_, path)| import::model_file(path).is_some())
        .collect();
    found.sort();
    Ok(found)
}

fn models(root: &Path) -> Result<Vec<Entry>, ModelError> {
    let mut entries = Vec::new();
    for (name, path) in directories(root)? {
        let versions = versions(&path)?;
        if !versions.is_empty() {
            entries.push(Entry { name, versions });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path, path: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, b"").unwrap();
    }

    #[test]
    fn models_and_versions_are_found_in_order_and_other_things_ignored() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "b/2/model.pt2",
            "b/10/model.pt2",
            "a/1/model.pt2",
            "a/draft/model.pt2",
            "c/1/other.txt",
            ".git/1/model.pt2",
        ] {
            place(root.path(), path);
        }
        let repository = Repository::open(root.path()).unwrap();
        let names: Vec<_> = repository.entries().iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(repository.entries()[1].newest().0, 10);
    }

    #[test]
    fn one_version_and_one_model_open_under_their_names() {
        let root = tempfile::tempdir().unwrap();
        place(root.path(), "net/3/model.pt2");
        for path in [root.path().join("net"), root.path().join("net/3")] {
            let repository = Repository::open(&path).unwrap();
            assert_eq!((repository.entries()[0].name.as_str(), repository.entries()[0].newest().0), ("net", 3));
        }
    }

    #[test]
    fn a_directory_without_models_says_what_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let error = Repository::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("NAME/VERSION/model.pt2"), "{error}");
    }
}
