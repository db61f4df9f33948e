//! Which values a gradient passes through.

use std::collections::HashSet;

use crate::model::node::ValueId;

use super::draft::Draft;

/// The values that `from` reaches by differentiable nodes, including `from`.
pub fn descendants(draft: &Draft, from: impl IntoIterator<Item = ValueId>) -> HashSet<ValueId> {
    let mut set: HashSet<ValueId> = from.into_iter().collect();
    for node in draft.nodes.iter().filter(|node| !node.no_grad) {
        if node.uses().any(|v| set.contains(&v)) {
            set.extend(node.defines().filter(|v| draft.is_differentiable(*v)));
        }
    }
    set
}

/// The values that a gradient of `score` reaches, including `score`.
pub fn ancestors(draft: &Draft, score: ValueId) -> HashSet<ValueId> {
    let mut set = HashSet::from([score]);
    for node in draft.nodes.iter().rev().filter(|node| !node.no_grad) {
        if node.defines().any(|v| set.contains(&v)) {
            set.extend(node.uses().filter(|v| draft.is_differentiable(*v)));
        }
    }
    set
}

/// Whether a rectifier lies on a path from a target to `score`. A rectifier whose result is the target does not count.
pub fn is_guided_between(draft: &Draft, targets: &[ValueId], score: ValueId) -> bool {
    let down = descendants(draft, targets.iter().copied());
    let ancestors = ancestors(draft, score);
    draft.nodes.iter().any(|node| {
        node.rectifier.is_some()
            && node.uses().any(|v| down.contains(&v))
            && node.defines().any(|v| ancestors.contains(&v) && down.contains(&v))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Mode;
    use crate::plan::test_graphs::{GraphBuilder, random, spec};

    /// x → a = relu(x) → b = conv(a) → score = mean(b); a target at each value.
    fn chain() -> (crate::model::graph::Graph, [ValueId; 4]) {
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let x = builder.input();
        let a = builder.relu(x);
        let b = builder.convolution(a, 2);
        let score = builder.pooled(b);
        (builder.finish(score), [x, a, b, score])
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
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let x = builder.input();
        let target = builder.convolution(x, 2);
        let other = builder.relu(x);
        let sum = builder.add(target, other);
        let score = builder.pooled(sum);
        let graph = builder.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[target], Mode::Exact));
        assert!(!is_guided_between(&draft, &[target], score));
    }

    #[test]
    fn a_rectifier_that_does_not_lead_to_the_score_does_not_count() {
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let target = builder.convolution(builder.input(), 2);
        let aside = builder.relu(target);
        let score = builder.pooled(target);
        let graph = builder.finish(score);
        let draft = Draft::new(&graph, &spec(&graph, &[target, aside], Mode::Exact));
        assert!(!is_guided_between(&draft, &[target], score));
    }

    #[test]
    fn no_gradient_passes_a_node_that_ran_without() {
        let mut builder = GraphBuilder::new(&random(&[1, 2, 3, 3]));
        let x = builder.input();
        let a = builder.relu(x);
        let graph = builder.no_grad().finish(a);
        let draft = Draft::new(&graph, &spec(&graph, &[], Mode::Exact));
        assert!(!descendants(&draft, [x]).contains(&a));
        assert!(!ancestors(&draft, a).contains(&x));
    }
}
