//! For tests: single nodes, and the comparison of an explicit rule with the one-node tape.

use tch::{Device, Kind, Tensor};

use crate::model::node::{Argument, Element, Node, Rectifier, ValueId};
use crate::model::operation::Operation;
use crate::plan::rule::{Gradient, Rule, Slot};
pub use crate::torch::relative_error;
use crate::torch::{Operator, Value};

use super::tape::TapeRule;

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Value::Tensor(tensor)
    }
}

/// The slot of a tensor argument.
pub fn slot(argument: usize) -> Slot {
    Slot { argument, element: None }
}

/// The allowed distance between a rule and its tape.
#[derive(Debug, Clone, Copy)]
pub enum Within {
    /// Bit for bit.
    Equal,
    /// In relative L2.
    Relative(f64),
    /// In L2, relative to what the same sums give for absolute values: where terms cancel, another order of additions
    /// gives a result that is far off in relation to itself.
    OfTerms(f64),
}

/// The memory layout of a random tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Contiguous,
    ChannelsLast,
    /// The last two axes are exchanged in memory.
    Transposed,
    /// Every other element of a larger tensor.
    Strided,
    /// One number with strides of 0.
    Expanded,
}

impl Layout {
    pub const ALL: [Layout; 5] =
        [Layout::Contiguous, Layout::ChannelsLast, Layout::Transposed, Layout::Strided, Layout::Expanded];

    /// Random numbers in this layout; contiguous if the shape does not have it.
    pub fn random(self, shape: &[i64], kind: Kind) -> Tensor {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind);
        let rank = shape.len();
        match self {
            Layout::ChannelsLast if rank == 4 => {
                random(&[shape[0], shape[2], shape[3], shape[1]]).permute([0, 3, 1, 2])
            }
            Layout::Transposed if rank >= 2 => {
                let mut exchanged = shape.to_vec();
                exchanged.swap(rank - 1, rank - 2);
                random(&exchanged).transpose(-1, -2)
            }
            Layout::Strided if rank >= 1 => {
                let mut wide = shape.to_vec();
                wide[rank - 1] *= 2;
                random(&wide).slice(-1, 1, i64::MAX, 2)
            }
            Layout::Expanded => random(&vec![1; rank]).expand(shape, false),
            _ => random(shape),
        }
    }
}

/// A node with the values of its arguments.
pub struct TestNode {
    pub node: Node,
    pub values: Vec<Value>,
}

impl TestNode {
    /// A node of an ATen operator. Tensors become uses of values, everything else literals.
    pub fn new(operator: &str, overload: &str, named: Vec<(&str, Value)>) -> Self {
        let operator = Operator::find(operator, overload).unwrap();
        let values = operator.arrange(named.into_iter().map(|(name, v)| (name.to_owned(), v)).collect()).unwrap();
        let mut next = 0;
        let mut value = || {
            next += 1;
            ValueId(next)
        };
        let arguments = values
            .iter()
            .map(|v| match v {
                Value::Tensor(_) => Argument::Use(value()),
                Value::Tensors(list) => Argument::List(list.iter().map(|_| Element::Use(value())).collect()),
                literal => Argument::Literal(literal.clone()),
            })
            .collect();
        let node = Node {
            name: operator.to_string(),
            operation: Operation::Aten(operator),
            arguments,
            outputs: vec![Some(ValueId(0))],
            no_grad: false,
            rectifier: None,
            smooth_activation: false,
        };
        TestNode { node, values }
    }

    /// The same node, as a rectifier of its first argument.
    pub fn rectifier(mut self) -> Self {
        self.node.rectifier = Some(Rectifier { source: 0 });
        self
    }

    pub fn tape(&self) -> TapeRule {
        super::tape(&self.node)
    }

    /// The explicit rule. Panics when the node has none.
    pub fn explicit(&self, exact: bool) -> Box<dyn Rule> {
        super::explicit_rule(&self.node, exact)
            .unwrap()
            .unwrap_or_else(|| panic!("{} has no hand-written rule", self.node.name))
    }

