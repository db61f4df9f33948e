//! Operators that stop gradients as a rectifier does, and that guided backpropagation does not guide.

use std::collections::{BTreeSet, HashSet};

use super::graph::Graph;
use super::node::{Argument, ValueId};
use crate::torch::Value;

/// Each such node on the way to the logits, `upstream` of which are all values that they depend on: the node's name and
/// its operator.
///
/// These are choices by a comparison of the model's own values (`where`, `masked_fill`, a product with the comparison),
/// larger ones of two values, and clamps and thresholds at other bounds than 0.
pub fn unguided(graph: &Graph, upstream: &BTreeSet<ValueId>) -> Vec<String> {
    let differentiable = |argument: &Argument| match argument {
        Argument::Use(id) => graph.value(*id).differentiable,
        _ => false,
    };
    let mut comparisons: HashSet<ValueId> = HashSet::new();
    let mut found = Vec::new();
    for node in &graph.nodes {
        let operator = node.operator_name().trim_end_matches('_');
        let compared =
            |argument: Option<&Argument>| matches!(argument, Some(Argument::Use(id)) if comparisons.contains(id));
        let number = |name: &str| {
            matches!(node.argument(name), Some(Argument::Literal(Value::Int(_) | Value::Float(_)) | Argument::Use(_)))
        };
        let stops = match operator {
            "where" => compared(node.argument("condition")),
            "masked_fill" => compared(node.argument("mask")),
            "mul" => compared(node.argument("self")) || compared(node.argument("other")),
            "maximum" | "fmax" => true,
            "max" => node.argument("other").is_some(),
            "clamp" | "clip" => number("min"),
            "clamp_min" | "hardtanh" | "threshold" | "hardshrink" | "softshrink" => true,
            _ => false,
        };
        let gates = stops && node.rectifier.is_none() && node.arguments.iter().any(differentiable);
        if gates && node.defines().any(|id| upstream.contains(&id) && has_positions(graph, id)) {
            found.push(format!("{} ({operator})", node.name));
        }
        let compares = match operator {
            "gt" | "ge" | "lt" | "le" | "greater" | "greater_equal" | "less" | "less_equal" | "sign" | "sgn"
            | "heaviside" | "signbit" => node.arguments.iter().any(differentiable),
            "to" | "_to_copy" | "type_as" | "clone" | "alias" | "logical_not" | "bitwise_not" | "logical_and"
            | "logical_or" | "bitwise_and" | "bitwise_or" | "float" => {
                node.arguments.iter().any(|argument| compared(Some(argument)))
            }
            _ => false,
        };
        if compares {
            comparisons.extend(node.defines());
        }
    }
    found
}

/// Whether a value has more than one number for each frame and channel or token: not a norm or another denominator.
fn has_positions(graph: &Graph, id: ValueId) -> bool {
    graph.value(id).shape.as_ref().is_some_and(|shape| shape.len() >= 2 && shape[1..].iter().all(|&size| size > 1))
}
