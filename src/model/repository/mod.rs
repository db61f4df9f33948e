//! A directory of models: `NAME/VERSION/`, with the file of an importer in it.
//!
//! A model's directory may have a `config.pbtxt` of Triton Inference Server (`triton`); what that says of labels,
//! sizes and versions then holds. `version` puts together the files of one version. What a repository that changes asks
//! for is decided by [`Follower`], from `files`' stamps: it knows neither clock nor thread.

mod files;
mod follow;
mod text_format;
mod triton;
mod version;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::ModelError;
use super::import::{self, identity, other_formats};
use triton::TritonConfig;

pub use files::{Stamp, contents};
pub use follow::{Follower, Found, Look, Order, State, Task, VersionKey};
pub(super) use version::VersionFiles;

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

/// The name of a model and a version of it; without one, all of the model.
pub type ProblemKey = (String, Option<i64>);

/// The models under a directory.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    entries: Vec<Entry>,
    problems: BTreeMap<ProblemKey, String>,
}

impl Repository {
    /// Looks for models under `root`: a repository (`NAME/VERSION/model.pt2`), one model (`VERSION/model.pt2`), one
    /// version (`model.pt2`), a bare model file, or the built-in model by the name of [`identity::PLACE`]. Nothing is
    /// loaded.
    ///
    /// # Errors
    /// When there is no model that could be loaded.
    pub fn open(root: &Path) -> Result<Self, ModelError> {
        let repository = Self::look(root)?;
        if !repository.entries.is_empty() {
            return Ok(repository);
        }
        let problem = match repository.problems.iter().next() {
            Some(((name, _), problem)) => format!("holds no model that camlens reads: {name}: {problem}"),
            None => {
                let looked_for = import::file_names();
                let found = other_formats::find(root)
                    .map(|(path, format)| format!("; {} is {format}", path.display()))
                    .unwrap_or_default();
                format!("holds no model: NAME/VERSION/{looked_for} was looked for, with an integer as VERSION{found}")
            }
        };
        Err(ModelError::Repository { path: root.to_owned(), problem })
    }

    /// As [`Repository::open`], of a directory that may be empty now.
    ///
    /// # Errors
    /// When `root` is not there or cannot be read.
    pub fn look(root: &Path) -> Result<Self, ModelError> {
        if identity::is_builtin(root) {
            let versions = vec![(1, identity::place(root)?)];
            let entries = vec![Entry { name: identity::NAME.to_owned(), versions }];
            return Ok(Repository { entries, ..Repository::default() });
        }
        if !root.exists() {
            return Err(ModelError::Repository { path: root.to_owned(), problem: "does not exist".to_owned() });
        }
        let one = |entry| Repository { entries: vec![entry], ..Repository::default() };
        if root.is_file() {
            return Ok(one(Entry { name: stem(root), versions: vec![(1, root.to_owned())] }));
        }
        if import::model_file(root).is_some() {
            return Ok(one(one_version(root)));
        }
        let mut repository = Repository::default();
        // What a link leads to now is looked at as a whole, even if the link is swapped meanwhile.
        let root = fs::canonicalize(root).map_err(|source| ModelError::Read { path: root.to_owned(), source })?;
        let has_model = |(_, path): &(i64, PathBuf)| import::model_file(path).is_some();
        // A model may be called 7.
        if root.join(triton::FILE_NAME).is_file() || numbered(&root)?.iter().any(has_model) {
            repository.add(stem(&root), &root);
            return Ok(repository);
        }
        for (name, path) in directories(&root)? {
            repository.add(name, &path);
        }
        Ok(repository)
    }

    /// By name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is there and cannot be loaded as it is, and why.
    pub fn problems(&self) -> &BTreeMap<ProblemKey, String> {
        &self.problems
    }

    /// Adds the versions in a model's directory.
    fn add(&mut self, name: String, directory: &Path) {
        let found = TritonConfig::read(directory).and_then(|config| Ok((config, numbered(directory)?)));
        let (config, numbered) = match found {
            Ok(found) => found,
            Err(error) => {
                self.problems.insert((name, None), error.to_string());
                return;
            }
        };
        let all: Vec<i64> = numbered.iter().map(|(version, _)| *version).collect();
        let mut versions = Vec::new();
        for (version, path) in numbered {
            let problem = match &config {
                Some(config) if !config.version_policy.serves(version, &all) => continue,
                Some(config) => config.model_file(&path).err(),
                None if import::model_file(&path).is_some() => None,
                None => match other_formats::find(&path) {
                    Some((file, format)) => {
                        let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        Some(format!("{file} is {format}"))
                    }
                    // No model at all.
                    None => continue,
                },
            };
            match problem {
                Some(problem) => drop(self.problems.insert((name.clone(), Some(version)), problem)),
                None => versions.push((version, path)),
            }
        }
        if let Some(config) = config.filter(|_| all.is_empty()) {
            let problem = format!("it has a {} and no version, a directory whose name is a number", triton::FILE_NAME);
            self.problems
                .insert((name, None), if config.is_ensemble() { triton::ENSEMBLE.to_owned() } else { problem });
        } else if !versions.is_empty() {
            self.entries.push(Entry { name, versions });
        }
    }
}