    /// Compares the explicit rule with the tape: results, then plain and guided gradients of the wanted slots.
    pub fn agrees(&self, exact: bool, wanted: &[Slot], layout: Layout, within: Within) {
        let results = self.tape().forward(&self.values, wanted).unwrap().0;
        let random = |result: &Tensor| result.is_floating_point().then(|| layout.random(&result.size(), result.kind()));
        let grad_output: Vec<_> = results.iter().map(|result| random(result.tensor().unwrap())).collect();
        let expected = walk(&self.tape(), &self.values, wanted, &grad_output);
        let found = walk(&*self.explicit(exact), &self.values, wanted, &grad_output);
        let of_absolute = || {
            let values: Vec<Value> = self.values.iter().map(absolute).collect();
            let grad_output: Vec<_> = grad_output.iter().map(|gradient| gradient.as_ref().map(Tensor::abs)).collect();
            walk(&self.tape(), &values, wanted, &grad_output)
        };
        let scale = matches!(within, Within::OfTerms(_)).then(of_absolute);
        assert_eq!(found.len(), expected.len(), "{}: tensors", self.node.name);
        for (i, ((what, found), (_, expected))) in found.iter().zip(&expected).enumerate() {
            let scale = scale.as_ref().map_or(expected, |scale| &scale[i].1);
            match (found, expected, scale) {
                (Some(found), Some(expected), Some(scale)) => self.compare(what, found, expected, scale, within),
                (found, expected, _) => assert_eq!(found.is_some(), expected.is_some(), "{what}"),
            }
        }
    }

    /// `scale` is what the error is relative to.
    fn compare(&self, what: &str, found: &Tensor, expected: &Tensor, scale: &Tensor, within: Within) {
        let name = &self.node.name;
        assert_eq!(found.size(), expected.size(), "{name}: shape of the {what}");
        assert_eq!(found.kind(), expected.kind(), "{name}: dtype of the {what}");
        let (error, limit) = match within {
            Within::Equal => return assert!(found.equal(expected), "{name}: the {what} differs"),
            Within::Relative(limit) => (relative_error(found, expected), limit),
            Within::OfTerms(limit) => (relative_error(&(scale + (found - expected)), scale), limit),
        };
        assert!(error <= limit, "{name}: the {what} differs by {error} > {limit}");
    }
}

/// The results of a node, and its plain and guided gradients, each with what it is.
fn walk(
    rule: &dyn Rule,
    values: &[Value],
    wanted: &[Slot],
    grad_output: &[Option<Tensor>],
) -> Vec<(String, Option<Tensor>)> {
    let (results, saved) = rule.forward(values, wanted).unwrap();
    let saved = saved.unwrap();
    let mut all = Vec::new();
    for result in results {
        let result = result.tensor().unwrap();
        assert!(!result.requires_grad());
        all.push(("result".to_owned(), Some(result.shallow_clone())));
    }
    for kind in [Gradient::Plain, Gradient::Guided] {
        let gradients = saved.reverse(grad_output, kind).unwrap();
        assert_eq!(gradients.len(), wanted.len());
        all.extend(gradients.into_iter().enumerate().map(|(i, found)| (format!("{kind:?} gradient {i}"), found)));
    }
    all
}

/// A value with the absolute values of its numbers.
fn absolute(value: &Value) -> Value {
    match value {
        Value::Tensor(tensor) if tensor.is_floating_point() => Value::Tensor(tensor.abs()),
        other => other.clone(),
    }
}

/// Strategies for shapes, dtypes and layouts.
pub mod any {
    use proptest::prelude::*;

    use super::*;

    /// `[N, C, H, W]`.
    pub fn picture() -> impl Strategy<Value = Vec<i64>> {
        (1..=3i64, 1..=9i64, 1..=8i64, 1..=8i64).prop_map(|(n, c, h, w)| vec![n, c, h, w])
    }

    /// One to four axes.
    pub fn shape() -> impl Strategy<Value = Vec<i64>> {
        prop::collection::vec(1..=6i64, 1..=4)
    }

    pub fn layout() -> impl Strategy<Value = Layout> {
        prop::sample::select(Layout::ALL.to_vec())
    }

    /// The dtypes of exact mode.
    pub fn float() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![Kind::Float, Kind::Double])
    }

    /// All dtypes, including reduced precision.
    pub fn kind() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half])
    }
}
