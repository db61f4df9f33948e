//! The last reader of each value.

use std::collections::HashSet;

use crate::model::node::{Node, ValueId};

/// For each node, the values that it reads or computes and no later node reads, except those in `keep` and constants.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::test_graphs::{GraphBuilder, random};

    #[test]
    fn a_value_goes_after_its_last_reader() {
        let mut builder = GraphBuilder::new(&random(&[1, 1, 2, 2]));
        let x = builder.input();
        let a = builder.relu(x);
        let b = builder.relu(a);
        let c = builder.add(a, b);
        let nodes = builder.finish(c).nodes;
        let sorted = |keep: &[ValueId]| {
            let mut releases = releases(&nodes, keep, |_| false);
            releases.iter_mut().for_each(|r| r.sort());
            releases
        };
        assert_eq!(sorted(&[c]), [vec![x], vec![], vec![a, b]]);
        assert_eq!(sorted(&[c, b]), [vec![x], vec![], vec![a]]);
    }

    #[test]
    fn a_result_that_nobody_reads_goes_at_once_and_constants_never() {
        let mut builder = GraphBuilder::new(&random(&[1, 1, 2, 2]));
        let x = builder.input();
        let constant = builder.constant(random(&[1, 1, 2, 2]));
        let unread = builder.add(x, constant);
        let nodes = builder.finish(unread).nodes;
        assert_eq!(releases(&nodes, &[x], |id| id == constant), [vec![unread]]);
    }
}