/// The version that a directory's name is.
fn is_version(directory: &Path) -> Option<i64> {
    let name = directory.file_name()?.to_str()?;
    // Neither `+1` nor `01`: they would be the version `1`.
    name.parse().ok().filter(|version: &i64| *version >= 0 && version.to_string() == name)
}

fn stem(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    absolute.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned())
}

/// `…/NAME/VERSION`, or a directory of another name.
fn one_version(directory: &Path) -> Entry {
    let absolute = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let last = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match (is_version(&absolute), absolute.parent().and_then(Path::file_name)) {
        (Some(version), Some(name)) => {
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

/// The directories whose names are versions, in ascending order.
fn numbered(path: &Path) -> Result<Vec<(i64, PathBuf)>, ModelError> {
    let directories = directories(path)?.into_iter();
    let mut found: Vec<(i64, PathBuf)> = directories.filter_map(|(_, path)| Some((is_version(&path)?, path))).collect();
    found.sort();
    Ok(found)
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
        place(root.path(), "7/2/model.pt2");
        let repository = Repository::open(root.path()).unwrap();
        assert_eq!(repository.entries().iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["7", "net"]);
    }

    #[test]
    fn a_directory_without_models_says_what_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let error = Repository::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("NAME/VERSION/model.pt2"), "{error}");
    }

    #[test]
    fn a_repository_of_triton_is_taken_as_it_is_and_what_cannot_be_read_is_listed_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "onnx/1/model.onnx",
            "onnx/2/model.onnx",
            "onnx/3/model.onnx",
            "named/1/net.onnx",
            "engine/1/model.plan",
            "twin/4/model.plan",
            "twin/4/model.pt2",
            "script/1/model.pt",
            "broken/1/model.onnx",
            "plain/1/model.savedmodel/saved_model.pb",
            "plain/2/model.pt2",
            "nothing/1/notes.txt",
            "odd/01/model.onnx",
        ] {
            place(root.path(), path);
        }
        fs::create_dir_all(root.path().join("steps/1")).unwrap();
        fs::create_dir_all(root.path().join("whole")).unwrap();
        for (name, text) in [
            ("onnx", "platform: \"onnxruntime_onnx\" version_policy { latest { num_versions: 2 } }"),
            ("named", "backend: \"onnxruntime\" default_model_filename: \"net.onnx\""),
            ("engine", "platform: \"tensorrt_plan\""),
            ("twin", "platform: \"tensorrt_plan\""),
            ("script", "platform: \"pytorch_libtorch\""),
            ("broken", "name: \"another\""),
            ("steps", "platform: \"ensemble\""),
            ("whole", "platform: \"ensemble\""),
        ] {
            fs::write(root.path().join(name).join("config.pbtxt"), text).unwrap();
        }
        let repository = Repository::open(root.path()).unwrap();
        let found: Vec<_> = repository
            .entries()
            .iter()
            .map(|entry| (entry.name.as_str(), entry.versions.iter().map(|(version, _)| *version).collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, [("named", vec![1]), ("onnx", vec![2, 3]), ("plain", vec![2]), ("twin", vec![4])]);
        for (name, version, says) in [
            ("broken", None, "another"),
            ("engine", Some(1), "engines of TensorRT"),
            ("plain", Some(1), "SavedModel"),
            ("script", Some(1), "TorchScript"),
            ("steps", Some(1), "ensemble"),
            ("whole", None, "ensemble"),
        ] {
            let problem = &repository.problems()[&(name.to_owned(), version)];
            assert!(problem.contains(says), "{name}: {problem}");
        }
        assert_eq!(repository.problems().len(), 6);
    }

    #[test]
    fn a_repository_in_which_nothing_can_be_read_gives_the_first_reason() {
        let root = tempfile::tempdir().unwrap();
        place(root.path(), "engine/1/model.plan");
        let error = Repository::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("engine: model.plan is an engine of TensorRT"), "{error}");
        assert!(Repository::look(root.path()).unwrap().entries().is_empty());
        assert!(Repository::look(&root.path().join("none")).is_err());
    }
}
