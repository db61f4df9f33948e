//! `camlens import`: a model file becomes a directory that `camlens serve` takes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Exit, Failure};
use crate::model::description::Description;
use crate::model::facts::{Facts, LABELS_FILE};
use crate::model::import::{self, identity};
use crate::model::{LoadLimits, Metadata, Model};

/// Put a model file into a directory of models, with a model.toml of what the file and those beside it say
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens import resnet50.onnx
  camlens import downloads/model.onnx --name bird --models models
  camlens import triton/densenet/1/model.onnx --name densenet

Read: the metadata in the file (Ultralytics), config.json (timm, Hugging Face), preprocessor_config.json (Hugging Face),
and config.pbtxt (Triton), beside the file. Each value in model.toml has a comment that says from what it was guessed;
what is not known is a comment. Then: camlens doctor, camlens serve.")]
pub struct ImportCommand {
    /// The model: an .onnx or a .pt2 file
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Name of the model [default: the file's, or its folder's if the file is called model]
    #[arg(long, env = "CAMLENS_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Version of the model [default: one more than the newest that is there]
    #[arg(long, env = "CAMLENS_VERSION", value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    version: Option<i64>,

    /// Directory of models to write to
    #[arg(long, env = "CAMLENS_MODELS", value_name = "DIR", default_value = "models")]
    models: PathBuf,
}

impl ImportCommand {
    pub fn run(self) -> Result<(), Failure> {
        let refuse = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", self.file.display()));
        if identity::is_builtin(&self.file) || !self.file.is_file() {
            return Err(refuse(&"is no file; name the model's file, such as model.onnx"));
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => default_name(&self.file),
        };
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Failure::usage(format!("{name:?} is no name of a model: a directory cannot have it")));
        }
        let version = match self.version {
            Some(version) => version,
            None => next_version(&self.models.join(&name)).map_err(|error| refuse(&error))?,
        };
        let target = self.models.join(&name).join(version.to_string());
        if target.exists() {
            return Err(Failure::usage(format!("{} is there already", target.display()))
                .hint("--version names another version"));
        }
        let limits = LoadLimits::default();
        let mut facts = Facts::gather(&self.file, &limits).map_err(|error| refuse(&error))?;
        let folder = Folder::new(&self.models.join(&name))?;
        copy(&self.file, &folder.path, &limits).map_err(|error| refuse(&error))?;
        let source = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // First without a description: what contradicts the model is left out.
        let model = load(&name, version, &folder.path)?;
        facts.check(&model);
        let labels = facts.labels.as_ref().map(|labels| labels.value.join("\n") + "\n");
        if let Some(labels) = labels {
            fs::write(folder.path.join(LABELS_FILE), labels)?;
        }
        fs::write(folder.path.join(Description::FILE_NAME), facts.model_toml(&source))?;
        let model = load(&name, version, &folder.path)?;
        folder.becomes(&target)?;
        io::stdout().lock().write_all(report(&model, &facts, &target, &self.models).as_bytes())?;
        Ok(())
    }
}

fn load(name: &str, version: i64, folder: &Path) -> Result<Metadata, Failure> {
    let loaded = Model::load(name, version, folder, &LoadLimits::default());
    let model =
        loaded.map_err(|error| Failure::new(Exit::Partly, format!("the model cannot be explained: {error}")))?;
    Ok(model.metadata.as_ref().clone())
}

/// The file's name without its extension; that of its folder, or of the folder around a version, for a file called
/// `model`.
fn default_name(file: &Path) -> String {
    let absolute = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if stem != "model" {
        return stem;
    }
    let is_number = |name: &str| name.parse::<i64>().is_ok();
    let mut folders = absolute.ancestors().skip(1).filter_map(|folder| folder.file_name()?.to_str());
    folders.find(|name| !is_number(name)).unwrap_or("model").to_owned()
}

/// One more than the newest version in a model's directory.
fn next_version(model: &Path) -> io::Result<i64> {
    let entries = match fs::read_dir(model) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(1),
        Err(error) => return Err(error),
    };
    let versions = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i64>().ok());
    Ok(versions.max().map_or(1, |newest| newest.max(0).saturating_add(1)))
}

/// Copies a model's file, under the name that its importer looks for, and the files beside it that hold its weights.
fn copy(file: &Path, folder: &Path, limits: &LoadLimits) -> Result<(), Box<dyn std::error::Error>> {
    let found = import::files(file, limits)?;
    fs::copy(file, folder.join(found.name))?;
    for (relative, path) in found.weights {
        let target = folder.join(relative);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(path, target)?;
    }
    Ok(())
}

/// A hidden folder in a model's directory, which becomes a version at once, when it is whole.
struct Folder {
    path: PathBuf,
    /// The model's directory, if this import made it: a failed import removes it again.
    made: Option<PathBuf>,
}

