//! When a value is no longer needed.

use std::collections::HashSet;

use crate::model::graph::{Node, ValueId};

/// For each node, the values that are read or computed there and never read after; `keep` and constants live on.
pub fn releases(nodes: &[Node], keep: &[ValueId], is_constant: impl Fn(ValueId) -> bool) -> Vec<Vec<ValueId>> {
    let mut alive: HashSet<ValueId> = keep.iter().copied().collect();
    let mut releases = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        for value in node.defines().chain(node.uses()) {
            if !is_constant(value) && alive.insert(value) {
                releases[index].push(value);
            }
        }
    }
    releases
}
