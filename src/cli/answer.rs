//! Writes an explanation to files and as JSON.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::failure::Failure;
use crate::client::names;
use crate::proto::v1;
use crate::render::npy;

/// The folder for the pictures and maps of answers.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    used: HashSet<String>,
}

/// A written file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// `overlay`, `grad_cam`, …
    pub kind: String,
    pub path: PathBuf,
}

impl OutputFolder {
    /// Creates the folder and its parents where they do not exist.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(path).map_err(|error| Failure::from_io("create the folder", path, &error))?;
        Ok(OutputFolder { path: path.to_owned(), used: HashSet::new() })
    }

    /// A prefix for the names of one frame's files, unique in this folder.
    pub fn stem(&mut self, name: &str) -> String {
        let name = slug(name);
        let mut stem = name.clone();
        let mut count = 1;
        while !self.used.insert(stem.clone()) {
            count += 1;
            stem = format!("{name}-{count}");
        }
        stem
    }

    /// A prefix for the names of a stream's frame: unique in this folder, since its sequence is. Names are not kept: a
    /// camera's stream has no end.
    pub fn stem_of(&self, sequence: u64, name: &str) -> String {
        slug(&format!("{sequence:06}-{name}"))
    }

    /// Writes the pictures of an answer, and the first `maps` maps of each target. Returns the files of each target.
    pub fn write(&self, stem: &str, answer: &v1::Explanation, maps: usize) -> Result<Vec<Vec<Written>>, Failure> {
        let single = answer.targets.len() == 1;
        let write_target = |(index, target): (usize, &v1::TargetExplanation)| {
            let stem = if single { stem.to_owned() } else { format!("{stem}.{}-{}", index + 1, target_slug(target)) };
            self.write_target(&stem, target, maps)
        };
        answer.targets.iter().enumerate().map(write_target).collect()
    }

    fn write_target(&self, stem: &str, target: &v1::TargetExplanation, maps: usize) -> Result<Vec<Written>, Failure> {
        let mut written = Vec::new();
        for picture in &target.pictures {
            let kind = names::picture(picture.picture);
            let (extension, _) = names::image_format(picture.format);
            let path = self.path.join(format!("{stem}.{kind}.{extension}"));
            fs::write(&path, &picture.data).map_err(|error| Failure::from_io("write", &path, &error))?;
            written.push(Written { kind, path });
        }
        for map in target.tensors.iter().take(maps) {
            let kind = names::map(map.map);
            let path = self.path.join(format!("{stem}.{kind}.npy"));
            let bytes = npy_bytes(map.tensor.as_ref()).ok_or_else(|| {
                Failure::failed(format!("the server sent a {kind} map whose data does not match its shape"))
            })?;
            fs::write(&path, bytes).map_err(|error| Failure::from_io("write", &path, &error))?;
            written.push(Written { kind, path });
        }
        Ok(written)
    }
}

/// A float32 tensor as a `.npy` file. None: it has another type, or its data does not match its shape.
fn npy_bytes(tensor: Option<&v1::Tensor>) -> Option<Vec<u8>> {
    let tensor = tensor?;
    let float = [v1::ElementType::Unspecified as i32, v1::ElementType::Float32 as i32].contains(&tensor.element_type);
    let shape: Vec<usize> = tensor.shape.iter().map(|&size| size as usize).collect();
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
    if !float || count.checked_mul(4)? != tensor.data.len() {
        return None;
    }
    let data: Vec<f32> = tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut bytes = Vec::new();
    npy::write(&mut bytes, &shape, &data).ok()?;
    Some(bytes)
}

fn target_slug(target: &v1::TargetExplanation) -> String {
    let class = if target.label.is_empty() { target.class_index.to_string() } else { slug(&target.label) };
    if target.target_layer.is_empty() { class } else { format!("{class}.{}", slug(&target.target_layer)) }
}

/// A valid file name on every file system: letters, digits, and `-` `_` `.` inside; other characters become `-`.
pub fn slug(text: &str) -> String {
    let kept: String =
        text.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' }).collect();
    // 40 characters: well below the limit of 255 bytes of common file systems.
    let cut: String = kept.trim_matches(['-', '.']).chars().take(40).collect();
    if cut.is_empty() { "frame".to_owned() } else { cut }
}

/// The label of a class, or its index where it has no label.
pub fn class_name(label: &str, class_index: u32) -> String {
    if label.is_empty() { format!("class {class_index}") } else { label.to_owned() }
}