impl Folder {
    fn new(model: &Path) -> Result<Self, Failure> {
        let made = (!model.exists()).then(|| model.to_owned());
        let path = model.join(format!(".import-{}", std::process::id()));
        let cannot = |error: io::Error| Failure::failed(format!("{}: {error}", model.display()));
        fs::create_dir_all(&path).map_err(cannot)?;
        Ok(Folder { path, made })
    }

    fn becomes(mut self, version: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, version).map_err(|error| Failure::failed(format!("{}: {error}", version.display())))?;
        self.made = None;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After an error: what is left says nothing.
        let _ = fs::remove_dir_all(&self.path);
        if let Some(model) = &self.made {
            let _ = fs::remove_dir(model);
        }
    }
}

fn report(model: &Metadata, facts: &Facts, target: &Path, models: &Path) -> String {
    let mut lines = vec![format!("{}@{} is at {}", model.name, model.version, target.display())];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<14} {value}"));
    let size: Vec<String> = model
        .input
        .shape
        .iter()
        .map(|side| side.fixed().map_or_else(|| "any".to_owned(), |side| side.to_string()))
        .collect();
    fact("input", format!("{} [{}]", model.input.name, size.join(", ")));
    fact("classes", model.class_count().map_or_else(|| "unknown before the first frame".to_owned(), |c| c.to_string()));
    let from = |from: Option<&String>| from.map_or_else(|| "not known".to_owned(), |from| format!("from {from}"));
    fact("labels", from(facts.labels.as_ref().map(|found| &found.from)));
    fact("size", from(facts.resize.as_ref().map(|found| &found.from)));
    fact(
        "normalisation",
        match &facts.mean {
            Some(found) => format!("from {}", found.from),
            None => "not known: pixels are divided by 255, and nothing is subtracted".to_owned(),
        },
    );
    fact(
        "target layer",
        match (model.default_target_layers.as_slice(), &model.default_target_problem) {
            ([], problem) => format!("none by default: {}", problem.as_deref().unwrap_or_default()),
            (layers, _) => layers.join(", "),
        },
    );
    for remark in &facts.remarks {
        fact("note", remark.clone());
    }
    lines.push(format!("Look through {}, then:", target.join(Description::FILE_NAME).display()));
    lines.push(format!("  camlens doctor {}", target.display()));
    lines.push(format!("  camlens explain photo.jpg --models {} --model {}", models.display(), model.name));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
    }

    fn import(file: &Path, models: &Path) -> Result<(), Failure> {
        ImportCommand { file: file.to_owned(), name: None, version: None, models: models.to_owned() }.run()
    }

    #[test]
    fn a_file_becomes_a_version_with_what_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (models, download) = (folder.path().join("models"), folder.path().join("pets"));
        fs::create_dir(&download).unwrap();
        fs::copy(fixture("onnx/twins/newer/resnet_basic.onnx"), download.join("model.onnx")).unwrap();
        let labels: Vec<String> = (0..10).map(|class| format!("\"{class}\": \"pet {class}\"")).collect();
        fs::write(download.join("config.json"), format!("{{\"id2label\": {{{}}}}}", labels.join(", "))).unwrap();
        fs::write(download.join("preprocessor_config.json"), "{\"image_mean\": [0.5], \"image_std\": [0.25]}").unwrap();
        for version in [1, 2] {
            import(&download.join("model.onnx"), &models).unwrap();
            let model = load("pets", version, &models.join("pets").join(version.to_string())).unwrap();
            assert_eq!((model.labels[3].as_str(), model.preprocessing.std.as_slice()), ("pet 3", &[0.25][..]));
        }
        let hidden = fs::read_dir(models.join("pets")).unwrap().flatten();
        assert_eq!(hidden.count(), 2, "nothing else is left");
    }

    #[test]
    fn weights_beside_the_file_are_copied_with_it() {
        let folder = tempfile::tempdir().unwrap();
        import(&fixture("onnx/edge/external.onnx"), folder.path()).unwrap();
        assert!(folder.path().join("external/1/external.data").is_file());
        load("external", 1, &folder.path().join("external/1")).unwrap();
    }

    #[test]
    fn what_cannot_be_explained_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("broken.onnx");
        fs::write(&file, b"\x08\x07").unwrap();
        let models = folder.path().join("models");
        assert!(import(&file, &models).is_err());
        assert!(!models.join("broken").exists());
        assert!(import(&folder.path().join("none.onnx"), &models).is_err());
        let command = ImportCommand { file, name: Some("../x".to_owned()), version: None, models };
        let failure = format!("{:?}", command.run().unwrap_err());
        assert!(failure.contains("no name of a model"), "{failure}");
    }

    #[test]
    fn a_file_called_model_is_named_after_its_folder() {
        assert_eq!(default_name(Path::new("a/resnet50.onnx")), "resnet50");
        assert_eq!(default_name(Path::new("/repository/densenet/12/model.onnx")), "densenet");
        assert_eq!(default_name(Path::new("/1/model.onnx")), "model");
    }
}
