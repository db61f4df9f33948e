//! The flags that set a request's options and a stream's policy.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::proto::v1;

/// The flags of `explain` and `stream` that become the request's options.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Model to use: NAME, for its newest version, or NAME@VERSION [default: the only model that is served]
    #[arg(long, env = "CAMLENS_MODEL", value_name = "NAME[@VERSION]")]
    pub model: Option<ModelName>,

    /// Class to explain: a label, a class index, or top:K for the K most probable classes; may be repeated [default:
    /// top:1]
    #[arg(long = "target", env = "CAMLENS_TARGET", value_name = "CLASS", value_delimiter = ';')]
    pub targets: Vec<TargetClass>,

    /// Target layer of Grad-CAM; may be repeated [default: the model's own, see `camlens models NAME`]
    #[arg(long = "layer", env = "CAMLENS_LAYER", value_name = "LAYER", value_delimiter = ';')]
    pub layers: Vec<String>,

    /// Number of predictions to return, the most probable first
    #[arg(long, env = "CAMLENS_TOP", value_name = "N", default_value_t = 5)]
    pub top: u32,

    /// Library whose normalisation the maps follow
    #[arg(long, env = "CAMLENS_CONVENTION", value_enum, default_value_t = ConventionName::Captum)]
    pub convention: ConventionName,

    /// Precision of the model's run [default: the one in its model.toml]
    #[arg(long, env = "CAMLENS_PRECISION", value_enum)]
    pub precision: Option<PrecisionName>,

    /// Colour map of heat maps and overlays
    #[arg(long, env = "CAMLENS_COLORS", value_enum, default_value_t = Colors::Turbo)]
    pub colors: Colors,

    /// Opacity of the heat map where the evidence is strongest, 0 to 1 [default: 0.6]; of the picture `light`, the
    /// darkness where there is no evidence [default: 0.75]
    #[arg(long, env = "CAMLENS_OPACITY", value_name = "SHARE", value_parser = share)]
    pub opacity: Option<f32>,

    /// Explain JPEGs that were damaged on their way as far as they can be read, instead of refusing them
    #[arg(long, env = "CAMLENS_ALLOW_DAMAGED_FRAMES")]
    pub allow_damaged_frames: bool,
}

/// `NAME` or `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    pub name: String,
    pub version: Option<i64>,
}

impl FromStr for ModelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.rsplit_once('@') {
            Some((name, version)) => {
                let version =
                    version.parse().map_err(|_| format!("`{version}` is not a version: versions are integers"))?;
                (name, Some(version))
            }
            None => (text, None),
        };
        if name.is_empty() {
            return Err("the model's name is missing: give NAME or NAME@VERSION".to_owned());
        }
        Ok(ModelName { name: name.to_owned(), version })
    }
}

impl ModelName {
    pub fn selector(&self) -> v1::ModelSelector {
        v1::ModelSelector { name: self.name.clone(), version: self.version }
    }
}

/// A class to explain, by index, label or rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetClass {
    Index(u32),
    Label(String),
    Top(u32),
}

impl FromStr for TargetClass {
    type Err = String;

    /// `967`, `class:967`, `top:3`, `label:967`; anything else is a label.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| format!("`{digits}` is not a whole number"));
        if let Some(digits) = text.strip_prefix("top:") {
            return number(digits).map(TargetClass::Top);
        }
        if let Some(digits) = text.strip_prefix("class:") {
            return number(digits).map(TargetClass::Index);
        }
        let label = text.strip_prefix("label:");
        match (label, text.parse()) {
            (None, Ok(index)) => Ok(TargetClass::Index(index)),
            (label, _) => match label.unwrap_or(text).trim() {
                "" => Err("the class is missing: give a label, an index, or top:K".to_owned()),
                label => Ok(TargetClass::Label(label.to_owned())),
            },
        }
    }
}

impl TargetClass {
    fn message(&self) -> v1::Target {
        let kind = match self {
            TargetClass::Index(index) => v1::target::Kind::ClassIndex(*index),
            TargetClass::Label(label) => v1::target::Kind::Label(label.clone()),
            TargetClass::Top(count) => v1::target::Kind::Top(*count),
        };
        v1::Target { kind: Some(kind) }
    }
}

/// What another program predicted of a picture: a class, and its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpectedClass {
    class: TargetClass,
    probability: Option<f32>,
}

impl FromStr for ExpectedClass {
    type Err = String;

