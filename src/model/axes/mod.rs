//! What the axes of a graph's values stand for: frames, features, rows and columns of the picture, tokens of a grid.
//!
//! The input is `[frames, channels, rows, columns]`, and each operator says what it makes of its arguments' axes: a
//! convolution keeps frames, rows and columns, a permutation moves them, a reshape splits and joins them, a linear
//! layer makes features. An operator without a rule gives axes that are not known. What is derived here is a proof: a
//! map is drawn only from a value whose axes are known.

pub mod axis;
mod call;
mod contraction;
mod rules;

pub use axis::{Axis, Factor, Role};
pub use call::{Call, position};
pub use contraction::{Contraction, Operand};

use super::graph::Graph;
use super::node::ValueId;

/// The axes of every value of a graph, for the example input.
#[derive(Debug)]
pub struct Axes {
    by_value: Vec<Option<Vec<Axis>>>,
    holds_map: Vec<bool>,
    depends: Vec<bool>,
}

impl Axes {
    /// Derives them from the graph's input to its outputs.
    pub fn of(graph: &Graph) -> Self {
        let count = graph.values.len();
        let mut axes = Axes { by_value: vec![None; count], holds_map: vec![false; count], depends: vec![false; count] };
        for (index, value) in graph.values.iter().enumerate() {
            axes.by_value[index] =
                value.shape.as_ref().map(|shape| shape.iter().map(|&size| Axis::free(size)).collect());
        }
        let input = graph.input.value.index();
        if let Some([batch, channels, rows, columns]) = graph.values[input].shape.as_deref() {
            axes.by_value[input] = Some(vec![
                Axis::whole(Role::Batch, *batch),
                Axis::channel(*channels),
                Axis::whole(Role::Row, *rows),
                Axis::whole(Role::Column, *columns),
            ]);
        }
        (axes.holds_map[input], axes.depends[input]) = (true, true);
        for node in &graph.nodes {
            let call = Call { graph, node, axes: &axes };
            // What is computed from nothing but constants and sizes stands for nothing.
            if !node.uses().any(|value| axes.depends(value)) {
                continue;
            }
            let outputs = rules::outputs(&call);
            let reads_map = node.uses().any(|value| axes.holds_map(value));
            for (position, output) in node.outputs.iter().enumerate() {
                let Some(output) = *output else { continue };
                // A size is not the picture: what is made from sizes alone stands for nothing.
                let Some(shape) = &graph.value(output).shape else { continue };
                axes.depends[output.index()] = true;
                let derived = outputs.as_ref().and_then(|outputs| outputs.get(position));
                let fits = |axes: &&Vec<Axis>| axes.iter().map(Axis::size).eq(shape.iter().copied());
                let derived = derived.filter(fits).cloned();
                let derived = derived.unwrap_or_else(|| shape.iter().map(|&size| Axis::unknown(size)).collect());
                axes.holds_map[output.index()] =
                    derived.iter().any(Axis::is_spatial) || (reads_map && derived.iter().any(Axis::is_unknown));
                axes.by_value[output.index()] = Some(derived);
            }
        }
        axes
    }

    /// The axes of a value; none of a number.
    pub fn get(&self, value: ValueId) -> Option<&[Axis]> {
        self.by_value[value.index()].as_deref()
    }

    /// Whether the value holds positions of the picture, or may hold them because its axes are not known.
    pub fn holds_map(&self, value: ValueId) -> bool {
        self.holds_map[value.index()]
    }

    /// Whether the value is a tensor that is computed from the picture.
    pub fn depends(&self, value: ValueId) -> bool {
        self.depends[value.index()]
    }

    /// Whether it may hold positions of the picture, and which axis they are on is not known.
    pub fn is_lost(&self, value: ValueId) -> bool {
        let spatial = |axes: &[Axis]| axes.iter().any(Axis::is_spatial);
        self.holds_map(value) && !self.get(value).is_some_and(spatial)
    }
}
