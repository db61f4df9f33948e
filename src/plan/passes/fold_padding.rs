//! Folds zero padding before a convolution into the convolution's own padding.

use std::collections::{HashMap, HashSet};

use crate::model::node::{Argument, Node, ValueId};
use crate::plan::PlanError;
use crate::torch::Value;

use crate::plan::draft::Draft;

/// Removes each `pad` of zeros, equal on both sides of an axis, whose only reader is a two-dimensional convolution, and
/// adds it to the convolution's padding.
pub fn fold_padding(draft: &mut Draft) -> Result<(), PlanError> {
    let readers = draft.readers();
    let pads: HashMap<ValueId, usize> = draft
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| border(node).is_some())
        .filter_map(|(at, node)| Some((node.outputs.first().copied().flatten()?, at)))
        .collect();
    let mut gone = HashSet::new();
    for at in 0..draft.nodes.len() {
        let convolution = &draft.nodes[at];
        if convolution.operator_name() != "conv2d" {
            continue;
        }
        let Some(&Argument::Use(padded)) = convolution.arguments.first() else { continue };
        let Some(&pad) = pads.get(&padded) else { continue };
        let same_way = draft.nodes[pad].no_grad == convolution.no_grad;
        let position = convolution.operation.aten().and_then(|operator| operator.schema().position("padding"));
        let (Some(position), Some(own)) = (position, convolution.literal("padding").and_then(own_padding)) else {
            continue;
        };
        let Some(border) = border(&draft.nodes[pad]).filter(|_| readers.only_reader(padded) == Some(at) && same_way)
        else {
            continue;
        };
        let source = draft.nodes[pad].arguments[0].clone();
        let name = format!("{}+{}", draft.nodes[pad].name, convolution.name);
        let node = &mut draft.nodes[at];
        node.arguments[0] = source;
        node.arguments[position] = Argument::Literal(Value::Ints(vec![own[0] + border[0], own[1] + border[1]]));
        node.name = name;
        gone.insert(pad);
    }
    draft.remove(&gone);
    Ok(())
}

/// A convolution's own padding, as height and width.
fn own_padding(value: &Value) -> Option<[i64; 2]> {
    match value {
        Value::Ints(list) => match *list.as_slice() {
            [both] => Some([both, both]),
            [height, width] => Some([height, width]),
            _ => None,
        },
        Value::Int(both) => Some([*both, *both]),
        _ => None,
    }
}

/// The zeros that a node adds on each side, as height and width; `None` for any other node.
fn border(node: &Node) -> Option<[i64; 2]> {
    let is_zero =
        |value: &Value| matches!(value, Value::None | Value::Int(0)) || matches!(value, Value::Float(v) if *v == 0.0);
    let writes_zeros = match node.operator_name() {
        "pad" => matches!(node.literal("mode"), Some(Value::String(mode)) if mode == "constant"),
        "constant_pad_nd" => true,
        _ => false,
    } && node.literal("value").is_some_and(is_zero);
    let Some(Value::Ints(sides)) = node.literal("pad") else { return None };
    match *sides.as_slice() {
        [left, right, top, bottom] if writes_zeros && left == right && top == bottom && left >= 0 && top >= 0 => {
            Some([top, left])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{GraphBuilder, Of, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Until};

    /// A graph of a padding and a convolution, and the padded value.
    fn padded(sides: [i64; 4], value: f64) -> (Graph, ValueId) {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 6, 7]));
        let sides = Of::Literal(Value::Ints(sides.to_vec()));
        let padded =
            builder.node("pad", vec![("self", builder.input().into()), ("pad", sides), ("value", value.into())]);
        let y = builder.convolution(padded, 4);
        let score = builder.pooled(y);
        (builder.finish(score), padded)
    }

    fn names(graph: &Graph, targets: &[ValueId]) -> Vec<String> {
        let mut draft = Draft::new(graph, &spec(graph, targets, Mode::Default));
        fold_padding(&mut draft).unwrap();
        draft.nodes.into_iter().map(|node| node.name).collect()
    }

    #[test]
    fn zeros_become_the_convolutions_own() {
        let (graph, _) = padded([2, 2, 1, 1], 0.0);
        assert_eq!(names(&graph, &[]), ["pad_0+conv2d_1", "mean_2"]);
        let x = random(&[2, 3, 6, 7]);
        let [exact, folded] = [Mode::Exact, Mode::Default].map(|mode| compile(&graph, &[], mode));
        let [exact, folded] = [&exact, &folded].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
        assert!(distance(folded.logits(), exact.logits()) < 1e-6);
        let seed = random(&[2, 4]);
        let [exact, folded] = [&exact, &folded]
            .map(|pass| pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap().input.unwrap());
        assert_eq!(folded.size(), [2, 3, 6, 7]);
        assert!(distance(&folded, &exact) < 1e-6);
    }

    #[test]
    fn what_is_not_zeros_all_around_stays() {
        for (sides, value) in [([1, 2, 1, 1], 0.0), ([1, 1, 1, 1], 0.5), ([-1, -1, 0, 0], 0.0)] {
            assert_eq!(names(&padded(sides, value).0, &[]).len(), 3, "{sides:?} {value}");
        }
    }

    #[test]
    fn a_target_stays() {
        let (graph, between) = padded([1, 1, 1, 1], 0.0);
        assert_eq!(names(&graph, &[between]).len(), 3);
    }
}