    /// A class as [`TargetClass`] reads it, and `:` with a number at the end for its probability: `espresso`,
    /// `espresso:0.95`, `class:967:0.95`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (class, probability) = match text.rsplit_once(':') {
            Some(("class" | "label" | "top", _)) | None => (text, None),
            Some((class, number)) => match number.trim().parse() {
                Ok(probability) => (class, Some(probability)),
                Err(_) => (text, None),
            },
        };
        match class.parse()? {
            TargetClass::Top(_) => Err("one class is expected: give a label or an index".to_owned()),
            class => Ok(ExpectedClass { class, probability }),
        }
    }
}

impl ExpectedClass {
    pub fn message(&self) -> v1::ExpectedPrediction {
        use v1::expected_prediction::Kind;
        let kind = match &self.class {
            TargetClass::Index(index) => Some(Kind::ClassIndex(*index)),
            TargetClass::Label(label) => Some(Kind::Label(label.clone())),
            TargetClass::Top(_) => None,
        };
        v1::ExpectedPrediction { kind, probability: self.probability, tolerance: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConventionName {
    /// No normalisation, as Captum's GuidedGradCam with bilinear interpolation
    Captum,
    /// Grad-CAM scaled to 0–1, as pytorch-grad-cam
    PytorchGradCam,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// float32 with folded and fused operators: the fastest float32
    Float32,
    /// float32, operator by operator as PyTorch runs them
    Exact,
    /// bfloat16, for models that allow it on a processor with bfloat16 instructions
    Bfloat16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colors {
    Turbo,
    Viridis,
    Jet,
}

/// A picture to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PictureKind {
    /// Grad-CAM in colours over the image
    Overlay,
    /// Grad-CAM in colours
    HeatMap,
    /// Guided Grad-CAM around a neutral grey
    GuidedGradCam,
    /// Guided backpropagation around a neutral grey
    GuidedBackprop,
    /// The image, dimmed except where Guided Grad-CAM is strong
    Light,
}

/// A map to write as an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MapKind {
    GuidedGradCam,
    GradCam,
    GuidedBackprop,
    /// The model's input after preprocessing
    Input,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PictureFormat {
    Jpeg,
    Png,
}

/// What the server does when frames arrive faster than they are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Overflow {
    /// Hold the sender back; no frame is dropped
    Block,
    /// Replace the oldest waiting frame, as suits a camera
    Latest,
    /// Answer the frame with an error
    Reject,
}

/// The flags of `stream` and `bench` that become the stream's policy.
#[derive(Debug, Clone, Copy, Args)]
pub struct TermsArgs {
    /// Time to live of a frame, in milliseconds: the server drops a frame that is not explained within this time after
    /// reading it [default: unlimited]
    #[arg(long, env = "CAMLENS_TIME_TO_LIVE", value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub time_to_live: Option<u32>,

    /// Priority class of the stream, 0 to 7: frames of a higher class go first [default: 0]
    #[arg(long, env = "CAMLENS_PRIORITY", value_name = "CLASS", default_value_t = 0, hide_default_value = true)]
    pub priority: u32,

    /// Largest number of frames per second that the server explains for each stream [default: unlimited]
    #[arg(long, env = "CAMLENS_MAX_RATE", value_name = "HZ", value_parser = rate)]
    pub max_rate: Option<f64>,
}

impl TermsArgs {
    /// A stream policy with these values and defaults for the rest.
    pub fn policy(&self) -> v1::StreamPolicy {
        v1::StreamPolicy {
            time_to_live: self.time_to_live.and_then(|ms| Duration::from_millis(ms.into()).try_into().ok()),
            max_rate_hz: self.max_rate,
            priority: self.priority,
            ..Default::default()
        }
    }
}

impl Overflow {
    pub fn message(self) -> v1::stream_policy::Overflow {
        match self {
            Overflow::Block => v1::stream_policy::Overflow::Block,
            Overflow::Latest => v1::stream_policy::Overflow::Latest,
            Overflow::Reject => v1::stream_policy::Overflow::Reject,
        }
    }
}

impl ExplainArgs {
    pub fn selector(&self) -> Option<v1::ModelSelector> {
        self.model.as_ref().map(ModelName::selector)
    }

    /// The request's options for these flags, with `pictures` in `format` and `maps` as outputs.
    pub fn options(&self, pictures: &[PictureKind], format: PictureFormat, maps: &[MapKind]) -> v1::ExplainOptions {
        v1::ExplainOptions {
            targets: self.targets.iter().map(TargetClass::message).collect(),
            target_layers: self.layers.clone(),
            convention: match self.convention {
                ConventionName::Captum => v1::Convention::Captum,
                ConventionName::PytorchGradCam => v1::Convention::PytorchGradCam,
            } as i32,
            tensors: maps.iter().map(|&map| tensor_output(map)).collect(),
            pictures: pictures.iter().map(|&picture| self.picture_output(picture, format)).collect(),
            top_predictions: Some(self.top),
            precision: match self.precision {
                None => v1::Precision::Unspecified,
                Some(PrecisionName::Float32) => v1::Precision::Float32,
                Some(PrecisionName::Exact) => v1::Precision::Exact,
                Some(PrecisionName::Bfloat16) => v1::Precision::Bfloat16,
            } as i32,
            predictions_only: (pictures.is_empty() && maps.is_empty()).then_some(true),
            allow_damaged_frames: self.allow_damaged_frames.then_some(true),
            ..Default::default()
        }
    }

    fn picture_output(&self, picture: PictureKind, format: PictureFormat) -> v1::PictureOutput {
        let wire = match picture {
            PictureKind::Overlay => v1::Picture::Overlay,
            PictureKind::HeatMap => v1::Picture::HeatMap,
            PictureKind::GuidedGradCam => v1::Picture::GuidedGradCam,
            PictureKind::GuidedBackprop => v1::Picture::GuidedBackprop,
            PictureKind::Light => v1::Picture::Light,
        };
        let colors = match self.colors {
            Colors::Turbo => v1::ColorMap::Turbo,
            Colors::Viridis => v1::ColorMap::Viridis,
            Colors::Jet => v1::ColorMap::Jet,
        };
        let coloured = matches!(picture, PictureKind::Overlay | PictureKind::HeatMap);
        v1::PictureOutput {
            picture: wire as i32,
            format: match format {
                PictureFormat::Jpeg => v1::ImageFormat::Jpeg,
                PictureFormat::Png => v1::ImageFormat::Png,
            } as i32,
            color_map: if coloured { colors as i32 } else { 0 },
            opacity: self.opacity.filter(|_| matches!(picture, PictureKind::Overlay | PictureKind::Light)),
            ..Default::default()
        }
    }
}

fn tensor_output(map: MapKind) -> v1::TensorOutput {
    let map = match map {
        MapKind::GuidedGradCam => v1::Map::GuidedGradCam,
        MapKind::GradCam => v1::Map::GradCam,
        MapKind::GuidedBackprop => v1::Map::GuidedBackprop,
        MapKind::Input => v1::Map::Input,
    };
    v1::TensorOutput { map: map as i32, ..Default::default() }
}

/// Parses a rate in frames per second.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("give a rate from 0.001 to 100000 frames per second".to_owned()),
    }
}

