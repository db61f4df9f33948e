//! A node as the rules see it: arguments by name, with their axes.

use crate::model::axes::{Axes, Axis};
use crate::model::graph::Graph;
use crate::model::node::{Argument, Element, Node, ValueId};
use crate::torch::Value;

/// One node, and the axes of what it reads.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    pub axes: &'a Axes,
}

impl<'a> Call<'a> {
    /// The operator's name without the underscore of those that write in place.
    pub fn name(&self) -> &'a str {
        self.node.operator_name().trim_end_matches('_')
    }

    /// The value that an argument is.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        match self.node.argument(name)? {
            Argument::Use(value) => Some(*value),
            _ => None,
        }
    }

    /// The values of an argument that is a list of tensors.
    pub fn values(&self, name: &str) -> Option<Vec<ValueId>> {
        let Argument::List(elements) = self.node.argument(name)? else { return None };
        elements.iter().map(|element| if let Element::Use(value) = element { Some(*value) } else { None }).collect()
    }

    /// The axes of an argument that is a tensor.
    pub fn input(&self, name: &str) -> Option<&'a [Axis]> {
        self.axes.get(self.value(name)?)
    }

    /// The axes of the first argument.
    pub fn first(&self) -> Option<&'a [Axis]> {
        match self.node.arguments.first()? {
            Argument::Use(value) => self.axes.get(*value),
            _ => None,
        }
    }

    /// Every tensor among the arguments.
    pub fn tensors(&self) -> impl Iterator<Item = &'a [Axis]> + use<'a> {
        let axes = self.axes;
        self.node.uses().filter_map(|value| axes.get(value))
    }

    /// The shape of a result.
    pub fn shape(&self, output: usize) -> Option<&'a [i64]> {
        self.graph.value((*self.node.outputs.get(output)?)?).shape.as_deref()
    }

    /// An argument that is an integer known at load.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.node.literal(name)? {
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// An argument that is one integer or several, known at load.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.node.literal(name)? {
            Value::Int(value) => Some(vec![*value]),
            Value::Ints(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// An argument that names an axis of `rank`, counted from the end if it is negative.
    pub fn axis(&self, name: &str, rank: usize) -> Option<usize> {
        position(self.int(name)?, rank)
    }
}

/// The axis of `rank` that a number means, counted from the end if it is negative.
pub fn position(axis: i64, rank: usize) -> Option<usize> {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&axis| axis < rank)
}
