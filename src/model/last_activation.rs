//! The activation in which a model ends: what it makes of the logits, and where these are in the graph.

use std::collections::BTreeSet;

use super::axes::{Axes, Axis};
use super::graph::Graph;
use super::node::{Argument, Node, ValueId};
use crate::torch::Value;

/// What the model itself computes from the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    Logits,
    Softmax,
    LogSoftmax,
    Sigmoid,
    /// Both probabilities of one logit, `sigmoid(z)` and `1 − sigmoid(z)`, side by side.
    SigmoidAndRest {
        /// The class whose probability is `sigmoid(z)`: 0 or 1.
        class: u32,
    },
}

/// The number of logits of a frame in a value of this shape: `[N, classes]`, `[N, classes, 1, 1]` or `[N]`.
pub fn logits_in(shape: &[i64]) -> Option<u32> {
    match *shape {
        [_] => Some(1),
        [_, classes] | [_, classes, 1, 1] => u32::try_from(classes).ok(),
        _ => None,
    }
}

/// The value that enters the last activation, and which one it is.
pub(super) fn before_activation(graph: &Graph, axes: &Axes, output: ValueId) -> (ValueId, Final) {
    let (mut value, mut takes_logarithm) = (output, false);
    while let Some(node) = maker(graph, value) {
        let Some(before) = inputs(graph, axes, node).next() else { break };
        match node.operator_name() {
            "softmax" | "_softmax" | "special_softmax" if is_over_classes(node, graph, before) => {
                return (before, if takes_logarithm { Final::LogSoftmax } else { Final::Softmax });
            }
            "log_softmax" | "_log_softmax" | "special_log_softmax"
                if !takes_logarithm && is_over_classes(node, graph, before) =>
            {
                return (before, Final::LogSoftmax);
            }
            name if is_sigmoid(name) && !takes_logarithm && is_class_values(axes, before) => {
                return (before, Final::Sigmoid);
            }
            "log" if !takes_logarithm => takes_logarithm = true,
            name if keeps_elements(name) => {}
            _ if takes_logarithm => break,
            _ => match sigmoid_and_rest(graph, axes, node) {
                Some(found) => return found,
                None => break,
            },
        }
        value = before;
    }
    (output, Final::Logits)
}

/// Whether a value is put together from softmaxes and sigmoids by sums, products and cuts alone, as the mean of several
/// models' probabilities is. Then it holds no logits.
pub(super) fn is_of_probabilities(graph: &Graph, axes: &Axes, value: ValueId) -> bool {
    let (mut waiting, mut seen) = (vec![value], BTreeSet::new());
    let mut has_probabilities = false;
    while let Some(value) = waiting.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some(node) = maker(graph, value) else { return false };
        match node.operator_name() {
            "softmax" | "_softmax" | "special_softmax" | "hardsigmoid" => has_probabilities = true,
            name if is_sigmoid(name) => has_probabilities = true,
            "add" | "sub" | "rsub" | "mul" | "div" | "neg" | "mean" | "sum" | "clamp" | "clamp_min" | "clamp_max"
            | "slice" | "select" | "narrow" | "index_select" | "unbind" | "split" | "chunk" | "expand" | "stack" => {
                waiting.extend(inputs(graph, axes, node));
            }
            name if keeps_elements(name) || concatenates(name) => waiting.extend(inputs(graph, axes, node)),
            _ => return false,
        }
    }
    has_probabilities
}

fn maker(graph: &Graph, value: ValueId) -> Option<&Node> {
    graph.nodes.iter().find(|node| node.defines().any(|made| made == value))
}

/// The values that a node reads and through which a gradient comes back to the picture.
fn inputs(graph: &Graph, axes: &Axes, node: &Node) -> impl Iterator<Item = ValueId> {
    node.uses().filter(|&read| axes.depends(read) && graph.value(read).differentiable)
}

fn is_sigmoid(operator: &str) -> bool {
    matches!(operator, "sigmoid" | "special_expit")
}

/// Whether an operator gives the elements that it reads, in their order.
fn keeps_elements(operator: &str) -> bool {
    matches!(
        operator,
        "view"
            | "_unsafe_view"
            | "reshape"
            | "flatten"
            | "squeeze"
            | "unsqueeze"
            | "contiguous"
            | "clone"
            | "to"
            | "_to_copy"
            | "alias"
    )
}

fn concatenates(operator: &str) -> bool {
    matches!(operator, "cat" | "concat" | "concatenate" | "hstack" | "column_stack")
}