/// An answer as JSON, with the paths of its files.
pub fn to_json(answer: &v1::Explanation, written: &[Vec<Written>]) -> Value {
    let predictions: Vec<Value> = answer.predictions.iter().map(prediction_json).collect();
    let targets: Vec<Value> = answer
        .targets
        .iter()
        .enumerate()
        .map(|(index, target)| {
            let files: serde_json::Map<_, _> = written
                .get(index)
                .into_iter()
                .flatten()
                .map(|file| (file.kind.clone(), file.path.display().to_string().into()))
                .collect();
            json!({
                "class_index": target.class_index,
                "label": target.label,
                "score": target.score,
                "target_layer": target.target_layer,
                "files": files,
            })
        })
        .collect();
    let timings: serde_json::Map<_, _> =
        answer.timings.iter().map(|t| (names::stage(t.stage), (t.duration_ns as f64 / 1e6).into())).collect();
    let notices: Vec<Value> = answer
        .notices
        .iter()
        .map(|notice| json!({"code": names::notice(notice.code), "message": notice.message}))
        .collect();
    json!({
        "sequence": answer.sequence,
        "trace_id": answer.trace_id,
        "model": answer.model.as_ref().map(identity_json),
        "predictions": predictions,
        "targets": targets,
        "timings_ms": timings,
        "batch_size": answer.batch_size,
        "notices": notices,
        "agreement": answer.agreement.as_ref().map(agreement_json),
    })
}

fn agreement_json(found: &v1::Agreement) -> Value {
    let prediction = |prediction: &Option<v1::Prediction>| prediction.as_ref().map(prediction_json);
    json!({
        "agrees": found.agrees,
        "top": prediction(&found.top),
        "own": prediction(&found.own),
        "expected_probability": found.expected_probability,
        "compares_probabilities": found.compares_probabilities,
        "tolerance": found.tolerance,
    })
}

fn prediction_json(p: &v1::Prediction) -> Value {
    json!({"class_index": p.class_index, "label": p.label, "logit": p.logit, "probability": p.probability})
}

pub fn identity_json(model: &v1::ModelIdentity) -> Value {
    json!({
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "precision": names::precision(model.precision),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(targets: usize) -> v1::Explanation {
        let target = |index: usize| v1::TargetExplanation {
            class_index: index as u32,
            label: "tiger, cat".to_owned(),
            target_layer: "layer4.2.relu@0".to_owned(),
            pictures: vec![v1::EncodedPicture {
                picture: v1::Picture::Overlay as i32,
                format: v1::ImageFormat::Png as i32,
                data: vec![index as u8].into(),
                ..Default::default()
            }],
            tensors: vec![v1::MapTensor {
                map: v1::Map::GradCam as i32,
                tensor: Some(v1::Tensor { shape: vec![1, 2], data: vec![0; 8].into(), ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        };
        v1::Explanation { targets: (0..targets).map(target).collect(), ..Default::default() }
    }

    #[test]
    fn file_names_contain_the_class_only_where_there_are_several_targets() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = OutputFolder::create(&folder.path().join("new/out")).expect("a folder");
        let names = |count: usize| -> Vec<String> {
            let written = out.write("cat", &answer(count), 1).expect("written files");
            written.into_iter().flatten().map(|file| super::super::source::file_name(&file.path)).collect()
        };
        assert_eq!(names(1), ["cat.overlay.png", "cat.grad_cam.npy"]);
        assert_eq!(names(2)[2], "cat.2-tiger--cat.layer4.2.relu-0.overlay.png");
        let map = npy::read(&fs::read(folder.path().join("new/out/cat.grad_cam.npy")).expect("a file")[..])
            .expect("an array");
        assert_eq!(map.shape, [1, 2]);
    }

    #[test]
    fn stems_are_unique() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut out = OutputFolder::create(folder.path()).expect("a folder");
        assert_eq!([out.stem("cat"), out.stem("cat"), out.stem("../cat")], ["cat", "cat-2", "cat-3"]);
    }

    #[test]
    fn a_map_whose_data_does_not_match_its_shape_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = OutputFolder::create(folder.path()).expect("a folder");
        let mut answer = answer(1);
        answer.targets[0].tensors[0].tensor =
            Some(v1::Tensor { shape: vec![3], data: vec![0; 8].into(), ..Default::default() });
        let failure = out.write("cat", &answer, 1).expect_err("the shape needs 12 bytes").to_string();
        assert!(failure.contains("grad_cam"), "{failure}");
    }

    #[test]
    fn a_slug_has_no_path_separators_and_at_most_40_characters() {
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("..."), "frame");
        assert_eq!(slug(&"x".repeat(300)).len(), 40);
    }

    #[test]
    fn the_json_lists_the_files_of_each_target() {
        let written = vec![vec![Written { kind: "overlay".to_owned(), path: "out/cat.png".into() }]];
        let json = to_json(&answer(1), &written);
        assert_eq!(json["targets"][0]["files"]["overlay"], "out/cat.png");
    }
}
