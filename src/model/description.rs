//! `model.toml`: preprocessing, labels, target layers and precision, which a model file does not contain.
//!
//! Every key has a default; an unknown key is an error that suggests the nearest known key.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ModelError;

/// The whole of `model.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Description {
    /// One sentence about the model, for people.
    pub summary: String,
    /// The weights' licence and origin, for people.
    pub license: String,
    pub input: Preprocessing,
    pub output: OutputDescription,
    pub explain: ExplainDescription,
    pub limits: ModelLimits,
}

/// `[input]`: how an upright image of 8-bit pixels becomes the model's input. The steps, in order: resize, centre crop,
/// colour order, division by 255, subtraction of the mean, division by the standard deviation. The names and meanings
/// are torchvision's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocessing {
    /// `Resize`, in pixels: one number is the shorter side, two are `[height, width]`. Absent: the model's input size
    /// when the model fixes it, otherwise no resize.
    pub resize: Option<Resize>,
    /// `CenterCrop` to `[height, width]`, in pixels. Absent: no crop.
    pub crop: Option<[u32; 2]>,
    /// The bits that the samples of 16-bit PNGs use, where the files do not say so themselves (sBIT): 12 for a camera
    /// of 12 bits. Absent: 16.
    pub sample_bits: Option<u32>,
    pub interpolation: Interpolation,
    pub color: ColorOrder,
    /// Subtracted per channel after the division by 255. One number holds for every channel. Empty: 0.
    pub mean: Vec<f32>,
    /// Divides per channel after the subtraction of `mean`. One number holds for every channel. Empty: 1.
    pub std: Vec<f32>,
}

impl Preprocessing {
    /// Height and width of the model's input, if this says them.
    pub fn picture_size(&self) -> Option<[u32; 2]> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Some(Resize::Exact(size))) => Some(size),
            _ => None,
        }
    }
}

impl Default for Preprocessing {
    fn default() -> Self {
        Preprocessing {
            resize: None,
            crop: None,
            sample_bits: None,
            interpolation: Interpolation::Bilinear,
            color: ColorOrder::Rgb,
            mean: Vec::new(),
            std: Vec::new(),
        }
    }
}

/// The size that an image is resized to, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resize {
    /// The length of the shorter side; the longer one keeps the aspect ratio: `int(size · longer / shorter)`.
    Shorter(u32),
    /// `[height, width]`, whatever the aspect ratio.
    Exact([u32; 2]),
}

/// How pixels are resampled: as by Pillow and torchvision, with antialiasing except for `Nearest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
}

/// The colour channels of the model's input, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorOrder {
    Rgb,
    Bgr,
    /// One channel of luma (ITU-R 601, as Pillow's `L`).
    Gray,
}

/// `[output]`: the model's logits and their labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputDescription {
    /// The name of the output that is explained, when the model has several: `[N, classes]` of logits, or of what a
    /// last softmax or sigmoid makes of them, `[1 − p, p]` of one sigmoid included. Absent: the first output that has a
    /// gradient.
    pub logits: Option<String>,
    /// How logits become probabilities. Absent: as the model's last operator says; a model that ends in logits is taken
    /// for one of exclusive classes (softmax), or, with one logit, for a yes or no (sigmoid, always). What a model puts
    /// together from probabilities in another way has none.
    pub activation: Option<Activation>,
    /// A text file beside `model.toml` with one label a line, in class order.
    pub labels_file: Option<String>,
    /// Labels in class order, instead of a file.
    pub labels: Vec<String>,
}

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Over all classes: one of them is true.
    Softmax,
    /// Each class by itself: any number of them is true.
    Sigmoid,
    /// The values are no logits: there are no probabilities.
    None,
}

/// `[explain]`: the defaults of requests, and how target layers are read as feature maps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExplainDescription {
    /// Module paths of the target layers, for requests that name none. Empty: the last map on the way to the logits,
    /// which the classifier averages, flattens or attends to.
    pub target_layers: Vec<String>,
    /// Guide the gradient through smooth activations (SiLU, GELU, Hardswish) too.
    pub guide_smooth_activations: bool,
    /// `[height, width]` of the token grid, for target layers of shape `[N, tokens, channels]` whose grid does not
    /// follow from the graph.
    pub token_grid: Option<[u32; 2]>,
    /// With `token_grid`: the number of leading tokens that do not belong to the grid, such as a class token.
    pub class_tokens: u32,
    /// Whether layers whose axes do not follow from the graph have shape `[N, height, width, channels]`, or
    /// `[N, channels, height, width]`. Absent: not known.
    pub channels_last: Option<bool>,
    /// The precision, for requests that name none.
    pub precision: Precision,
}

