//! Combines a graph and its description into a model: checks labels and layers, and makes the metadata.

use std::collections::BTreeMap;
use std::sync::Arc;

use tch::Kind;

use super::axes::Axes;
use super::description::{Loaded, Precision};
use super::graph::Graph;
use super::last_activation::{Final, logits_in};
use super::loaded::Model;
use super::metadata::{InputInfo, LayerInfo, LayerValue, Metadata, OutputInfo};
use super::node::Node;
use super::scores::Scores;
use super::unguided::unguided;
use super::{LayerError, ModelError};

fn layer_values(graph: &Graph) -> BTreeMap<String, Result<LayerValue, LayerError>> {
    let value = |id| LayerValue { shape: graph.value(id).shape.clone().unwrap_or_default(), layout: graph.layout(id) };
    graph.layer_values().into_iter().map(|(name, found)| (name, found.map(value))).collect()
}

/// The parts of a model, before they are checked against each other.
pub(super) struct Assembly<'a> {
    pub name: &'a str,
    pub version: i64,
    pub digest: String,
    pub max_rows: Option<u32>,
    pub notices: Vec<String>,
    pub graph: Graph,
    pub loaded: Loaded,
}

impl Assembly<'_> {
    /// Checks the description against the graph and makes the [`Metadata`].
    pub fn finish(self) -> Result<Model, ModelError> {
        let Assembly { name, version, digest, max_rows, notices, mut graph, loaded } = self;
        let description = loaded.description;
        let axes = Axes::of(&graph);
        let output = &description.output;
        let scores = Scores::find(&graph, &axes, output.logits.as_deref(), output.activation)?;
        if let (Some(classes), labels) = (scores.class_count, loaded.labels.len())
            && labels != 0
            && labels != classes as usize
        {
            let values = graph.value(scores.logits).shape.as_deref().and_then(logits_in);
            let is_one = values == Some(1) && !matches!(scores.last, Final::SigmoidAndRest { .. });
            let which = if is_one { ": the one that the model's only logit speaks for, and its opposite" } else { "" };
            return Err(ModelError::Description {
                path: loaded.path,
                problem: format!("{labels} labels for {classes} classes{which}"),
            });
        }
        if description.explain.precision == Precision::Bfloat16 && graph.input.kind != Kind::Float {
            return Err(ModelError::Description {
                path: loaded.path,
                problem: format!(
                    "explain.precision = \"bfloat16\" is for models that take float32; this one takes {:?}",
                    graph.input.kind
                ),
            });
        }
        graph.find_layouts(&axes, &description.explain, scores.logits);
        for name in &description.explain.target_layers {
            let fail = |problem: String| ModelError::Description {
                path: loaded.path.clone(),
                problem: format!("explain.target_layers: {problem}"),
            };
            let layer = graph.layer(name).map_err(|error| fail(error.to_string()))?;
            graph.layout(layer).map_err(|problem| {
                fail(format!("layer {name}: {problem}; layers that are spatial: {}", graph.candidates()))
            })?;
        }
        let (default_target_layers, default_target_problem) = if description.explain.target_layers.is_empty() {
            match graph.default_target(&axes, scores.logits) {
                Ok(value) => (vec![graph.layer_name(value)], None),
                Err(LayerError::NoDefault { problem, .. }) => (Vec::new(), Some(problem)),
                Err(other) => (Vec::new(), Some(other.to_string())),
            }
        } else {
            (description.explain.target_layers.clone(), None)
        };
        let layers = graph
            .layers()
            .into_iter()
            .filter_map(|(value, names)| {
                let shape = graph.value(value).shape.clone()?;
                Some(LayerInfo { names, shape, spatial: graph.layout(value).is_ok() })
            })
            .collect();
        let upstream = graph.ancestors(scores.logits);
        let count = |test: fn(&Node) -> bool| {
            graph.nodes.iter().filter(|n| test(n) && n.defines().any(|v| upstream.contains(&v))).count() as u32
        };
        let metadata = Metadata {
            name: name.to_owned(),
            version,
            digest,
            summary: description.summary.clone(),
            license: description.license.clone(),
            input: InputInfo {
                name: graph.value(graph.input.value).name.clone(),
                kind: graph.input.kind,
                shape: graph.input.shape,
                channels_last: graph.input.channels_last,
            },
            outputs: graph
                .outputs
                .iter()
                .filter_map(|o| Some(OutputInfo { name: o.name.clone(), shape: graph.value(o.value?).shape.clone()? }))
                .collect(),
            scores,
            labels: loaded.labels,
            layers,
            layer_values: layer_values(&graph),
            default_target_layers,
            default_target_problem,
            unguided_gates: unguided(&graph, &upstream),
            rectifiers: count(|n| n.rectifier.is_some()),
            smooth_activations: count(|n| n.smooth_activation),
            guide_smooth_activations: description.explain.guide_smooth_activations,
            precision: description.explain.precision,
            narrow_kinds: [Kind::Half, Kind::BFloat16]
                .into_iter()
                .filter(|&kind| upstream.iter().any(|&value| graph.value(value).kind == Some(kind)))
                .collect(),
            preprocessing: description.input.clone(),
            limits: description.limits.clone(),
            max_rows,
            notices,
            node_count: graph.nodes.len() as u32,
            parameter_count: graph.constants.values().map(|t| t.numel() as u64).sum(),
            constant_bytes: graph.constants.values().map(|t| t.bytes() as u64).sum(),
        };
        Ok(Model { graph, description, metadata: Arc::new(metadata) })
    }
}
