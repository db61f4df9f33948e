//! The description of a model in a repository of Triton Inference Server, `config.pbtxt`: what of it concerns an
//! explanation. Names and meanings are Triton's (`ModelConfig`).

use std::fs;
use std::path::{Path, PathBuf};

use super::text_format::Message;
use crate::model::ModelError;
use crate::model::import::{self, other_formats};

/// The file's name in a model's directory.
pub const FILE_NAME: &str = "config.pbtxt";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Why an ensemble is not explained.
pub const ENSEMBLE: &str =
    "platform \"ensemble\" passes tensors between other models and has no graph of its own: explain one of its steps";

/// What is read of a `config.pbtxt`. A field that is not there is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TritonConfig {
    pub platform: String,
    pub backend: String,
    pub default_model_filename: String,
    /// At least 1: the most rows of a batch, which is not among the dimensions of inputs and outputs. 0: there is none.
    pub max_batch_size: u32,
    pub inputs: Vec<TritonTensor>,
    pub outputs: Vec<TritonTensor>,
    pub version_policy: VersionPolicy,
}

/// An input or an output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TritonTensor {
    pub name: String,
    /// Without the batch, if the model has one.
    pub dims: Vec<i64>,
    /// `FORMAT_NHWC`, `FORMAT_NCHW` or nothing.
    pub format: String,
    /// The file with the labels of an output, in the model's directory.
    pub label_filename: String,
}

/// Which versions are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The newest ones: this many. One is Triton's default.
    Latest(usize),
    All,
    Specific(Vec<i64>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        VersionPolicy::Latest(1)
    }
}

impl VersionPolicy {
    /// Whether a version is served, among all that are there, in ascending order.
    pub fn serves(&self, version: i64, all: &[i64]) -> bool {
        match self {
            VersionPolicy::Latest(count) => all.iter().rev().take(*count).any(|&newest| newest == version),
            VersionPolicy::All => true,
            VersionPolicy::Specific(versions) => versions.contains(&version),
        }
    }
}

