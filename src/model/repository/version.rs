//! The files of one version: the model's own, and what describes it.

use std::path::{Path, PathBuf};

use super::is_version;
use super::triton::{FILE_NAME, TritonConfig};
use crate::model::ModelError;
use crate::model::description::{Description, Loaded};
use crate::model::import::{self, PictureSize};

/// What a version is loaded from.
pub struct VersionFiles {
    /// The file that an importer reads.
    pub model: PathBuf,
    pub loaded: Loaded,
    /// The usual size of a picture, where the description or the model server's configuration says it.
    pub picture: PictureSize,
    /// What a person should know.
    pub notices: Vec<String>,
}

impl VersionFiles {
    /// A model without a file.
    pub fn described(loaded: Loaded) -> Self {
        VersionFiles { model: PathBuf::new(), loaded, picture: None, notices: Vec::new() }
    }

    /// What the configuration of a model server says of a version, without a `model.toml`; `None`: there is none.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn of_server(version_directory: &Path) -> Result<Option<Self>, ModelError> {
        let of_model = is_version(version_directory).and_then(|_| version_directory.parent());
        let Some(directory) = of_model else { return Ok(None) };
        let Some(config) = TritonConfig::read(directory)? else { return Ok(None) };
        let mut loaded = Loaded::default();
        fill(&mut loaded, &config, directory)?;
        Ok(Some(VersionFiles { picture: config.picture_size(), ..Self::described(loaded) }))
    }

    /// The files of a version's directory, or of a bare model file. A `model.toml` in the model's directory describes
    /// every version that has none of its own. What neither says is taken from the model server's `config.pbtxt`.
    ///
    /// # Errors
    /// A description that cannot be read.
    pub fn find(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Ok(VersionFiles { model: path.to_owned(), ..Self::described(Loaded::default()) });
        }
        let of_model = is_version(path).and_then(|_| path.parent());
        let shared = of_model.filter(|_| !path.join(Description::FILE_NAME).exists());
        let shared = shared.filter(|directory| directory.join(Description::FILE_NAME).exists());
        let mut loaded = Description::load(shared.unwrap_or(path))?;
        let config = of_model.map(TritonConfig::read).transpose()?.flatten();
        let mut picture = loaded.description.input.picture_size();
        let mut notices = Vec::new();
        let missing = || path.join(import::file_names());
        let model = match (config, of_model) {
            (Some(config), Some(directory)) => {
                fill(&mut loaded, &config, directory)?;
                picture = picture.or(config.picture_size());
                if !loaded.path.exists() {
                    notices.push(format!(
                        "{FILE_NAME} does not say how a picture becomes the model's input: it is resized and divided \
                         by 255, unless a model.toml says otherwise"
                    ));
                }
                config.model_file(path).unwrap_or_else(|_| missing())
            }
            _ => import::model_file(path).unwrap_or_else(missing),
        };
        Ok(VersionFiles { model, loaded, picture, notices })
    }
}

/// Fills what a description leaves open with what a model server's configuration says.
fn fill(loaded: &mut Loaded, config: &TritonConfig, directory: &Path) -> Result<(), ModelError> {
    let description = &mut loaded.description;
    let output = match &description.output.logits {
        Some(name) => config.outputs.iter().find(|output| output.name == *name),
        None => config.outputs.iter().find(|output| !output.label_filename.is_empty()),
    };
    if let Some(output) = output.filter(|output| !output.label_filename.is_empty()) {
        // Among several outputs, the one with labels has the classes.
        if description.output.logits.is_none() && config.outputs.len() > 1 {
            description.output.logits = Some(output.name.clone());
        }
        if loaded.labels.is_empty() {
            loaded.labels = Description::read_labels(&directory.join(FILE_NAME), &output.label_filename)?;
        }
    }
    if description.limits.max_batch.is_none() && config.max_batch_size > 0 {
        description.limits.max_batch = Some(config.max_batch_size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_version_takes_what_its_own_description_leaves_open_from_the_models_and_from_the_servers() {
        let root = tempfile::tempdir().unwrap();
        let (model, version) = (root.path().join("net"), root.path().join("net/3"));
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("model.onnx"), b"").unwrap();
        let config = "backend: \"onnxruntime\" max_batch_size: 4 input { name: \"x\" dims: [3, 90, 120] }
            output [ { name: \"features\" dims: [8] }, { name: \"y\" dims: [2] label_filename: \"labels.txt\" } ]";
        fs::write(model.join(FILE_NAME), config).unwrap();
        let missing = VersionFiles::find(&version).err().unwrap().to_string();
        assert!(missing.contains("labels.txt"), "{missing}");
        fs::write(model.join("labels.txt"), "cat\ndog\n").unwrap();
        let found = VersionFiles::find(&version).unwrap();
        assert_eq!((found.model, found.picture), (version.join("model.onnx"), Some([90, 120])));
        assert_eq!(found.loaded.labels, ["cat", "dog"]);
        let description = &found.loaded.description;
        assert_eq!((description.output.logits.as_deref(), description.limits.max_batch), (Some("y"), Some(4)));
        assert!(found.notices[0].contains("divided by 255"), "{:?}", found.notices);

        fs::write(model.join("model.toml"), "[output]\nlabels = [\"a\", \"b\"]\n[limits]\nmax_batch = 2\n").unwrap();
        let found = VersionFiles::find(&version).unwrap();
        assert_eq!(
            (found.loaded.labels, found.loaded.description.limits.max_batch),
            (vec!["a".into(), "b".into()], Some(2))
        );
        assert!(found.notices.is_empty());

        fs::write(version.join("model.toml"), "[input]\ncrop = [60, 80]\n").unwrap();
        let found = VersionFiles::find(&version).unwrap();
        assert_eq!((found.loaded.labels, found.picture), (vec!["cat".to_owned(), "dog".into()], Some([60, 80])));
    }

    #[test]
    fn a_labels_file_of_a_model_server_lies_in_the_models_directory() {
        let root = tempfile::tempdir().unwrap();
        let version = root.path().join("net/1");
        fs::create_dir_all(&version).unwrap();
        fs::write(root.path().join("net").join(FILE_NAME), "output { name: \"y\" label_filename: \"../l\" }").unwrap();
        let error = VersionFiles::find(&version).err().unwrap().to_string();
        assert!(error.contains(FILE_NAME) && error.contains("\"../l\""), "{error}");
    }
}
