//! A plan before compilation, which passes rewrite.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tch::Kind;

use crate::model::dtype::scalar_type;
use crate::model::graph::Graph;
use crate::model::node::{Argument, Node, ValueId, ValueInfo};
use crate::model::stored::Stored;
use crate::plan::PlanSpec;
use crate::plan::constant::Constant;
use crate::torch::Value;

/// The nodes and constants of a plan, before each node becomes a step.
pub struct Draft {
    /// The graph's input.
    pub input: ValueId,
    /// Shape, dtype and name of each value; the graph's values come first.
    values: Vec<ValueInfo>,
    /// In topological order.
    pub nodes: Vec<Node>,
    /// Values that do not depend on the input. Passes add to them and never change one.
    pub constants: BTreeMap<ValueId, Constant>,
    kept: HashSet<ValueId>,
}

impl Draft {
    /// The nodes that the score and the targets are computed from.
    pub fn new(graph: &Graph, spec: &PlanSpec) -> Self {
        let kept: HashSet<ValueId> = spec.targets.iter().copied().chain([spec.score]).collect();
        let mut wanted = kept.clone();
        let mut nodes = Vec::new();
        for node in graph.nodes.iter().rev() {
            if node.defines().any(|v| wanted.contains(&v)) {
                wanted.extend(node.uses());
                nodes.push(node.clone());
            }
        }
        nodes.reverse();
        let stored = |stored: &Arc<Stored>| Constant::Stored(Arc::clone(stored));
        let constants = graph.constants.iter().map(|(id, constant)| (*id, stored(constant))).collect();
        Draft { input: graph.input.value, values: graph.values.clone(), nodes, constants, kept }
    }

    /// The number of values, including those that passes added.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    pub fn add_constant(&mut self, constant: Constant) -> ValueId {
        let kind = constant.kind().ok();
        let id = self.add_value(ValueInfo {
            name: "constant".into(),
            shape: Some(constant.size()),
            kind,
            differentiable: false,
        });
        self.constants.insert(id, constant);
        id
    }

    /// A new value with the shape, dtype and name of another.
    pub fn add_value_like(&mut self, other: ValueId) -> ValueId {
        let info = self.values[other.index()].clone();
        self.add_value(info)
    }

    fn add_value(&mut self, info: ValueInfo) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(info);
        id
    }

    /// Changes the dtype of the values of dtype `from` that `may` accepts to `to`.
    pub fn convert_values(&mut self, from: Kind, to: Kind, may: impl Fn(ValueId) -> bool) {
        for (index, info) in self.values.iter_mut().enumerate() {
            if info.kind == Some(from) && may(ValueId(index as u32)) {
                info.kind = Some(to);
            }
        }
    }

    pub fn set_kind(&mut self, value: ValueId, kind: Kind) {
        self.values[value.index()].kind = Some(kind);
    }

    /// Whether a value depends on the input by differentiable operations.
    pub fn is_differentiable(&self, value: ValueId) -> bool {
        self.values.get(value.index()).is_some_and(|info| info.differentiable)
    }

    /// A value's shape for the input size that the model was exported with.
    pub fn shape(&self, value: ValueId) -> Option<&[i64]> {
        self.values.get(value.index())?.shape.as_deref()
    }

    pub fn name(&self, value: ValueId) -> &str {
        self.values.get(value.index()).map_or("", |info| &info.name)
    }

    pub fn kind(&self, value: ValueId) -> Option<Kind> {
        self.values.get(value.index())?.kind
    }

    /// The constant that an argument reads.
    pub fn constant(&self, argument: &Argument) -> Option<&Constant> {
        match argument {
            Argument::Use(id) => self.constants.get(id),
            _ => None,
        }
    }

    /// Whether an argument is an absent tensor, or a constant one.
    pub fn is_constant_or_none(&self, argument: &Argument) -> bool {
        matches!(argument, Argument::Literal(Value::None)) || self.constant(argument).is_some()
    }

    /// The readers of each value, as the nodes are now.
    pub fn readers(&self) -> Readers {
        let mut readers: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for value in node.uses() {
                readers.entry(value).or_default().push(index);
            }
        }
        Readers { readers, kept: self.kept.clone() }
    }

    /// Removes the nodes with these indices.
    pub fn remove(&mut self, gone: &HashSet<usize>) {
        let mut index = 0;
        self.nodes.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
    }

    /// Removes constants that no node reads.
    pub fn drop_unread_constants(&mut self) {
        let read: HashSet<ValueId> = self.nodes.iter().flat_map(Node::uses).chain(self.kept.iter().copied()).collect();
        self.constants.retain(|id, _| read.contains(id));
    }
}

/// Changes the dtype that the node names (`x.float()`, `softmax(dtype=…)`) to `to`, if it is `from`.
pub fn rename_dtype(node: &mut Node, from: Kind, to: Kind) {
    let position = node.operation.aten().and_then(|operator| operator.schema().position("dtype"));
    if let Some(Argument::Literal(Value::Int(dtype))) = position.and_then(|at| node.arguments.get_mut(at))
        && *dtype == scalar_type(from)
    {
        *dtype = scalar_type(to);
    }
}

/// The nodes that read each value.
pub struct Readers {
    readers: HashMap<ValueId, Vec<usize>>,
    kept: HashSet<ValueId>,
}

impl Readers {
    /// Index of the only node that reads a value. `None` if there are several, and for a target or the score, which
    /// must keep its value.
    pub fn only_reader(&self, value: ValueId) -> Option<usize> {
        match self.readers.get(&value).map(Vec::as_slice) {
            Some([reader]) if !self.kept.contains(&value) => Some(*reader),
            _ => None,
        }
    }
}
