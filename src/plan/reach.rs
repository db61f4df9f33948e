//! Which values a gradient passes through.

use std::collections::HashSet;

use crate::model::graph::{Graph, Node, ValueId};

/// The values that `from` reaches through derivatives, themselves included.
pub fn descendants(graph: &Graph, nodes: &[Node], from: impl IntoIterator<Item = ValueId>) -> HashSet<ValueId> {
    let mut set: HashSet<ValueId> = from.into_iter().collect();
    for node in nodes.iter().filter(|node| !node.no_grad) {
        if node.uses().any(|v| set.contains(&v)) {
            set.extend(node.defines().filter(|v| graph.value(*v).differentiable));
        }
    }
    set
}

/// The values through which a gradient of `score` comes, itself included.
pub fn on_the_way_to(graph: &Graph, nodes: &[Node], score: ValueId) -> HashSet<ValueId> {
    let mut set = HashSet::from([score]);
    for node in nodes.iter().rev().filter(|node| !node.no_grad) {
        if node.defines().any(|v| set.contains(&v)) {
            set.extend(node.uses().filter(|v| graph.value(*v).differentiable));
        }
    }
    set
}

/// Whether a node that a guided run guides lies between `targets` and `score`, on any path. One whose output is the target
/// does not.
pub fn is_guided_between(graph: &Graph, nodes: &[Node], targets: &[ValueId], score: ValueId) -> bool {
    let down = descendants(graph, nodes, targets.iter().copied());
    let back = on_the_way_to(graph, nodes, score);
    nodes.iter().any(|node| {
        node.rectifier.is_some()
            && node.uses().any(|v| down.contains(&v))
            && node.defines().any(|v| back.contains(&v) && down.contains(&v))
    })
}
