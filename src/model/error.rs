//! Why a model cannot be loaded or a layer cannot be found.

use std::io;
use std::path::PathBuf;

use crate::torch::OperatorError;

/// Why a model cannot be loaded. Messages are for the person who has the model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file has another format or version; `advice` says what to do.
    #[error("{what}; {advice}")]
    Format { what: String, advice: String },
    /// The file has the right format, and its content is broken.
    #[error("the model file is damaged: {place}: {problem}")]
    Malformed { place: String, problem: String },
    #[error("the model file is too large: {what} is {got}, and {limit} is allowed ({option})")]
    Limit { what: String, got: u64, limit: u64, option: &'static str },
    /// The program is sound but cannot be explained; `advice` says what would help.
    #[error("{what}; {advice}")]
    Refused { what: String, advice: String },
    #[error("node {node}: {source}")]
    Node { node: String, source: OperatorError },
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// `model.toml`, or a file that it names, is wrong.
    #[error("{}: {problem}", path.display())]
    Description { path: PathBuf, problem: String },
    #[error("the model has no output {name}: it has {}", outputs.join(", "))]
    NoOutput { name: String, outputs: Vec<String> },
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// There is no model at this path.
    #[error("{}: {problem}", path.display())]
    Repository { path: PathBuf, problem: String },
}

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        ModelError::Operator(error.into())
    }
}

impl ModelError {
    pub(super) fn malformed(place: impl Into<String>, problem: impl Into<String>) -> Self {
        ModelError::Malformed { place: shortened(place.into()), problem: shortened(problem.into()) }
    }

    pub(super) fn refused(what: impl Into<String>, advice: impl Into<String>) -> Self {
        ModelError::Refused { what: shortened(what.into()), advice: advice.into() }
    }
}

/// Shortens a name from a file, which may have any length, for a message.
const MAX_MESSAGE_CHARS: usize = 400;

fn shortened(text: String) -> String {
    let length = text.chars().count();
    if length <= MAX_MESSAGE_CHARS {
        return text;
    }
    let half = MAX_MESSAGE_CHARS / 2;
    let head: String = text.chars().take(half).collect();
    let tail: String = text.chars().skip(length - half).collect();
    format!("{head} … {tail}")
}

/// Why a name means no layer. Messages list the layers that exist.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LayerError {
    #[error("there is no layer {name:?}{}; layers that are spatial: {candidates}", hint(suggestion.as_deref()))]
    Unknown { name: String, suggestion: Option<String>, candidates: String },
    #[error(
        "layer {name} leaves nothing in the graph: it returns its input, or is never called; layers that are \
         spatial: {candidates}"
    )]
    NoNode { name: String, candidates: String },
    #[error("layer {name} is called {calls} times: {name}@0 is the first call, {name}@{} the last", calls - 1)]
    NoSuchCall { name: String, calls: usize },
    #[error("layer {name} hands out several values: name one of its nodes instead: {}", nodes.join(", "))]
    Ambiguous { name: String, nodes: Vec<String> },
    #[error("{problem}: {}", if candidates.is_empty() {
        "no layer is proved to be a map of the picture, and only the guided gradient is possible".to_owned()
    } else {
        format!(
            "name a layer as explain.target_layers in model.toml, or in the request; layers that are spatial: \
             {candidates}"
        )
    })]
    NoDefault { problem: String, candidates: String },
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}
