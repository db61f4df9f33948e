//! What the output that is explained means: where the logits are in the graph, and how they become probabilities.

use super::ModelError;
use super::axes::{Axes, Axis};
use super::description::Activation;
use super::graph::Graph;
use super::node::{Node, ValueId};
use crate::torch::Value;

/// What the model itself computes from the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    Logits,
    Softmax,
    LogSoftmax,
    Sigmoid,
}

/// The output that is explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scores {
    /// The output's name.
    pub output: String,
    /// The value whose elements are the logits: what enters the model's own last activation, if it has one.
    pub logits: ValueId,
    pub last: Final,
    pub activation: Activation,
    /// Whether the activation follows from the graph or from the description, and is not assumed.
    pub activation_is_known: bool,
    /// None when the value is not `[N, classes]`, `[N, classes, 1, 1]` or `[N]`. A value of one logit has two classes:
    /// 0, which it speaks for, and 1, which it speaks against.
    pub class_count: Option<u32>,
}

/// The number of logits of a frame in a value of this shape: `[N, classes]`, `[N, classes, 1, 1]` or `[N]`.
pub fn logits_in(shape: &[i64]) -> Option<u32> {
    match *shape {
        [_] => Some(1),
        [_, classes] | [_, classes, 1, 1] => u32::try_from(classes).ok(),
        _ => None,
    }
}

impl Scores {
    /// The scores of the output called `name`; without a name, of the first one that can be explained.
    ///
    /// # Errors
    /// [`ModelError::NoOutput`]; [`ModelError::Refused`] when no gradient leads from it to the input.
    pub fn find(
        graph: &Graph,
        axes: &Axes,
        name: Option<&str>,
        activation: Option<Activation>,
    ) -> Result<Self, ModelError> {
        let is_float = |value: ValueId| graph.value(value).differentiable;
        let first = || {
            let named = graph.outputs.iter().filter_map(|output| Some((output.name.as_str(), output.value?)));
            named.into_iter().find(|(_, value)| is_float(*value)).map(|(name, _)| name)
        };
        let value = graph.score(name.or_else(first))?;
        let output = graph.outputs.iter().find(|output| output.value == Some(value));
        let output = output.map(|output| output.name.clone()).unwrap_or_default();
        if !is_float(value) {
            return Err(no_gradient(graph, axes, value, &output));
        }
        let (logits, last) = match activation {
            Some(Activation::None) => (value, Final::Logits),
            _ => before_activation(graph, axes, value),
        };
        let shape = graph.value(logits).shape.as_deref().unwrap_or_default();
        let values = logits_in(shape);
        let own = match last {
            Final::Logits => None,
            Final::Softmax | Final::LogSoftmax => Some(Activation::Softmax),
            Final::Sigmoid => Some(Activation::Sigmoid),
        };
        let assumed = if values == Some(1) { Activation::Sigmoid } else { Activation::Softmax };
        Ok(Scores {
            output,
            logits,
            last,
            activation: activation.or(own).unwrap_or(assumed),
            activation_is_known: activation.or(own).is_some(),
            class_count: values.map(|values| values.max(2)),
        })
    }
}

/// The value that enters the last activation, and which one it is.
fn before_activation(graph: &Graph, axes: &Axes, output: ValueId) -> (ValueId, Final) {
    let maker = |value: ValueId| graph.nodes.iter().find(|node| node.defines().any(|made| made == value));
    let input = |node: &Node| node.uses().find(|value| axes.depends(*value));
    let (mut value, mut takes_logarithm) = (output, false);
    while let Some(node) = maker(value) {
        let Some(before) = input(node) else { break };
        match node.operator_name() {
            "softmax" | "_softmax" | "special_softmax" if is_over_classes(node, graph, before) => {
                return (before, if takes_logarithm { Final::LogSoftmax } else { Final::Softmax });
            }
            "log_softmax" | "_log_softmax" | "special_log_softmax"
                if !takes_logarithm && is_over_classes(node, graph, before) =>
            {
                return (before, Final::LogSoftmax);
            }
            "sigmoid" | "special_expit" if !takes_logarithm && is_class_values(axes, before) => {
                return (before, Final::Sigmoid);
            }
            "log" if !takes_logarithm => takes_logarithm = true,
            "view" | "_unsafe_view" | "reshape" | "flatten" | "squeeze" | "unsqueeze" | "contiguous" | "clone"
            | "to" | "_to_copy" | "alias" => {}
            _ => break,
        }
        value = before;
    }
    (output, Final::Logits)
}

/// Whether a softmax runs over the classes, axis 1 of what it reads, for each frame by itself.
fn is_over_classes(node: &Node, graph: &Graph, input: ValueId) -> bool {
    let rank = graph.value(input).shape.as_ref().map_or(0, Vec::len) as i64;
    match node.literal("dim") {
        Some(Value::Int(dim)) => *dim == 1 || dim + rank == 1,
        _ => false,
    }
}

/// Whether the value holds nothing but classes for each frame.
fn is_class_values(axes: &Axes, value: ValueId) -> bool {
    let own = axes.get(value).unwrap_or_default();
    own.len() <= 2 || own[2..].iter().all(|axis| Axis::size(axis) == 1)
}

/// Names the node that stops the gradient.
fn no_gradient(graph: &Graph, axes: &Axes, value: ValueId, output: &str) -> ModelError {
    let ancestors = graph.ancestors(value);
    let stops = |node: &&Node| {
        let reads = node.uses().any(|read| axes.depends(read) && graph.value(read).differentiable);
        reads
            && node.defines().any(|made| ancestors.contains(&made) && axes.depends(made))
            && node.defines().all(|made| !graph.value(made).differentiable)
    };
    let (stopped, advice) = match graph.nodes.iter().rev().find(stops) {
        Some(node) if node.no_grad => {
            (format!("node {} runs under torch.no_grad()", node.name), "export the model without torch.no_grad()")
        }
        Some(node) => (
            format!("node {} ({}) has no derivative, or one of 0", node.name, node.operator_name()),
            "export a model without this step: one that ends in the logits",
        ),
        None => ("it does not depend on the input".to_owned(), "export the part of the model that reads the picture"),
    };
    let other = graph.outputs.iter().filter_map(|output| output.value);
    let has_other = other.filter(|&other| other != value).any(|other| graph.value(other).differentiable);
    let advice = if has_other {
        format!("{advice}, or name another output as output.logits in model.toml")
    } else {
        advice.to_owned()
    };
    ModelError::refused(format!("no gradient comes back from output {output} to the picture: {stopped}"), advice)
}