/// Parses a number from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_named_by_index_label_or_rank() {
        let cases = [
            ("967", TargetClass::Index(967)),
            ("class:0", TargetClass::Index(0)),
            ("top:3", TargetClass::Top(3)),
            ("espresso", TargetClass::Label("espresso".to_owned())),
            ("label:7", TargetClass::Label("7".to_owned())),
            ("tiger cat", TargetClass::Label("tiger cat".to_owned())),
        ];
        for (text, target) in cases {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        for text in ["", "top:", "top:x", "class:-1", "label:"] {
            assert!(text.parse::<TargetClass>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_expected_class_may_have_a_probability() {
        let label = |name: &str| TargetClass::Label(name.to_owned());
        for (text, class, probability) in [
            ("espresso", label("espresso"), None),
            ("espresso:0.95", label("espresso"), Some(0.95)),
            ("967", TargetClass::Index(967), None),
            ("967:1", TargetClass::Index(967), Some(1.0)),
            ("class:967", TargetClass::Index(967), None),
            ("class:967:0.5", TargetClass::Index(967), Some(0.5)),
            ("label:7", label("7"), None),
            ("label:7:0.5", label("7"), Some(0.5)),
            ("ratio: wide", label("ratio: wide"), None),
        ] {
            assert_eq!(text.parse(), Ok(ExpectedClass { class, probability }), "{text}");
        }
        for text in ["", ":0.5", "top:2", "top:2:0.5", "class:x"] {
            assert!(text.parse::<ExpectedClass>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_model_is_a_name_with_an_optional_version() {
        assert_eq!("lite0".parse(), Ok(ModelName { name: "lite0".to_owned(), version: None }));
        assert_eq!("lite0@3".parse(), Ok(ModelName { name: "lite0".to_owned(), version: Some(3) }));
        assert!("lite0@new".parse::<ModelName>().is_err());
        assert!("@3".parse::<ModelName>().is_err());
    }
}
