//! An exported program as the file has it: names, in-place writes and all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tch::{Kind, Tensor};

use crate::model::ModelError;
use crate::model::import::pt2::archive::{Archive, LoadLimits};
use crate::model::import::pt2::weights::Payload;
use crate::model::import::pt2::weights::Place;
use crate::model::node::Dimension;
use crate::model::operation::Symbolic;
use crate::torch::{Alias, Operator, Value};

/// A use of a name, or what is known already.
#[derive(Debug, Clone)]
pub enum RawArgument {
    Literal(Value),
    Use(String),
    List(Vec<RawElement>),
}

#[derive(Debug, Clone)]
pub enum RawElement {
    Use(String),
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl RawArgument {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            RawArgument::Use(name) => (Some(name.as_str()), &[][..]),
            RawArgument::List(elements) => (None, elements.as_slice()),
            RawArgument::Literal(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().filter_map(|e| match e {
            RawElement::Use(name) => Some(name.as_str()),
            _ => None,
        }))
    }
}

#[derive(Debug)]
pub enum RawOperation {
    Aten(Operator),
    Symbolic(Symbolic),
}

/// One module call that a node is part of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Which call of the module it is; only equality matters.
    pub key: String,
    /// The module's path, `layer4.2.relu`.
    pub path: String,
}

#[derive(Debug)]
pub struct RawNode {
    pub name: String,
    pub operation: RawOperation,
    /// In the operation's order.
    pub arguments: Vec<RawArgument>,
    /// Flat: a list of tensors counts one an element.
    pub outputs: Vec<Option<String>>,
    /// Outermost first.
    pub calls: Vec<Call>,
    pub no_grad: bool,
}

impl RawNode {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().flat_map(RawArgument::uses)
    }

    /// `relu_` of `aten::relu_`; empty for arithmetic on sizes.
    pub fn operator_name(&self) -> &str {
        match &self.operation {
            RawOperation::Aten(operator) => operator.name().trim_start_matches("aten::"),
            RawOperation::Symbolic(_) => "",
        }
    }

    /// The argument that the operator writes.
    pub fn written(&self) -> Option<usize> {
        match &self.operation {
            RawOperation::Aten(operator) => {
                operator.schema().arguments.iter().position(|argument| argument.alias == Alias::Written)
            }
            RawOperation::Symbolic(_) => None,
        }
    }
}

/// What the placeholder of a graph stands for.
#[derive(Debug, Clone)]
pub enum Constant {
    Weight(String),
    Constant(String),
}

/// A program as it was exported.
///
/// Every name is defined once, and each node reads only names that are defined before it.
pub struct RawProgram {
    pub nodes: Vec<RawNode>,
    /// Placeholder → where its tensor is.
    pub constants: BTreeMap<String, Constant>,
    pub weights: Payload,
    pub tensors: Payload,
    /// The user's inputs: name, dtype, shape.
    pub inputs: Vec<RawInput>,
    /// Name in the result (`logits`, `nested.1.k`, `0`) and name in the graph; none for what is no tensor.
    pub outputs: Vec<(String, Option<String>)>,
    /// Every module path of the program.
    pub paths: BTreeSet<String>,
    /// What it was read within, and what running it may cost.
    pub limits: LoadLimits,
}

#[derive(Debug, Clone)]
pub struct RawInput {
    pub name: String,
    pub kind: Kind,
    pub shape: Vec<Dimension>,
}

impl RawProgram {
    /// The tensor behind a placeholder.
    pub fn constant(&self, constant: &Constant) -> Result<Tensor, ModelError> {
        match constant {
            Constant::Weight(name) => self.weights.tensor(name),
            Constant::Constant(name) => self.tensors.tensor(name),
        }
    }

    /// Where it lies in the archive that this was read from, if it has elements.
    pub fn place(&self, constant: &Constant, archive: &Arc<Mutex<Archive>>) -> Option<Place> {
        match constant {
            Constant::Weight(name) => self.weights.place(name, archive),
            Constant::Constant(name) => self.tensors.place(name, archive),
        }
    }

    /// For each name, the last node that reads it; what the program gives is read after the last one.
    pub fn last_uses(&self) -> BTreeMap<&str, usize> {
        let mut last_use = BTreeMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            last_use.extend(node.uses().map(|name| (name, index)));
        }
        let outputs = self.outputs.iter().filter_map(|(_, name)| name.as_deref());
        last_use.extend(outputs.map(|name| (name, self.nodes.len())));
        last_use
    }

    /// Whether a node writes into a tensor that it is given.
    pub fn writes(&self) -> bool {
        self.nodes.iter().any(|node| node.written().is_some())
    }
}