/// Whether a softmax runs over the classes, axis 1 of what it reads, for each frame by itself.
fn is_over_classes(node: &Node, graph: &Graph, input: ValueId) -> bool {
    let rank = shape(graph, input).len() as i64;
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

fn shape(graph: &Graph, value: ValueId) -> &[i64] {
    graph.value(value).shape.as_deref().unwrap_or_default()
}

fn count(graph: &Graph, value: ValueId) -> i64 {
    shape(graph, value).iter().product()
}

/// Of a node that puts `sigmoid(z)` and `1 − sigmoid(z)`, or `sigmoid(−z)`, side by side as two classes: the logit.
fn sigmoid_and_rest(graph: &Graph, axes: &Axes, node: &Node) -> Option<(ValueId, Final)> {
    let joined = node.defines().next()?;
    let [frames, 2, rest @ ..] = shape(graph, joined) else { return None };
    let rank = shape(graph, joined).len() as i64;
    let is_over_classes = match (node.operator_name(), node.literal("dim")) {
        ("hstack" | "column_stack", None) => true,
        (name, Some(Value::Int(dim))) => (concatenates(name) || name == "stack") && (*dim == 1 || dim + rank == 1),
        _ => false,
    };
    let mut parts = node.uses().map(|part| sign_in_sigmoid(graph, axes, part));
    let (Some(first), Some(second), None) = (parts.next(), parts.next(), parts.next()) else { return None };
    let ((logit, first), (other, second)) = (first?, second?);
    let is_of_one_logit = logit == other && first != second && logits_in(shape(graph, logit)) == Some(1);
    (is_over_classes && is_of_one_logit && rest.iter().all(|&size| size == 1) && count(graph, logit) == *frames)
        .then_some((logit, Final::SigmoidAndRest { class: if first == Sign::Positive { 0 } else { 1 } }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Positive,
    Negative,
}

impl Sign {
    fn reversed(self) -> Self {
        match self {
            Sign::Positive => Sign::Negative,
            Sign::Negative => Sign::Positive,
        }
    }
}

/// The value `z` when `value` is `sigmoid(z)` (positive), or `1 − sigmoid(z)`, which is `sigmoid(−z)` (negative).
fn sign_in_sigmoid(graph: &Graph, axes: &Axes, value: ValueId) -> Option<(ValueId, Sign)> {
    let (mut value, mut sign) = (value, Sign::Positive);
    loop {
        let node = maker(graph, value)?;
        let before = inputs(graph, axes, node).next()?;
        let name = node.operator_name();
        if is_sigmoid(name) {
            return Some(match maker(graph, before).and_then(|node| negated(graph, axes, node)) {
                Some(opposite) => (opposite, sign.reversed()),
                None => (before, sign),
            });
        }
        let is_same = || {
            (keeps_elements(name) || matches!(name, "select" | "slice" | "narrow"))
                && count(graph, before) == count(graph, value)
        };
        value = match rest(graph, axes, node) {
            Some(taken) => {
                sign = sign.reversed();
                taken
            }
            None if is_same() => before,
            None => return None,
        };
    }
}

/// The `x` of a node that computes `−x`.
fn negated(graph: &Graph, axes: &Axes, node: &Node) -> Option<ValueId> {
    let is_negated = match node.operator_name() {
        "neg" | "negative" => true,
        "mul" => number(graph, node, "other").or_else(|| number(graph, node, "self")) == Some(-1.0),
        _ => false,
    };
    inputs(graph, axes, node).next().filter(|_| is_negated)
}

/// The `x` of a node that computes `1 − x`, or `−x + 1`.
fn rest(graph: &Graph, axes: &Axes, node: &Node) -> Option<ValueId> {
    let read = inputs(graph, axes, node).next()?;
    let is_one = |name: &str| number(graph, node, name) == Some(1.0);
    let is_plain = number(graph, node, "alpha").is_none_or(|alpha| alpha == 1.0);
    match node.operator_name() {
        "rsub" if is_one("other") && is_plain => Some(read),
        "sub" | "subtract" if is_one("self") && is_plain => Some(read),
        "add" if (is_one("other") || is_one("self")) && is_plain => negated(graph, axes, maker(graph, read)?),
        _ => None,
    }
}

/// An argument that is a number, or a constant of one element.
fn number(graph: &Graph, node: &Node, name: &str) -> Option<f64> {
    match node.argument(name)? {
        Argument::Literal(Value::Int(number)) => Some(*number as f64),
        Argument::Literal(Value::Float(number)) => Some(*number),
        Argument::Use(id) => match graph.constants.get(id) {
            Some(constant) if constant.numel() == 1 => {
                constant.tensor().ok()?.f_view([1]).ok()?.f_double_value(&[0]).ok()
            }
            Some(_) => None,
            None => (maker(graph, *id)?.operator_name() == "ones_like").then_some(1.0),
        },
        _ => None,
    }
}
