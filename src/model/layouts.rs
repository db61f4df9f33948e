//! Finds how each value of a graph is read as a map.

use super::axes::Axes;
use super::description::ExplainDescription;
use super::graph::Graph;
use super::map_layout::{LayoutProblem, MapLayout};
use super::node::ValueId;

impl Graph {
    /// Finds the layout of every value: from the axes of the graph, else from the description. A value that does not
    /// lead to the logits has none.
    pub(super) fn find_layouts(&mut self, axes: &Axes, description: &ExplainDescription, logits: ValueId) {
        let leading = self.ancestors(logits);
        let layout = |index: usize| {
            let id = ValueId(index as u32);
            let (Some(own), Some(shape)) = (axes.get(id), &self.value(id).shape) else {
                return Err(LayoutProblem::NotSpatial);
            };
            if !leading.contains(&id) || !self.value(id).differentiable {
                return Err(LayoutProblem::NotOnTheWay);
            }
            match MapLayout::of(own) {
                Err(LayoutProblem::NotKnown) => MapLayout::described(shape, description),
                found => found,
            }
        };
        self.layouts = (0..self.values.len()).map(layout).collect();
    }
}
