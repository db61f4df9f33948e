//! The nodes of a graph: values, arguments, rectifiers.

use tch::Kind;

use crate::model::operation::Operation;
use crate::torch::Value;
/// A value of the graph: a tensor, or a number that was computed from sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Name, shape and dtype of a value, from the run at load with the example input.
#[derive(Debug, Clone)]
pub struct ValueInfo {
    /// The name in the file, or one made from it.
    pub name: String,
    /// None for a number.
    pub shape: Option<Vec<i64>>,
    pub kind: Option<Kind>,
    /// Whether it depends on the input in a way that has a gradient.
    pub differentiable: bool,
}

/// An argument of a node, one for each of the operation's, in order.
#[derive(Debug, Clone)]
pub enum Argument {
    /// Known at load: a number, a dtype, a default of the schema, …
    Literal(Value),
    /// Another value.
    Use(ValueId),
    /// A list in which at least one element is another value.
    List(Vec<Element>),
}

impl Argument {
    /// The values that the argument reads, in order.
    pub fn uses(&self) -> impl Iterator<Item = ValueId> + '_ {
        let (one, many) = match self {
            Argument::Use(value) => (Some(*value), &[][..]),
            Argument::List(elements) => (None, elements.as_slice()),
            Argument::Literal(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().filter_map(|e| match e {
            Element::Use(value) => Some(*value),
            _ => None,
        }))
    }

    /// The argument's value, given the values that it reads. None when one is missing or a list mixes kinds.
    pub fn resolve(&self, value_of: impl Fn(ValueId) -> Option<Value>) -> Option<Value> {
        match self {
            Argument::Literal(value) => Some(value.clone()),
            Argument::Use(id) => value_of(*id),
            Argument::List(elements) => {
                let values = elements
                    .iter()
                    .map(|element| match element {
                        Element::Use(id) => value_of(*id),
                        Element::None => Some(Value::None),
                        Element::Int(v) => Some(Value::Int(*v)),
                        Element::Float(v) => Some(Value::Float(*v)),
                        Element::Bool(v) => Some(Value::Bool(*v)),
                    })
                    .collect::<Option<Vec<_>>>()?;
                Value::from_list(values)
            }
        }
    }
}

/// An element of a list argument.
#[derive(Debug, Clone, Copy)]
pub enum Element {
    Use(ValueId),
    /// An absent tensor.
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
}

/// Marks an operator whose derivative gates the gradient by its input: ReLU, ReLU6, clamp, threshold, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectifier {
    /// The argument that is gated.
    pub source: usize,
}

/// A node: one operation on some values.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name in the file.
    pub name: String,
    pub operation: Operation,
    pub arguments: Vec<Argument>,
    /// One value per flat result; none for a result that has no name and no reader.
    pub outputs: Vec<Option<ValueId>>,
    /// No gradient flows through it (it ran under `torch.no_grad()`).
    pub no_grad: bool,
    pub rectifier: Option<Rectifier>,
    /// A smooth activation (SiLU, GELU, Hardswish, …): guided only when the model's description asks for it.
    pub smooth_activation: bool,
}

impl Node {
    /// The values it reads, in order, with repetitions.
    pub fn uses(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.arguments.iter().flat_map(Argument::uses)
    }

    /// The values it computes.
    pub fn defines(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.outputs.iter().flatten().copied()
    }
}

impl Node {
    /// A literal argument of an ATen operator, by name.
    pub fn literal(&self, name: &str) -> Option<&Value> {
        match self.argument(name)? {
            Argument::Literal(value) => Some(value),
            _ => None,
        }
    }

    /// An argument of an ATen operator, by name.
    pub fn argument(&self, name: &str) -> Option<&Argument> {
        let position = self.operation.aten()?.schema().position(name)?;
        self.arguments.get(position)
    }

    /// `relu` of `aten::relu`; empty for other operations.
    pub fn operator_name(&self) -> &str {
        self.operation.aten().map_or("", |operator| operator.name().trim_start_matches("aten::"))
    }
}