impl TritonConfig {
    /// Reads a model's `config.pbtxt`; `None` if it has none.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of Triton's.
    pub fn read(model_directory: &Path) -> Result<Option<Self>, ModelError> {
        let path = model_directory.join(FILE_NAME);
        let length = match fs::metadata(&path) {
            Ok(file) => file.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ModelError::Read { path, source }),
        };
        let fail = |problem: String| ModelError::Description { path: path.clone(), problem };
        if length > MAX_BYTES {
            return Err(fail(format!("{length} bytes; at most {MAX_BYTES} are read")));
        }
        let text = fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let message = Message::parse(&text).map_err(|error| fail(error.to_string()))?;
        let name = model_directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let own = message.text("name");
        if !own.is_empty() && own != name {
            return Err(fail(format!("name is {own:?}, and the directory is called {name:?}: both must be the same")));
        }
        Self::of(&message).map(Some).map_err(fail)
    }

    fn of(message: &Message) -> Result<Self, String> {
        let tensor = |tensor: &Message| -> Result<TritonTensor, String> {
            Ok(TritonTensor {
                name: tensor.text("name").to_owned(),
                dims: tensor.numbers("dims")?,
                format: tensor.word("format").to_owned(),
                label_filename: tensor.text("label_filename").to_owned(),
            })
        };
        let tensors = |name| message.messages(name).map(tensor).collect::<Result<Vec<_>, String>>();
        let max_batch_size = message.numbers("max_batch_size")?.pop().unwrap_or(0);
        Ok(TritonConfig {
            platform: message.text("platform").to_owned(),
            backend: message.text("backend").to_owned(),
            default_model_filename: message.text("default_model_filename").to_owned(),
            max_batch_size: u32::try_from(max_batch_size).map_err(|_| format!("max_batch_size: {max_batch_size}"))?,
            inputs: tensors("input")?,
            outputs: tensors("output")?,
            version_policy: match message.messages("version_policy").last() {
                None => VersionPolicy::default(),
                Some(policy) => version_policy(policy)?,
            },
        })
    }

    /// The file that camlens reads in a version's directory: the one that the server runs, or a twin of it beside it.
    ///
    /// # Errors
    /// Why there is none, and what would help.
    pub fn model_file(&self, version_directory: &Path) -> Result<PathBuf, String> {
        let named = version_directory.join(&self.default_model_filename);
        // A path with more components could lead out of the directory.
        let is_plain = Path::new(&self.default_model_filename).components().count() == 1;
        if is_plain && import::is_read(&named) && named.is_file() {
            return Ok(named);
        }
        import::model_file(version_directory).ok_or_else(|| {
            let twin = import::file_names();
            match self.unexplained() {
                Some(why) => format!("{why}; put the same network as {twin} beside the server's file"),
                None => match other_formats::find(version_directory) {
                    Some((path, format)) => {
                        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        format!("{name} is {format}; put the same network as {twin} beside it")
                    }
                    None => format!("there is no {twin}"),
                },
            }
        })
    }

    /// Why camlens does not read the files of this platform or backend; `None` for one whose files it may read.
    fn unexplained(&self) -> Option<String> {
        let (key, name) = match (self.backend.as_str(), self.platform.as_str()) {
            ("", "") => return None,
            ("", platform) => ("platform", platform),
            (backend, _) => ("backend", backend),
        };
        let why = match name {
            "onnxruntime" | "onnxruntime_onnx" | "openvino" => return None,
            "tensorrt" | "tensorrt_plan" => "runs engines of TensorRT, compiled code without a graph",
            "pytorch" | "pytorch_libtorch" => "runs TorchScript or compiled code, and camlens reads exported programs",
            "tensorflow" | "tensorflow_savedmodel" | "tensorflow_graphdef" => {
                "runs graphs of TensorFlow, which camlens does not read"
            }
            "python" => "runs code in Python, which camlens never runs",
            "ensemble" => return Some(ENSEMBLE.to_owned()),
            "dali" => "prepares pictures and has no classes to explain",
            "fil" => "runs trees, which have no gradients",
            "vllm" | "tensorrtllm" => "runs language models",
            _ => "is none whose models camlens reads",
        };
        Some(format!("{key} {name:?} {why}"))
    }

    /// Whether the model is made of other models.
    pub fn is_ensemble(&self) -> bool {
        self.platform == "ensemble"
    }

    /// Height and width of the pictures, where the first input says them.
    pub fn picture_size(&self) -> Option<[u32; 2]> {
        let input = self.inputs.first()?;
        let dims = input.dims.as_slice();
        let dims = if self.max_batch_size == 0 && dims.len() == 4 { &dims[1..] } else { dims };
        let is_channels = |size: i64| matches!(size, 1 | 3 | 4);
        let [height, width] = match *dims {
            [height, width, _] if input.format == "FORMAT_NHWC" => [height, width],
            [_, height, width] if input.format == "FORMAT_NCHW" => [height, width],
            [channels, height, width] if is_channels(channels) => [height, width],
            [height, width, channels] if is_channels(channels) => [height, width],
            _ => return None,
        };
        let side = |size: i64| u32::try_from(size).ok().filter(|size| (1..=16384).contains(size));
        Some([side(height)?, side(width)?])
    }
}

