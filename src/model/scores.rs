//! What the output that is explained means: where the logits are in the graph, and how they become probabilities.

use super::ModelError;
use super::axes::Axes;
use super::description::Activation;
use super::graph::Graph;
use super::last_activation::{Final, before_activation, is_of_probabilities, logits_in};
use super::node::{Node, ValueId};

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
    /// 0, which it speaks for, and 1, which it speaks against; the other way round where [`Final::SigmoidAndRest`] says
    /// so.
    pub class_count: Option<u32>,
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
            Final::Sigmoid | Final::SigmoidAndRest { .. } => Some(Activation::Sigmoid),
        };
        let assumed = || match values {
            // A softmax of probabilities would be neither.
            _ if is_of_probabilities(graph, axes, value) => Activation::None,
            Some(1) => Activation::Sigmoid,
            _ => Activation::Softmax,
        };
        let chosen = match activation {
            // Over the scores z and −z, a softmax would be the sigmoid of 2 z.
            Some(Activation::Softmax) if values == Some(1) => Activation::Sigmoid,
            Some(named) => named,
            None => own.unwrap_or_else(assumed),
        };
        Ok(Scores {
            output,
            logits,
            last,
            activation: chosen,
            activation_is_known: activation.or(own).is_some(),
            class_count: values.map(|values| values.max(2)),
        })
    }
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
