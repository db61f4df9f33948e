//! Configuration files beside a model: `config.json` of timm and of Hugging Face, `preprocessor_config.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Facts, set, set_some};
use crate::model::ModelError;
use crate::model::description::{Interpolation, Resize};

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

impl Facts {
    pub(super) fn known_configs(&mut self, directory: &Path) -> Result<(), ModelError> {
        if let Some(config) = read(&directory.join("config.json"))? {
            if let Some(pretrained) = config.get("pretrained_cfg").filter(|value| value.is_object()) {
                self.timm(pretrained, "config.json, `pretrained_cfg` (timm)");
                if let Some(name) = config.get("architecture").and_then(Value::as_str) {
                    set(&mut self.summary, format!("timm's {name}"), "config.json, `architecture`");
                }
            }
            self.labels_of(&config);
        }
        if let Some(config) = read(&directory.join("preprocessor_config.json"))? {
            self.preprocessor(&config, "preprocessor_config.json (Hugging Face)");
        }
        Ok(())
    }

    /// timm's evaluation: the shorter side is `size / crop_pct`, then the centre is cropped.
    fn timm(&mut self, config: &Value, from: &str) {
        let size = numbers(config.get("input_size"));
        let crop_share = config.get("crop_pct").and_then(Value::as_f64).filter(|share| *share > 0.0 && *share <= 1.0);
        let mode = config.get("crop_mode").and_then(Value::as_str).unwrap_or("center");
        if let [_, height, width] = size[..]
            && let Some([height, width]) = sides(height, width)
        {
            // As timm computes it.
            let scaled = |side: u32| (f64::from(side) / crop_share.unwrap_or(0.875)).floor() as u32;
            match mode {
                "center" if height == width => {
                    set(&mut self.resize, Resize::Shorter(scaled(height)), from);
                    set(&mut self.crop, [height, width], from);
                }
                "squash" => {
                    set(&mut self.resize, Resize::Exact([scaled(height), scaled(width)]), from);
                    set(&mut self.crop, [height, width], from);
                }
                other => {
                    self.remarks.push(format!("crop_mode {other:?} for {height} x {width} ({from}) is not written"))
                }
            }
        }
        let interpolation = config.get("interpolation").and_then(Value::as_str).and_then(|name| match name {
            "nearest" => Some(Interpolation::Nearest),
            "bilinear" => Some(Interpolation::Bilinear),
            "bicubic" => Some(Interpolation::Bicubic),
            "lanczos" => Some(Interpolation::Lanczos),
            _ => None,
        });
        set_some(&mut self.interpolation, interpolation, from);
        self.normalisation(config, ["mean", "std"], from);
    }

    /// An image processor of Hugging Face.
    fn preprocessor(&mut self, config: &Value, from: &str) {
        let flag = |name: &str| config.get(name).and_then(Value::as_bool);
        let factor = config.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0);
        if flag("do_rescale") == Some(false) || (factor * 255.0 - 1.0).abs() > 1e-3 {
            self.remarks.push(format!("pixels are not divided by 255 ({from}): model.toml cannot say that"));
            return;
        }
        if flag("do_resize") != Some(false) {
            let size = config.get("size");
            let of = |value: &Value| value.as_u64().and_then(|side| u32::try_from(side).ok());
            let named = |name: &str| size.and_then(|size| size.get(name)).and_then(of);
            let crop_share = config.get("crop_pct").and_then(Value::as_f64).filter(|share| *share > 0.0);
            match (named("shortest_edge"), named("height"), named("width"), size.and_then(of)) {
                // As ConvNeXt's processor does it below 384 pixels.
                (Some(side), ..) if crop_share.is_some() && side < 384 => {
                    let scaled = (f64::from(side) / crop_share.unwrap_or(1.0)) as u32;
                    set(&mut self.resize, Resize::Shorter(scaled), from);
                    set(&mut self.crop, [side, side], from);
                }
                (Some(side), ..) => set(&mut self.resize, Resize::Shorter(side), from),
                (None, Some(height), Some(width), _) => set(&mut self.resize, Resize::Exact([height, width]), from),
                (_, _, _, Some(side)) => set(&mut self.resize, Resize::Exact([side, side]), from),
                _ => {}
            }
        }
        if flag("do_center_crop") == Some(true) {
            let crop = config.get("crop_size");
            let of = |value: &Value| value.as_u64().and_then(|side| u32::try_from(side).ok());
            let named = |name: &str| crop.and_then(|crop| crop.get(name)).and_then(of);
            let crop = named("height").zip(named("width")).or_else(|| crop.and_then(of).map(|side| (side, side)));
            set_some(&mut self.crop, crop.map(|(height, width)| [height, width]), from);
        }
        // The numbers of Pillow's filters.
        let interpolation = config.get("resample").and_then(Value::as_u64).and_then(|number| match number {
            0 => Some(Interpolation::Nearest),
            1 => Some(Interpolation::Lanczos),
            2 => Some(Interpolation::Bilinear),
            3 => Some(Interpolation::Bicubic),
            _ => None,
        });
        set_some(&mut self.interpolation, interpolation, from);
        if flag("do_normalize") != Some(false) {
            self.normalisation(config, ["image_mean", "image_std"], from);
        }
    }

    fn normalisation(&mut self, config: &Value, [mean, std]: [&str; 2], from: &str) {
        let (mean, std) = (numbers(config.get(mean)), numbers(config.get(std)));
        if !mean.is_empty() && !std.is_empty() && std.iter().all(|deviation| *deviation > 0.0) {
            set(&mut self.mean, mean, from);
            set(&mut self.std, std, from);
        }
    }

    /// `label_names` of timm, or `id2label` of Hugging Face.
    fn labels_of(&mut self, config: &Value) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let named = config.get("label_names").or_else(|| config.get("pretrained_cfg")?.get("label_names"));
        if let Some(labels) = named.and_then(Value::as_array).and_then(|list| list.iter().map(text).collect()) {
            set(&mut self.labels, labels, "config.json, `label_names`");
        }
        if let Some(by_class) = config.get("id2label").and_then(Value::as_object) {
            let by_class: Option<BTreeMap<usize, String>> =
                by_class.iter().map(|(class, label)| Some((class.parse().ok()?, text(label)?))).collect();
            let whole = by_class.filter(|labels| labels.keys().copied().eq(0..labels.len()) && !labels.is_empty());
            set_some(&mut self.labels, whole.map(|labels| labels.into_values().collect()), "config.json, `id2label`");
        }
    }
}

