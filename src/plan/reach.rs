//! Which values a gradient passes through.

use std::collections::HashSet;

use crate::model::node::ValueId;

use super::passes::Draft;

/// The values that `from` reaches through derivatives, themselves included.
pub fn descendants(draft: &Draft, from: impl IntoIterator<Item = ValueId>) -> HashSet<ValueId> {
    let mut set: HashSet<ValueId> = from.into_iter().collect();
    for node in draft.nodes.iter().filter(|node| !node.no_grad) {
        if node.uses().any(|v| set.contains(&v)) {
            set.extend(node.defines().filter(|v| draft.is_differentiable(*v)));
        }
    }
    set
}

/// The values through which a gradient of `score` comes, itself included.
pub fn on_the_way_to(draft: &Draft, score: ValueId) -> HashSet<ValueId> {
    let mut set = HashSet::from([score]);
    for node in draft.nodes.iter().rev().filter(|node| !node.no_grad) {
        if node.defines().any(|v| set.contains(&v)) {
            set.extend(node.uses().filter(|v| draft.is_differentiable(*v)));
        }
    }
    set
}

/// Whether a node that a guided run guides lies between `targets` and `score`, on any path. One whose output is the target
/// does not.
pub fn is_guided_between(draft: &Draft, targets: &[ValueId], score: ValueId) -> bool {
    let down = descendants(draft, targets.iter().copied());
    let back = on_the_way_to(draft, score);
    draft.nodes.iter().any(|node| {
        node.rectifier.is_some()
            && node.uses().any(|v| down.contains(&v))
            && node.defines().any(|v| back.contains(&v) && down.contains(&v))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Mode;
    use crate::plan::test_graphs::{Sketch, random, spec};

    /// x → a = relu(x) → b = conv(a) → score = mean(b); a target at each value.
    fn chain() -> (crate::model::graph::Graph, [ValueId; 4]) {
        let mut sketch = Sketch::new(&random(&[1, 2, 3, 3]));
        let x = sketch.input();
        let a = sketch.relu(x);
        let b = sketch.convolution(a, 2);
        let score = sketch.pooled(b);
        (sketch.finish(score), [x, a, b, score])
    }

    #[test]
    fn a_rectifier_counts_below_its_input_but_not_below_its_result() {
        let (graph, [x, a, b, score]) = chain();
        let draft = Draft::new(&graph, &spec(&graph, &[], Mode::Exact));
        assert!(is_guided_between(&draft, &[x], score));
        assert!(!is_guided_between(&draft, &[a], score));
        assert!(!is_guided_between(&draft, &[b], score));
        assert!(is_guided_between(&draft, &[b, x], score), "one target is enough");
    }

    #[test]
    fn a_rectifier_on_another_branch_does_not_count() {
        let mut sketch = Sketch::new(&random(&[1, 2, 3, 3]));
        let x = sketch.input();
        let target = sketch.convolution(x, 2);
        let other = sketch.relu(x);
        let sum = sketch.add(target, other);
        let score = sketch.pooled(sum);
        let graph = sketch.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[target], Mode::Exact));
        assert!(!is_guided_between(&draft, &[target], score));
    }

    #[test]
    fn a_rectifier_that_does_not_lead_to_the_score_does_not_count() {
        let mut sketch = Sketch::new(&random(&[1, 2, 3, 3]));
        let target = sketch.convolution(sketch.input(), 2);
        let aside = sketch.relu(target);
        let score = sketch.pooled(target);
        let graph = sketch.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[target, aside], Mode::Exact));
        assert!(!is_guided_between(&draft, &[target], score));
    }

    #[test]
    fn no_gradient_passes_a_node_that_ran_without() {
        let mut sketch = Sketch::new(&random(&[1, 2, 3, 3]));
        let x = sketch.input();
        let a = sketch.relu(x);
        let graph = sketch.no_grad().finish(a);
        let draft = Draft::new(&graph, &spec(&graph, &[], Mode::Exact));
        assert!(!descendants(&draft, [x]).contains(&a));
        assert!(!on_the_way_to(&draft, a).contains(&x));
    }
}