fn version_policy(policy: &Message) -> Result<VersionPolicy, String> {
    let choice = |name| policy.messages(name).last();
    Ok(match (choice("latest"), choice("all"), choice("specific")) {
        (Some(latest), _, _) => {
            let count = latest.numbers("num_versions")?.pop().unwrap_or(1);
            let count = usize::try_from(count).ok().filter(|&count| count > 0);
            VersionPolicy::Latest(count.ok_or("version_policy: num_versions is at least 1")?)
        }
        (None, Some(_), _) => VersionPolicy::All,
        (None, None, Some(specific)) => VersionPolicy::Specific(specific.numbers("versions")?),
        (None, None, None) => VersionPolicy::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> TritonConfig {
        TritonConfig::of(&Message::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn a_description_of_tritons_own_examples_is_read() {
        let config = config(
            r#"
            name: "densenet_onnx"
            platform: "onnxruntime_onnx"
            max_batch_size : 0
            input [ { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 256 ]
                      reshape { shape: [ 1, 3, 224, 224 ] } } ]
            output [ { name: "fc6_1" data_type: TYPE_FP32 dims: [ 1000 ]
                       reshape { shape: [ 1, 1000, 1, 1 ] } label_filename: "densenet_labels.txt" } ]
            version_policy: { latest { num_versions: 2 }}
            a_field_of_a_later_release { with: [ "anything" ] }
            "#,
        );
        assert_eq!(config.platform, "onnxruntime_onnx");
        assert_eq!(config.picture_size(), Some([224, 256]));
        assert_eq!(config.outputs[0].label_filename, "densenet_labels.txt");
        assert_eq!(config.version_policy, VersionPolicy::Latest(2));
    }

    #[test]
    fn a_policy_chooses_among_the_versions_that_are_there() {
        let served = |text: &str| -> Vec<i64> {
            let policy = config(text).version_policy;
            [1, 3, 7].into_iter().filter(|&version| policy.serves(version, &[1, 3, 7])).collect()
        };
        assert_eq!(served(""), [7], "the newest one by default");
        assert_eq!(served("version_policy { latest { num_versions: 2 } }"), [3, 7]);
        assert_eq!(served("version_policy: { all: {} }"), [1, 3, 7]);
        assert_eq!(served("version_policy { specific { versions: [1, 2, 7] } }"), [1, 7]);
        let text = "version_policy { latest { num_versions: 0 } }";
        assert!(TritonConfig::of(&Message::parse(text).unwrap()).is_err());
    }

    #[test]
    fn the_size_of_pictures_follows_from_the_first_input() {
        let size = |text: &str| config(text).picture_size();
        assert_eq!(size("max_batch_size: 8 input { dims: [ 3, 90, 120 ] }"), Some([90, 120]));
        assert_eq!(size("input { dims: [ 1, 90, 120, 3 ] }"), Some([90, 120]));
        assert_eq!(size("input { dims: [ 5, 90, 120 ] format: FORMAT_NCHW }"), Some([90, 120]));
        assert_eq!(size("input { dims: [ 3, -1, -1 ] }"), None);
        assert_eq!(size("input { dims: [ 10 ] }"), None);
    }

    #[test]
    fn a_platform_that_cannot_be_explained_says_why_unless_a_twin_lies_beside_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |text: &str| config(text).model_file(folder.path());
        for platform in ["tensorrt_plan", "pytorch_libtorch", "ensemble", "made_up"] {
            let why = file(&format!("platform: {platform:?}")).unwrap_err();
            assert!(why.contains(platform) && why.contains("model.pt2 or model.onnx"), "{why}");
        }
        assert!(file("backend: \"python\"").unwrap_err().contains("never runs"));
        fs::write(folder.path().join("model.plan"), b"").unwrap();
        assert!(file("backend: \"onnxruntime\"").unwrap_err().contains("TensorRT"));
        fs::write(folder.path().join("model.onnx"), b"").unwrap();
        assert_eq!(file("platform: \"tensorrt_plan\""), Ok(folder.path().join("model.onnx")));
        fs::write(folder.path().join("net.onnx"), b"").unwrap();
        assert_eq!(file("default_model_filename: \"net.onnx\""), Ok(folder.path().join("net.onnx")));
        assert_eq!(file("default_model_filename: \"../net.onnx\""), Ok(folder.path().join("model.onnx")));
    }

    #[test]
    fn a_name_that_is_not_the_directorys_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("net");
        fs::create_dir(&model).unwrap();
        assert_eq!(TritonConfig::read(&model).unwrap(), None);
        fs::write(model.join(FILE_NAME), "name: \"other\"").unwrap();
        assert!(TritonConfig::read(&model).unwrap_err().to_string().contains("\"other\""));
        fs::write(model.join(FILE_NAME), "name: \"net\" platform: \"x\"").unwrap();
        assert_eq!(TritonConfig::read(&model).unwrap().unwrap().platform, "x");
        fs::write(model.join(FILE_NAME), "name: \"net").unwrap();
        assert!(TritonConfig::read(&model).unwrap_err().to_string().contains("line 1"));
    }
}
