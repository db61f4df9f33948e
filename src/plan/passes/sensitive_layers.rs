//! The early layers of a network, whose rounding changes maps most.

use std::collections::HashSet;

use crate::model::node::{Node, ValueId};

use crate::plan::draft::Draft;

/// A layer is early if it reads maps of more than 1/8 of the input's pixels: the input, or half its height and width.
const PIXELS: i64 = 8;
/// The early layers make at most 1/6 of the network's multiplications.
const SHARE: i64 = 6;

/// Indices of the nodes that compute with large maps, from the input alone or from the results of such nodes; and of
/// the rectifiers of their results.
pub fn sensitive_layers(draft: &Draft) -> HashSet<usize> {
    let costs: Vec<i64> = draft.nodes.iter().map(|node| multiplications(draft, node)).collect();
    let mut left = costs.iter().sum::<i64>() / SHARE;
    let mut known = HashSet::from([draft.input]);
    let mut first = HashSet::new();
    for (at, (node, cost)) in draft.nodes.iter().zip(costs).enumerate() {
        let mut read = node.uses().filter(|value| !draft.constants.contains_key(value)).peekable();
        let reads_any = read.peek().is_some();
        let suits = |value| known.contains(&value) && (node.rectifier.is_some() || is_large(draft, value));
        if reads_any && cost <= left && read.all(suits) {
            left -= cost;
            known.extend(node.defines());
            first.insert(at);
        }
    }
    first
}

fn is_large(draft: &Draft, value: ValueId) -> bool {
    let pixels = |value| match draft.shape(value) {
        Some(&[_, _, height, width]) => height * width,
        _ => 0,
    };
    pixels(value) * PIXELS > pixels(draft.input)
}

/// Multiplications by constant weights in convolutions and linear layers, for the input size of the export.
fn multiplications(draft: &Draft, node: &Node) -> i64 {
    if !matches!(node.operator_name(), "conv2d" | "convolution" | "linear") {
        return 0;
    }
    let size = node.argument("weight").and_then(|weight| draft.constant(weight)).map(|weight| weight.size());
    let of_one = size.map_or(0, |size| size.iter().skip(1).product::<i64>());
    let results = node.defines().filter_map(|value| draft.shape(value)).map(|shape| shape.iter().product::<i64>());
    results.sum::<i64>() * of_one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Mode;
    use crate::plan::test_graphs::{GraphBuilder, random, spec};

    /// Indices of the early layers of a network of four convolutions with rectifiers. The second has stride 2, the
    /// third stride 4, and the fourth has `channels` output channels.
    fn early_layers(channels: i64) -> Vec<usize> {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 16, 16]));
        let mut y = builder.input();
        for (inputs, outputs, stride) in [(3, 4, 1), (4, 4, 2), (4, 4, 4), (4, channels, 1)] {
            let weight = builder.constant(random(&[outputs, inputs, 3, 3]));
            y = builder.node(
                "conv2d",
                vec![
                    ("input", y.into()),
                    ("weight", weight.into()),
                    ("stride", [stride; 2].into()),
                    ("padding", [1, 1].into()),
                ],
            );
            y = builder.relu(y);
        }
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let mut indices: Vec<_> =
            sensitive_layers(&Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16))).into_iter().collect();
        indices.sort_unstable();
        indices
    }

    #[test]
    fn they_read_large_values() {
        assert_eq!(early_layers(10_000), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn they_are_a_small_part_of_the_work() {
        assert_eq!(early_layers(1), Vec::<usize>::new());
    }

    #[test]
    fn what_also_reads_a_later_value_is_none() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 16, 16]));
        let mean =
            builder.node("adaptive_avg_pool2d", vec![("self", builder.input().into()), ("output_size", [1, 1].into())]);
        let scale = builder.node("sigmoid", vec![("self", mean.into())]);
        let scaled = builder.node("mul.Tensor", vec![("self", builder.input().into()), ("other", scale.into())]);
        let score = builder.pooled(scaled);
        let graph = builder.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16));
        let first = sensitive_layers(&draft);
        assert!(first.iter().all(|&at| !draft.nodes[at].defines().any(|value| value == scaled)));
    }
}