/// The arithmetic that a model runs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// With folded and fused operators, in the model's own dtype, which may be bfloat16; in float32 where the processor
    /// has no instructions for that dtype.
    #[default]
    Float32,
    /// Operator by operator, bit for bit as PyTorch, whatever precision a request names.
    Exact,
    /// A float32 model in bfloat16; as [`Precision::Float32`] where the processor has no bfloat16 instructions.
    Bfloat16,
}

/// `[limits]`: the lower of the model's and the server's limit holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelLimits {
    /// The most rows in a batch.
    pub max_batch: Option<u32>,
    /// The most target classes of one frame.
    pub max_targets: Option<u32>,
}

/// A description with the labels that it refers to.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The path of `model.toml`, for messages. The file need not exist.
    pub path: PathBuf,
    pub description: Description,
    /// In class order, from `output.labels` or `output.labels_file`; empty when the description has neither.
    pub labels: Vec<String>,
}

/// The largest label file or `model.toml` that is read, in bytes.
const MAX_TEXT_BYTES: u64 = 16 << 20;

impl Description {
    /// The file's name, in the directory of a version or of a model.
    pub const FILE_NAME: &str = "model.toml";

    /// Reads `model.toml` from `directory`, which holds one version of a model, and the labels file that it names. A
    /// missing `model.toml` means the defaults.
    ///
    /// # Errors
    /// [`ModelError::Read`] for a file that cannot be read, [`ModelError::Description`] for one that is too large, does
    /// not parse or holds a wrong value.
    pub fn load(directory: &Path) -> Result<Loaded, ModelError> {
        let path = directory.join(Self::FILE_NAME);
        let description = if path.exists() { Self::parse(&read_text(&path)?, &path)? } else { Description::default() };
        let labels = match &description.output.labels_file {
            Some(_) if !description.output.labels.is_empty() => {
                return Err(ModelError::Description {
                    path,
                    problem: "output.labels and output.labels_file are both given; keep one".into(),
                });
            }
            Some(file) => Self::read_labels(&path, file)?,
            None => description.output.labels.clone(),
        };
        Ok(Loaded { path, description, labels })
    }

