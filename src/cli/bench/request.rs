//! The flags that set the streams' policy and the content of the answers.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::value_name;
use crate::cli::options::{ExplainArgs, MapKind, Overflow, PictureFormat, PictureKind, TermsArgs};
use crate::client::names;
use crate::proto::v1;

/// The streams' policy.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicyArgs {
    /// What to do with frames that arrive faster than the server explains them
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum, default_value = "latest")]
    pub overflow: Overflow,

    /// Depth of a stream in frames: with latest, how many wait; with block and reject, how many may be in flight
    /// [default: 1 with latest, else the server's limit]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    #[command(flatten)]
    terms: TermsArgs,

    /// Receive endings as soon as they are ready instead of in sequence order
    #[arg(long, env = "CAMLENS_UNORDERED", value_parser = clap::builder::FalseyValueParser::new())]
    pub unordered: bool,
}

impl PolicyArgs {
    pub fn message(&self) -> v1::StreamPolicy {
        v1::StreamPolicy {
            overflow: self.overflow.message() as i32,
            depth: self.depth,
            unordered: self.unordered,
            ..self.terms.policy()
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "overflow": value_name(self.overflow),
            "depth": self.depth,
            "time_to_live_ms": self.terms.time_to_live,
            "priority": self.terms.priority,
            "max_rate_hz": self.terms.max_rate,
            "unordered": self.unordered,
        })
    }
}

/// The content of each frame's answer.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answers")]
pub struct AnswerArgs {
    /// Map to request as a tensor; may be repeated [default: guided-grad-cam, unless --picture is given]
    #[arg(long = "map", env = "CAMLENS_MAP", value_name = "KIND", value_enum, value_delimiter = ',')]
    maps: Vec<MapKind>,

    /// Element type of the maps
    #[arg(long, env = "CAMLENS_ELEMENT", value_enum, default_value = "float32")]
    element: Element,

    /// Picture to request; may be repeated [default: none]
    #[arg(long = "picture", env = "CAMLENS_PICTURE", value_name = "KIND", value_enum, value_delimiter = ',')]
    pictures: Vec<PictureKind>,

    /// Format of the pictures
    #[arg(long, env = "CAMLENS_FORMAT", value_enum, default_value = "jpeg")]
    format: PictureFormat,

    /// Request only predictions: no reverse run, no maps, no pictures
    #[arg(
        long,
        env = "CAMLENS_PREDICTIONS_ONLY",
        value_parser = clap::builder::FalseyValueParser::new(),
        conflicts_with_all = ["maps", "pictures"]
    )]
    predictions_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Element {
    Float32,
    Float16,
    Uint8,
}

impl AnswerArgs {
    pub fn options(&self, explain: &ExplainArgs) -> v1::ExplainOptions {
        let AnswerArgs { maps, element, pictures, format, predictions_only } = self;
        let none_given = maps.is_empty() && pictures.is_empty() && !predictions_only;
        let maps = if none_given { &[MapKind::GuidedGradCam][..] } else { maps };
        let mut options = explain.options(pictures, *format, maps);
        let element_type = match element {
            Element::Float32 => v1::ElementType::Float32,
            Element::Float16 => v1::ElementType::Float16,
            Element::Uint8 => v1::ElementType::Uint8,
        };
        for tensor in &mut options.tensors {
            tensor.element_type = element_type as i32;
        }
        options
    }

    pub fn json(&self, explain: &ExplainArgs) -> Value {
        let options = self.options(explain);
        json!({
            "maps": options.tensors.iter().map(|tensor| names::map(tensor.map)).collect::<Vec<_>>(),
            "element": value_name(self.element),
            "pictures": options.pictures.iter().map(|picture| names::picture(picture.picture)).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        policy: PolicyArgs,
        #[command(flatten)]
        answer: AnswerArgs,
        #[command(flatten)]
        explain: ExplainArgs,
    }

    fn parse(arguments: &[&str]) -> Result<Line, clap::Error> {
        Line::try_parse_from(["bench"].iter().chain(arguments))
    }

    #[test]
    fn the_flags_set_the_policy() {
        let arguments = ["--overflow", "reject", "--depth", "3", "--time-to-live", "1250", "--priority", "2"];
        let more = ["--max-rate", "12.5", "--unordered"];
        let policy = parse(&[&arguments[..], &more].concat()).expect("arguments").policy.message();
        assert_eq!(policy.overflow(), v1::stream_policy::Overflow::Reject);
        assert_eq!(policy.time_to_live, Some(prost_types::Duration { seconds: 1, nanos: 250_000_000 }));
        assert_eq!((policy.depth, policy.priority, policy.max_rate_hz), (3, 2, Some(12.5)));
        assert!(policy.unordered);
        let default = parse(&[]).expect("nothing is required").policy.message();
        assert_eq!((default.overflow(), default.time_to_live), (v1::stream_policy::Overflow::Latest, None));
    }

    #[test]
    fn guided_grad_cam_is_requested_unless_another_answer_is() {
        let options = |arguments: &[&str]| {
            let line = parse(arguments).expect("arguments");
            line.answer.options(&line.explain)
        };
        let default = options(&["--element", "float16"]);
        assert_eq!(
            (default.tensors[0].map(), default.tensors[0].element_type()),
            (v1::Map::GuidedGradCam, v1::ElementType::Float16)
        );
        let pictures = options(&["--picture", "overlay"]);
        assert!(pictures.tensors.is_empty() && pictures.pictures.len() == 1);
        assert_eq!(options(&["--predictions-only"]).predictions_only, Some(true));
        assert!(parse(&["--predictions-only", "--map", "grad-cam"]).is_err());
    }
}
