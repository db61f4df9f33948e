//! A program as its file describes it: nodes that read and define names, in-place writes included.
//!
//! Every importer produces one, and nothing after it knows a file format. Weights stay with the importer, behind
//! [`Weights`]; a weight that can be read again from its file has a [`WeightSource`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::model::dimension::Dimension;
use crate::model::operation::Symbolic;
use crate::model::{LoadLimits, ModelError};
use crate::torch::{Alias, Operator, Value};

/// An argument of a node: a literal, a name, or a list of both.
#[derive(Debug, Clone)]
pub enum ProgramArgument {
    Literal(Value),
    Use(String),
    List(Vec<ProgramElement>),
}

#[derive(Debug, Clone)]
pub enum ProgramElement {
    Use(String),
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl ProgramArgument {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            ProgramArgument::Use(name) => (Some(name.as_str()), &[][..]),
            ProgramArgument::List(elements) => (None, elements.as_slice()),
            ProgramArgument::Literal(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().filter_map(|e| match e {
            ProgramElement::Use(name) => Some(name.as_str()),
            _ => None,
        }))
    }
}

#[derive(Debug)]
pub enum ProgramOperation {
    Aten(Operator),
    Symbolic(Symbolic),
}

/// One module call that a node is part of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModuleCall {
    /// Which call of the module it is; only equality matters.
    pub key: String,
    /// The module's path, `layer4.2.relu`.
    pub path: String,
}

#[derive(Debug)]
pub struct ProgramNode {
    pub name: String,
    pub operation: ProgramOperation,
    /// In the operation's order.
    pub arguments: Vec<ProgramArgument>,
    /// Flat: a list of tensors counts one an element.
    pub outputs: Vec<Option<String>>,
    /// Outermost first.
    pub calls: Vec<ModuleCall>,
    pub no_grad: bool,
}

impl ProgramNode {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().flat_map(ProgramArgument::uses)
    }

    /// `relu_` of `aten::relu_`; empty for arithmetic on sizes.
    pub fn operator_name(&self) -> &str {
        match &self.operation {
            ProgramOperation::Aten(operator) => operator.name().trim_start_matches("aten::"),
            ProgramOperation::Symbolic(_) => "",
        }
    }

    /// The argument that the operator writes.
    pub fn written(&self) -> Option<usize> {
        match &self.operation {
            ProgramOperation::Aten(operator) => {
                operator.schema().arguments.iter().position(|argument| argument.alias == Alias::Written)
            }
            ProgramOperation::Symbolic(_) => None,
        }
    }
}

/// The tensors of a program's constants, as the importer holds them.
pub trait Weights: Send {
    /// The tensor of one of the program's constants. Constants that share memory in the file share it here.
    ///
    /// # Errors
    /// The file does not hold it, or holds it in a form that cannot be read.
    fn tensor(&self, constant: &str) -> Result<Tensor, ModelError>;

    /// Where the tensor can be read again once it has left memory; none where it must stay.
    fn source(&self, constant: &str) -> Option<Arc<dyn WeightSource>>;

    /// The same tensors in memory of their own, which may be written into. Those that share memory here share it there.
    ///
    /// # Errors
    /// Out of memory.
    fn copied(&self) -> Result<Box<dyn Weights>, ModelError>;
}

/// The weights of a program that has none.
pub struct NoWeights;

impl Weights for NoWeights {
    fn tensor(&self, constant: &str) -> Result<Tensor, ModelError> {
        Err(ModelError::malformed("graph", format!("{constant} is no constant of the program")))
    }

    fn source(&self, _: &str) -> Option<Arc<dyn WeightSource>> {
        None
    }

    fn copied(&self) -> Result<Box<dyn Weights>, ModelError> {
        Ok(Box::new(NoWeights))
    }
}

/// Where one weight can be read again, for as long as the model is served.
pub trait WeightSource: Debug + Send + Sync {
    /// Reads the tensor from its file.
    ///
    /// # Errors
    /// The file was written into meanwhile, or can no longer be read.
    fn read(&self) -> Result<Tensor, ModelError>;

    /// Names the bytes within the model: sources with the same name, dtype, size and strides give equal tensors.
    fn name(&self) -> &str;

    /// The strides of the tensor, in elements.
    fn stride(&self) -> &[i64];
}

/// A program with names instead of values.
///
/// Every name is defined once, and each node reads only names that are defined before it.
pub struct Program {
    pub nodes: Vec<ProgramNode>,
    /// Names of the weights and other constants, in the order of their names.
    pub constants: BTreeSet<String>,
    /// The tensors of `constants`.
    pub weights: Box<dyn Weights>,
    /// The user's inputs: name, dtype, shape.
    pub inputs: Vec<ProgramInput>,
    /// Name in the result (`logits`, `nested.1.k`, `0`) and name in the graph; none for what is no tensor.
    pub outputs: Vec<(String, Option<String>)>,
    /// Every module path of the program.
    pub paths: BTreeSet<String>,
    /// The files beside the model's own that hold weights: the path that the model names each by, and where it is.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// What of the file is not computed as it is written, each in one sentence.
    pub notices: Vec<String>,
    /// What it was read within, and what running it may cost.
    pub limits: LoadLimits,
}

#[derive(Debug, Clone)]
pub struct ProgramInput {
    pub name: String,
    pub kind: Kind,
    pub shape: Vec<Dimension>,
    /// The file's own order is [N, H, W, C]: a first node permutes the input.
    pub channels_last: bool,
}

impl Program {
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