fn numbers(value: Option<&Value>) -> Vec<f64> {
    value.and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_f64).collect()).unwrap_or_default()
}

fn sides(height: f64, width: f64) -> Option<[u32; 2]> {
    let side = |side: f64| (side.fract() == 0.0 && (1.0..=16384.0).contains(&side)).then_some(side as u32);
    Some([side(height)?, side(width)?])
}

/// The JSON of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Value>, ModelError> {
    let fail = |source| ModelError::Read { path: path.to_owned(), source };
    let length = match fs::metadata(path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let problem = |problem: String| ModelError::Description { path: path.to_owned(), problem };
    if length > MAX_BYTES {
        return Err(problem(format!("{length} bytes; at most {MAX_BYTES} are read")));
    }
    let bytes = fs::read(path).map_err(fail)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| problem(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gathered(files: &[(&str, Value)]) -> Facts {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let mut facts = Facts::default();
        facts.known_configs(folder.path()).unwrap();
        facts
    }

    #[test]
    fn a_config_of_timm_gives_its_evaluation() {
        let facts = gathered(&[(
            "config.json",
            json!({
                "architecture": "resnet18",
                "num_classes": 2,
                "label_names": ["cat", "dog"],
                "pretrained_cfg": {
                    "input_size": [3, 288, 288], "crop_pct": 0.95, "crop_mode": "center", "interpolation": "bicubic",
                    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]
                }
            }),
        )]);
        assert_eq!(facts.resize.unwrap().value, Resize::Shorter(303));
        assert_eq!(facts.crop.unwrap().value, [288, 288]);
        assert_eq!(facts.interpolation.unwrap().value, Interpolation::Bicubic);
        assert_eq!(facts.mean.unwrap().value, [0.485, 0.456, 0.406]);
        assert_eq!(facts.labels.unwrap().value, ["cat", "dog"]);
        assert_eq!(facts.summary.unwrap().value, "timm's resnet18");
    }

    #[test]
    fn an_image_processor_of_hugging_face_gives_sizes_normalisation_and_labels() {
        let facts = gathered(&[
            ("config.json", json!({"id2label": {"1": "dog", "0": "cat", "2": "eel"}})),
            (
                "preprocessor_config.json",
                json!({
                    "do_resize": true, "size": {"height": 90, "width": 120}, "do_normalize": true, "resample": 3,
                    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]
                }),
            ),
        ]);
        assert_eq!(facts.labels.unwrap().value, ["cat", "dog", "eel"]);
        assert_eq!(facts.resize.unwrap().value, Resize::Exact([90, 120]));
        assert_eq!(facts.std.unwrap().value, [0.25; 3]);
        assert_eq!(facts.interpolation.unwrap().value, Interpolation::Bicubic);
        let facts = gathered(&[(
            "preprocessor_config.json",
            json!({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_center_crop": false}),
        )]);
        assert_eq!((facts.resize.unwrap().value, facts.crop.unwrap().value), (Resize::Shorter(256), [224, 224]));
        let facts = gathered(&[(
            "preprocessor_config.json",
            json!({"size": {"shortest_edge": 256}, "do_center_crop": true, "crop_size": 224, "do_normalize": false,
                   "image_mean": [0.5], "image_std": [0.5]}),
        )]);
        assert_eq!((facts.crop.unwrap().value, facts.mean), ([224, 224], None));
        let facts = gathered(&[("preprocessor_config.json", json!({"do_rescale": false, "size": 224}))]);
        assert!(facts.resize.is_none() && facts.remarks[0].contains("255"));
    }

    #[test]
    fn a_file_that_is_no_json_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{").unwrap();
        let error = Facts::default().known_configs(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
    }
}