    /// Reads the labels file that a description at `path` names: one label a line, in class order.
    ///
    /// # Errors
    /// As [`Description::load`].
    pub(super) fn read_labels(path: &Path, file: &str) -> Result<Vec<String>, ModelError> {
        // A path with more components could lead out of the model's directory.
        if Path::new(file).components().count() != 1 || file == ".." {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let problem = format!("the labels file {file:?} must be the name of a file beside {name}");
            return Err(ModelError::Description { path: path.to_owned(), problem });
        }
        let text = read_text(&path.with_file_name(file))?;
        // Editors leave empty lines at the end.
        Ok(text.trim_end().lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Parses the text of a `model.toml` and checks its values. `path` is for messages.
    ///
    /// # Errors
    /// [`ModelError::Description`] with the key and what it allows.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let fail = |problem: String| ModelError::Description { path: path.to_owned(), problem };
        let description: Description =
            toml::from_str(text).map_err(|error| fail(with_suggestion(&error.to_string())))?;
        description.check().map_err(fail)?;
        Ok(description)
    }

    /// Refuses values that serde accepts and no model can use: sizes out of range, a standard deviation or a limit of
    /// 0, and numbers that are not finite.
    fn check(&self) -> Result<(), String> {
        let size = |key: &str, value: u32| {
            if value == 0 || value > 16384 { Err(format!("{key} = {value}: 1 to 16384 is allowed")) } else { Ok(()) }
        };
        match self.input.resize {
            Some(Resize::Shorter(side)) => size("input.resize", side)?,
            Some(Resize::Exact(sides)) => sides.iter().try_for_each(|&side| size("input.resize", side))?,
            None => {}
        }
        self.input.crop.iter().flatten().try_for_each(|&side| size("input.crop", side))?;
        if let Some(std) = self.input.std.iter().find(|s| !s.is_finite() || **s == 0.0) {
            return Err(format!("input.std holds {std}: it is divided by, so it must be a number other than 0"));
        }
        if let Some(mean) = self.input.mean.iter().find(|m| !m.is_finite()) {
            return Err(format!("input.mean holds {mean}: it must be a number"));
        }
        self.explain.token_grid.iter().flatten().try_for_each(|&side| size("explain.token_grid", side))?;
        for (key, limit) in
            [("limits.max_batch", self.limits.max_batch), ("limits.max_targets", self.limits.max_targets)]
        {
            if limit == Some(0) {
                return Err(format!("{key} = 0: at least 1 is allowed"));
            }
        }
        Ok(())
    }
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > MAX_TEXT_BYTES {
        let problem = format!("{length} bytes; at most {MAX_TEXT_BYTES} are read");
        return Err(ModelError::Description { path: path.to_owned(), problem });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    // A byte-order mark, which some editors write.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Adds the nearest known key to serde's message about an unknown key, unless more than half of its letters differ.
pub(crate) fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.contains("unknown field");
    match quoted.split_first() {
        Some((wrong, allowed)) if unknown => {
            let nearest = allowed.iter().min_by_key(|key| strsim::damerau_levenshtein(wrong, key));
            let near = nearest.filter(|key| strsim::damerau_levenshtein(wrong, key) <= key.len().div_ceil(2));
            near.map_or_else(|| message.to_owned(), |key| format!("{}\ndid you mean `{key}`?", message.trim_end()))
        }
        _ => message.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Description, String> {
        Description::parse(text, Path::new("model.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_description_means_the_defaults() {
        assert_eq!(parse("").unwrap(), Description::default());
    }

    #[test]
    fn an_unknown_key_is_an_error_that_suggests_the_right_one() {
        let error = parse("[input]\nreszie = 256\n").unwrap_err();
        assert!(error.contains("did you mean `resize`?"), "{error}");
    }

    #[test]
    fn every_key_is_documented_and_every_documented_key_exists() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/README.md"));
        let (_, from) = readme.split_once("these are all of them:\n\n```toml\n").expect("the block");
        let (block, _) = from.split_once("```").expect("the block ends");
        parse(block).expect("the example is sound");
        let all = block.replace("\n# ", "\n");
        // `labels` and `labels_file` exclude each other only when the files are loaded.
        parse(&all).expect("keys in comments are keys, too");
        let tables = serde_json::to_value(Description::default()).unwrap();
        for (table, content) in tables.as_object().unwrap() {
            let keys = content.as_object().map_or_else(|| vec![table], |keys| keys.keys().collect());
            for key in keys {
                let spelt = format!("\n{key} = ");
                assert!(format!("\n{all}").contains(&spelt), "deploy/README.md lacks {table}.{key}");
            }
        }
    }

    #[test]
    fn resize_takes_the_shorter_side_or_both_sides() {
        assert_eq!(parse("[input]\nresize = 256").unwrap().input.resize, Some(Resize::Shorter(256)));
        assert_eq!(parse("[input]\nresize = [240, 320]").unwrap().input.resize, Some(Resize::Exact([240, 320])));
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_key() {
        for (text, key) in [
            ("[input]\nstd = [0.0]", "input.std"),
            ("[input]\nresize = 0", "input.resize"),
            ("[limits]\nmax_batch = 0", "limits.max_batch"),
            ("[explain]\ntoken_grid = [0, 14]", "explain.token_grid"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_description_is_refused_with_its_path() {
        let nested = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in
            ["\u{0}", "[input", "input = 3", "[input]\nresize = -1", "[input]\nresize = 1e99", "= =", nested.as_str()]
        {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("model.toml: ") && error.len() < 1 << 20, "{error}");
        }
    }

    #[test]
    fn a_description_that_is_not_utf8_or_too_long_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.toml");
        std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
        let error = Description::load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("model.toml") && error.contains("UTF-8"), "{error}");
        std::fs::write(&path, vec![b'#'; MAX_TEXT_BYTES as usize + 1]).unwrap();
        let error = Description::load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("at most 16777216 are read"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_and_empty_last_lines_are_no_part_of_labels() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("model.toml"), "\u{feff}[output]\nlabels_file = \"labels.txt\"\n")
            .unwrap();
        for text in ["\u{feff}cat\r\ndog\r\n", "cat\ndog\n\n \n", "cat\ndog"] {
            std::fs::write(directory.path().join("labels.txt"), text).unwrap();
            assert_eq!(Description::load(directory.path()).unwrap().labels, ["cat", "dog"], "{text:?}");
        }
    }

    #[test]
    fn a_labels_file_stays_beside_its_description() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["../labels.txt", "/etc/hostname", "a/b"] {
            let text = format!("[output]\nlabels_file = {file:?}\n");
            std::fs::write(directory.path().join("model.toml"), text).unwrap();
            let error = Description::load(directory.path()).unwrap_err().to_string();
            assert!(error.contains("must be the name of a file beside model.toml"), "{file}: {error}");
        }
    }
}
