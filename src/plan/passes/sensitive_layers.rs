//! The layers at a network's beginning, which tell more of its maps than others.

use std::collections::HashSet;

use crate::model::node::{Node, ValueId};

use super::Draft;

/// They read values of more than one in so many of the picture's pixels: the picture itself, and what has half its height and width.
const PIXELS: i64 = 8;
/// They make one in so many of the network's multiplications, at most.
const SHARE: i64 = 6;

/// The nodes, by their places, that compute with large values, of the input alone or of such nodes' results; and the rectifiers of what
/// these give.
pub fn first_layers(draft: &Draft) -> HashSet<usize> {
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

/// With weights that do not depend on the input, in convolutions and linear layers.
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
    use crate::plan::test_graphs::{Sketch, random, spec};

    /// The places of the first layers of a network of four convolutions with rectifiers, the second one of stride 2 and the third one of
    /// stride 4, where the last one gives so many channels.
    fn places(channels: i64) -> Vec<usize> {
        let mut sketch = Sketch::new(&random(&[1, 3, 16, 16]));
        let mut y = sketch.input();
        for (inputs, outputs, stride) in [(3, 4, 1), (4, 4, 2), (4, 4, 4), (4, channels, 1)] {
            let weight = sketch.constant(random(&[outputs, inputs, 3, 3]));
            y = sketch.node(
                "conv2d",
                vec![
                    ("input", y.into()),
                    ("weight", weight.into()),
                    ("stride", [stride; 2].into()),
                    ("padding", [1, 1].into()),
                ],
            );
            y = sketch.relu(y);
        }
        let score = sketch.pooled(y);
        let graph = sketch.finish(score);
        let mut places: Vec<_> =
            first_layers(&Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16))).into_iter().collect();
        places.sort_unstable();
        places
    }

    #[test]
    fn they_read_large_values() {
        assert_eq!(places(10_000), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn they_are_a_small_part_of_the_work() {
        assert_eq!(places(1), Vec::<usize>::new());
    }

    #[test]
    fn what_also_reads_a_later_value_is_none() {
        let mut sketch = Sketch::new(&random(&[1, 3, 16, 16]));
        let mean =
            sketch.node("adaptive_avg_pool2d", vec![("self", sketch.input().into()), ("output_size", [1, 1].into())]);
        let scale = sketch.node("sigmoid", vec![("self", mean.into())]);
        let scaled = sketch.node("mul.Tensor", vec![("self", sketch.input().into()), ("other", scale.into())]);
        let score = sketch.pooled(scaled);
        let graph = sketch.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16));
        let first = first_layers(&draft);
        assert!(first.iter().all(|&at| !draft.nodes[at].defines().any(|value| value == scaled)));
    }
}
