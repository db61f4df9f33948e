//! When a value is no longer needed.

use std::collections::HashSet;

use crate::model::node::{Node, ValueId};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::test_graphs::{Sketch, random};

    #[test]
    fn a_value_goes_after_its_last_reader() {
        let mut sketch = Sketch::new(&random(&[1, 1, 2, 2]));
        let x = sketch.input();
        let a = sketch.relu(x);
        let b = sketch.relu(a);
        let c = sketch.add(a, b);
        let nodes = sketch.finish(c).nodes;
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
        let mut sketch = Sketch::new(&random(&[1, 1, 2, 2]));
        let x = sketch.input();
        let constant = sketch.constant(random(&[1, 1, 2, 2]));
        let unread = sketch.add(x, constant);
        let nodes = sketch.finish(unread).nodes;
        assert_eq!(releases(&nodes, &[x], |id| id == constant), [vec![unread]]);
    }
}
