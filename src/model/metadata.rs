//! A model's description for users: plain data that threads share.

use std::collections::BTreeMap;

use tch::Kind;

use super::LayerError;
use super::description::{ModelLimits, Precision, Preprocessing};
use super::dimension::Dimension;
use super::layer_names;
use super::map_layout::{LayoutProblem, MapLayout};
use super::scores::Scores;

/// What users and the server know of a model.
#[derive(Debug, Clone)]
pub struct Metadata {
    pub name: String,
    pub version: i64,
    /// SHA-256 of the model file, in hexadecimal.
    pub digest: String,
    pub summary: String,
    pub license: String,
    pub input: InputInfo,
    pub outputs: Vec<OutputInfo>,
    /// The output that is explained.
    pub scores: Scores,
    /// In class order; empty when there are none.
    pub labels: Vec<String>,
    /// In the program's order.
    pub layers: Vec<LayerInfo>,
    /// Every layer name (module paths, their calls, nodes) with its value, or the reason that it means none.
    pub layer_values: BTreeMap<String, Result<LayerValue, LayerError>>,
    /// Target layers of requests that name none; empty when there is no default.
    pub default_target_layers: Vec<String>,
    /// Why there is no default target layer.
    pub default_target_problem: Option<String>,
    /// Rectifiers that guided backpropagation guides. With 0, the guided gradient is the plain one.
    pub rectifiers: u32,
    /// Operators that stop gradients as a rectifier does and are not guided: name and operator of each node.
    pub unguided_gates: Vec<String>,
    /// Smooth activations, guided only when the description asks for it.
    pub smooth_activations: u32,
    pub guide_smooth_activations: bool,
    /// Precision of requests that name none.
    pub precision: Precision,
    /// Of float16 and bfloat16, those that the logits are computed in as the model was saved.
    pub narrow_kinds: Vec<Kind>,
    pub preprocessing: Preprocessing,
    pub limits: ModelLimits,
    /// Most rows in a batch: `Some(1)` when the batch is fixed or rows influence each other, the bound of the program's
    /// own constraint; none: any number.
    pub max_rows: Option<u32>,
    /// What of the file is not computed as it is written, each in one sentence.
    pub notices: Vec<String>,
    pub node_count: u32,
    pub parameter_count: u64,
    /// Weights and other constants in memory.
    pub constant_bytes: u64,
}

/// `[N, C, H, W]`.
#[derive(Debug, Clone)]
pub struct InputInfo {
    pub name: String,
    pub kind: Kind,
    pub shape: [Dimension; 4],
    /// The file's own order is [N, H, W, C].
    pub channels_last: bool,
}

#[derive(Debug, Clone)]
pub struct OutputInfo {
    pub name: String,
    /// The shape for the example input.
    pub shape: Vec<i64>,
}

/// A value that may be named as a target layer.
#[derive(Debug, Clone)]
pub struct LayerInfo {
    /// Names of the value; each means it.
    pub names: Vec<String>,
    /// The shape for the example input.
    pub shape: Vec<i64>,
    /// Whether it can be a target layer: it is proved to be a map that leads to the logits.
    pub spatial: bool,
}

/// The value that a layer name means.
#[derive(Debug, Clone)]
pub struct LayerValue {
    /// The shape for the example input.
    pub shape: Vec<i64>,
    /// How it is read as a map, or why it is none.
    pub layout: Result<MapLayout, LayoutProblem>,
}

/// No class has this label.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LabelError {
    #[error("the model has no labels; name the class by its index")]
    NoLabels,
    #[error("no class is called {label:?}{}", suggestion(nearest))]
    Unknown { label: String, nearest: Vec<String> },
    #[error("{count} classes are called {label:?}: {indices:?}; name one by its index")]
    Ambiguous { label: String, count: usize, indices: Vec<u32> },
}

fn suggestion(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; the nearest labels are {}", nearest.join(", ")) }
}

impl Metadata {
    /// None when the output that is explained is not `[N, classes]`.
    pub fn class_count(&self) -> Option<u32> {
        self.scores.class_count
    }

    /// Height and width of the example input, in pixels.
    pub fn example_size(&self) -> [i64; 2] {
        let [_, _, height, width] = self.input.shape.map(Dimension::example);
        [height, width]
    }

    /// The label of a class; empty when there is none.
    pub fn label(&self, class_index: u32) -> &str {
        self.labels.get(class_index as usize).map_or("", String::as_str)
    }

    /// The class that a label names. Upper and lower case are equal when no label matches exactly.
    pub fn class_of_label(&self, label: &str) -> Result<u32, LabelError> {
        if self.labels.is_empty() {
            return Err(LabelError::NoLabels);
        }
        let matching = |equal: &dyn Fn(&str) -> bool| -> Vec<u32> {
            self.labels.iter().enumerate().filter(|(_, l)| equal(l)).map(|(i, _)| i as u32).collect()
        };
        let mut indices = matching(&|l| l == label);
        if indices.is_empty() {
            indices = matching(&|l| l.eq_ignore_ascii_case(label));
        }
        match indices.as_slice() {
            [one] => Ok(*one),
            [] => {
                let wanted = label.to_lowercase();
                let mut near: Vec<(usize, &String)> =
                    self.labels.iter().map(|l| (strsim::damerau_levenshtein(&l.to_lowercase(), &wanted), l)).collect();
                near.sort();
                let nearest = near.into_iter().take(3).map(|(_, l)| l.clone()).collect();
                Err(LabelError::Unknown { label: label.to_owned(), nearest })
            }
            many => Err(LabelError::Ambiguous { label: label.to_owned(), count: many.len(), indices: many.to_vec() }),
        }
    }

    /// The value that a layer name means.
    ///
    /// # Errors
    /// As [`super::graph::Graph::layer`].
    pub fn layer_value(&self, name: &str) -> Result<&LayerValue, LayerError> {
        match self.layer_values.get(name) {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(error.clone()),
            None => {
                let suggestion = super::layer_names::nearest(name, self.layer_values.keys());
                Err(LayerError::Unknown { name: name.to_owned(), suggestion, candidates: self.candidates() })
            }
        }
    }

    /// The number of operators that guided backpropagation guides. With 0, the guided gradient is the plain one.
    pub fn guided_operators(&self) -> u32 {
        self.rectifiers + if self.guide_smooth_activations { self.smooth_activations } else { 0 }
    }

    /// The last layers that are spatial, for a message.
    pub fn candidates(&self) -> String {
        layer_names::candidates(&self.spatial_layers())
    }

    /// The names of the layers that are spatial, one for each value.
    pub fn spatial_layers(&self) -> Vec<&str> {
        self.layers
            .iter()
            .filter(|l| l.spatial)
            .filter_map(|l| l.names.iter().map(String::as_str).min_by_key(|n| n.len()))
            .collect()
    }
}
