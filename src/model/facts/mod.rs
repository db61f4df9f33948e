//! What a model's file, and the files beside it, say of preprocessing and labels: the first draft of a `model.toml`.
//!
//! A fact keeps where it was found. Nothing is invented: what is not found is written as a comment.

mod embedded;
mod known_configs;
mod text;

pub use text::LABELS_FILE;

use std::path::Path;

use super::description::{ColorOrder, Interpolation, Resize};
use super::import::onnx;
use super::repository::VersionFiles;
use super::{LoadLimits, Metadata, ModelError};

/// A value, and where it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact<T> {
    pub value: T,
    pub from: String,
}

/// What is known of a model besides its graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub summary: Option<Fact<String>>,
    pub resize: Option<Fact<Resize>>,
    pub crop: Option<Fact<[u32; 2]>>,
    pub interpolation: Option<Fact<Interpolation>>,
    pub color: Option<Fact<ColorOrder>>,
    pub mean: Option<Fact<Vec<f64>>>,
    pub std: Option<Fact<Vec<f64>>>,
    pub labels: Option<Fact<Vec<String>>>,
    /// The name of the output that has the classes.
    pub logits: Option<Fact<String>>,
    pub max_batch: Option<Fact<u32>>,
    /// What was found and cannot be written into a `model.toml`.
    pub remarks: Vec<String>,
}

impl Facts {
    /// Gathers what is said of a model: in the file itself, in the configuration files of timm, of Hugging Face and of
    /// Triton beside it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn gather(file: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        let mut facts = Facts::default();
        if file.extension().is_some_and(|extension| extension == "onnx") {
            facts.embedded(&onnx::file_facts(file, limits)?);
        }
        if let Some(directory) = file.parent() {
            facts.known_configs(directory)?;
            facts.served_with(directory)?;
        }
        Ok(facts)
    }

    /// What the configuration of a model server says of a version.
    fn served_with(&mut self, version_directory: &Path) -> Result<(), ModelError> {
        let Some(found) = VersionFiles::of_server(version_directory)? else { return Ok(()) };
        let from = "config.pbtxt";
        let description = found.loaded.description;
        if !found.loaded.labels.is_empty() {
            set(&mut self.labels, found.loaded.labels, from);
        }
        set_some(&mut self.logits, description.output.logits, from);
        set_some(&mut self.max_batch, description.limits.max_batch, from);
        if let Some(size) = found.picture {
            set(&mut self.resize, Resize::Exact(size), "config.pbtxt, the dimensions of the input");
        }
        Ok(())
    }

    /// Leaves out what contradicts the model as it was loaded, with a remark.
    pub fn check(&mut self, model: &Metadata) {
        let classes = model.class_count();
        if let (Some(labels), Some(classes)) = (&self.labels, classes)
            && labels.value.len() != classes as usize
        {
            let (count, from) = (labels.value.len(), &labels.from);
            self.remarks.push(format!("{count} labels were found ({from}), and the model has {classes} classes"));
            self.labels = None;
        }
        let [_, channels, height, width] = model.input.shape;
        for (key, list) in [("mean", &mut self.mean), ("std", &mut self.std)] {
            if let Some(found) = list
                && found.value.len() != 1
                && channels.fixed().is_some_and(|channels| channels != found.value.len() as i64)
            {
                let channels = channels.example();
                let count = found.value.len();
                self.remarks.push(format!("{key} has {count} numbers ({}), for {channels} channels", found.from));
                *list = None;
            }
        }
        if let (Some(crop), Some(fixed_height), Some(fixed_width)) = (&self.crop, height.fixed(), width.fixed())
            && crop.value.map(i64::from) != [fixed_height, fixed_width]
        {
            let [crop_height, crop_width] = crop.value;
            self.remarks.push(format!(
                "a crop of {crop_height} x {crop_width} was found ({}), and the model takes {fixed_height} x \
                 {fixed_width}",
                crop.from
            ));
            (self.crop, self.resize) = (None, None);
        }
    }
}

/// Sets what is not known yet.
fn set<T>(fact: &mut Option<Fact<T>>, value: T, from: &str) {
    fact.get_or_insert_with(|| Fact { value, from: from.to_owned() });
}

fn set_some<T>(fact: &mut Option<Fact<T>>, value: Option<T>, from: &str) {
    if let Some(value) = value {
        set(fact, value, from);
    }
}
