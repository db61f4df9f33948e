//! Fuses a convolution with the addition and the activation that follow it.

use std::collections::{HashMap, HashSet};

use tch::Kind;

use crate::model::node::{Argument, Node, ValueId};
use crate::model::operation::Operation;
use crate::plan::PlanError;
use crate::torch::{Operator, Value};

use crate::plan::draft::Draft;
use crate::plan::draft::Readers;

/// A two-dimensional convolution with a constant weight.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub kind: Kind,
    /// The input's shape `[N, C, H, W]`, with the example's sizes.
    pub input: &'a [i64],
    /// The weight's shape.
    pub weight: &'a [i64],
    pub padding: [i64; 2],
    pub dilation: [i64; 2],
}

/// Rewrites the convolutions that `suits` accepts to `mkldnn::_convolution_pointwise`. Each takes in, where no other
/// node reads the value between:
///
/// - the addition of another value of the same shape,
/// - then ReLU, ReLU6 or hardtanh.
pub fn fuse_convolutions(draft: &mut Draft, suits: impl Fn(&Candidate<'_>) -> bool) -> Result<(), PlanError> {
    let operators = (
        Operator::find("mkldnn::_convolution_pointwise", "")?,
        Operator::find("mkldnn::_convolution_pointwise", "binary")?,
    );
    let readers = draft.readers();
    let positions: HashMap<ValueId, usize> =
        draft.nodes.iter().enumerate().flat_map(|(index, node)| node.defines().map(move |v| (v, index))).collect();
    let mut gone = HashSet::new();
    // In reverse order, so that of two convolutions whose results are added the later one takes in the addition.
    for index in (0..draft.nodes.len()).rev() {
        let Some(convolution) = Convolution::read(draft, &draft.nodes[index], &suits) else { continue };
        let chain = Chain::follow(draft, &readers, &gone, &positions, index);
        let last = chain.last(index);
        let node = chain.fused(draft, index, &convolution, &operators);
        draft.nodes[last] = node;
        gone.extend(
            [Some(index), chain.addition.map(|a| a.at), chain.activation.as_ref().map(|a| a.at)]
                .into_iter()
                .flatten()
                .filter(|&at| at != last),
        );
    }
    draft.remove(&gone);
    Ok(())
}

/// A convolution that can be fused.
struct Convolution {
    /// Input, weight, bias.
    tensors: [Argument; 3],
    padding: Value,
    stride: Value,
    dilation: Value,
    groups: Value,
}

impl Convolution {
    fn read(draft: &Draft, node: &Node, suits: &impl Fn(&Candidate<'_>) -> bool) -> Option<Self> {
        match node.operator_name() {
            "conv2d" => {}
            "convolution" if matches!(node.literal("transposed"), Some(Value::Bool(false))) => {}
            _ => return None,
        }
        let weight = draft.constant(&node.arguments[1])?;
        let Argument::Use(input) = node.arguments[0] else { return None };
        let size = weight.size();
        let kind = weight.kind().ok()?;
        let fits = size.len() == 4
            && draft.kind(input) == Some(kind)
            && draft.shape(input).is_some_and(|shape| shape.len() == 4)
            && draft.is_constant_or_none(&node.arguments[2]);
        if !fits {
            return None;
        }
        let dilation = pair(node.literal("dilation")?)?;
        let padding = match node.literal("padding")? {
            Value::String(words) => padding_of(words, [size[2], size[3]], dilation)?,
            numbers => pair(numbers)?,
        };
        if !suits(&Candidate { kind, input: draft.shape(input)?, weight: &size, padding, dilation }) {
            return None;
        }
        Some(Convolution {
            tensors: [0, 1, 2].map(|i| node.arguments[i].clone()),
            padding: Value::Ints(padding.to_vec()),
            stride: Value::Ints(pair(node.literal("stride")?)?.to_vec()),
            dilation: Value::Ints(dilation.to_vec()),
            groups: node.literal("groups")?.clone(),
        })
    }
}

/// One number for both axes, or one for each.
fn pair(value: &Value) -> Option<[i64; 2]> {
    match value {
        Value::Ints(list) => match *list.as_slice() {
            [both] => Some([both, both]),
            [height, width] => Some([height, width]),
            _ => None,
        },
        Value::Int(both) => Some([*both, *both]),
        _ => None,
    }
}

/// The padding named by `valid` or `same`; `None` where one side would be padded more than the other.
fn padding_of(words: &str, kernel: [i64; 2], dilation: [i64; 2]) -> Option<[i64; 2]> {
    let total = [0, 1].map(|axis| dilation[axis] * (kernel[axis] - 1));
    match words {
        "valid" => Some([0, 0]),
        "same" if total.iter().all(|t| t % 2 == 0) => Some(total.map(|t| t / 2)),
        _ => None,
    }
}

/// The nodes that a convolution takes in.
struct Chain {
    addition: Option<Addition>,
    activation: Option<Activation>,
}

#[derive(Clone, Copy)]
struct Addition {
    at: usize,
    other: ValueId,
}

struct Activation {
    at: usize,
    name: &'static str,
    scalars: Vec<f64>,
}

impl Chain {
    fn follow(
        draft: &Draft,
        readers: &Readers,
        gone: &HashSet<usize>,
        positions: &HashMap<ValueId, usize>,
        convolution: usize,
    ) -> Self {
        let next = |node: usize| {
            let value = draft.nodes[node].outputs.first().copied().flatten()?;
            let reader = readers.only_reader(value).filter(|reader| !gone.contains(reader))?;
            (draft.nodes[reader].no_grad == draft.nodes[convolution].no_grad).then_some((value, reader))
        };
        let addition = next(convolution).and_then(|(value, at)| Addition::read(draft, positions, value, at));
        let activation =
            next(addition.map_or(convolution, |a| a.at)).and_then(|(_, at)| Activation::read(&draft.nodes[at], at));
        Chain { addition, activation }
    }

    fn last(&self, convolution: usize) -> usize {
        self.activation.as_ref().map(|a| a.at).or(self.addition.map(|a| a.at)).unwrap_or(convolution)
    }

    fn fused(&self, draft: &Draft, at: usize, convolution: &Convolution, operators: &(Operator, Operator)) -> Node {
        let parts = [Some(at), self.addition.map(|a| a.at), self.activation.as_ref().map(|a| a.at)];
        let names: Vec<&str> = parts.into_iter().flatten().map(|i| draft.nodes[i].name.as_str()).collect();
        let [input, weight, bias] = convolution.tensors.clone();
        let literal = |value: &Value| Argument::Literal(value.clone());
        let geometry =
            [&convolution.padding, &convolution.stride, &convolution.dilation, &convolution.groups].map(literal);
        // The overload `binary` has no activation named `none`.
        let name = match (&self.activation, &self.addition) {
            (Some(activation), _) => Value::String(activation.name.into()),
            (None, None) => Value::String("none".into()),
            (None, Some(_)) => Value::None,
        };
        let scalars = Value::Floats(self.activation.as_ref().map_or(Vec::new(), |a| a.scalars.clone()));
        let activation = [name, scalars, Value::None].map(Argument::Literal);
        let (operator, arguments) = match &self.addition {
            None => (&operators.0, [input, weight, bias].into_iter().chain(geometry).chain(activation).collect()),
            Some(addition) => {
                let add = [Value::String("add".into()), Value::Float(1.0)].map(Argument::Literal);
                let tensors = [input, Argument::Use(addition.other), weight, bias];
                (&operators.1, tensors.into_iter().chain(geometry).chain(add).chain(activation).collect())
            }
        };
        let last = &draft.nodes[self.last(at)];
        Node {
            name: names.join("+"),
            operation: Operation::Aten(operator.clone()),
            arguments,
            outputs: last.outputs.clone(),
            no_grad: last.no_grad,
            rectifier: self.activation.as_ref().and_then(|a| draft.nodes[a.at].rectifier),
            smooth_activation: false,
        }
    }
}

impl Addition {
    /// `value + other` without a scale, of the same shape and dtype, where `other` is computed earlier.
    fn read(draft: &Draft, positions: &HashMap<ValueId, usize>, value: ValueId, at: usize) -> Option<Self> {
        let node = &draft.nodes[at];
        let is_plain_sum = node.operator_name() == "add"
            && matches!(node.literal("alpha"), Some(Value::Int(1)))
            && node.arguments.len() == 3;
        let (Argument::Use(a), Argument::Use(b)) = (node.arguments.first()?, node.arguments.get(1)?) else {
            return None;
        };
        let other = if *a == value { *b } else { *a };
        let same = draft.shape(other) == draft.shape(value)
            && draft.kind(other) == draft.kind(value)
            && draft.shape(value).is_some();
        let is_there = draft.constants.contains_key(&other) || positions.get(&other).is_none_or(|&p| p < at);
        (is_plain_sum && same && is_there && other != value).then_some(Addition { at, other })
    }
}

impl Activation {
    fn read(node: &Node, at: usize) -> Option<Self> {
        let number = |name| match node.literal(name)? {
            Value::Int(v) => Some(*v as f64),
            Value::Float(v) => Some(*v),
            _ => None,
        };
        let (name, scalars) = match node.operator_name() {
            "relu" => ("relu", Vec::new()),
            "relu6" => ("hardtanh", vec![0.0, 6.0]),
            "hardtanh" => ("hardtanh", vec![number("min_val")?, number("max_val")?]),
            _ => return None,
        };
        Some(Activation { at, name, scalars })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::Mode;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{GraphBuilder, compile, distance, random, spec};
    use crate::plan::{Never, Until};

    fn names(graph: &Graph, targets: &[ValueId]) -> Vec<String> {
        let mut draft = Draft::new(graph, &spec(graph, targets, Mode::Default));
        fuse_convolutions(&mut draft, |_| true).unwrap();
        draft.nodes.into_iter().map(|node| node.name).collect()
    }

    /// A residual block: two convolutions, their sum, and a rectifier.
    struct Block {
        graph: Graph,
        first: ValueId,
        second: ValueId,
        sum: ValueId,
    }

    fn block() -> Block {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 6, 6]));
        let first = builder.convolution(builder.input(), 4);
        let y = builder.relu(first);
        let second = builder.convolution(y, 4);
        let sum = builder.add(second, y);
        let z = builder.relu(sum);
        let score = builder.pooled(z);
        Block { graph: builder.finish(score), first, second, sum }
    }

    #[test]
    fn an_addition_and_an_activation_are_fused_into_the_convolution_before() {
        assert_eq!(names(&block().graph, &[]), ["conv2d_0+relu_1", "conv2d_2+add_3+relu_4", "mean_5"]);
    }

    #[test]
    fn a_convolution_that_does_not_suit_is_left_alone() {
        let block = block();
        let mut draft = Draft::new(&block.graph, &spec(&block.graph, &[], Mode::Default));
        fuse_convolutions(&mut draft, |candidate| candidate.input[1] == 3).unwrap();
        let names: Vec<&str> = draft.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["conv2d_0+relu_1", "conv2d_2", "add_3", "relu_4", "mean_5"]);
    }

    #[test]
    fn a_target_is_never_swallowed() {
        let block = block();
        assert_eq!(names(&block.graph, &[block.first]), ["conv2d_0", "relu_1", "conv2d_2+add_3+relu_4", "mean_5"]);
        assert_eq!(names(&block.graph, &[block.second]), ["conv2d_0+relu_1", "conv2d_2", "add_3", "relu_4", "mean_5"]);
        assert_eq!(names(&block.graph, &[block.sum]), ["conv2d_0+relu_1", "conv2d_2+add_3", "relu_4", "mean_5"]);
    }

    #[test]
    fn of_two_convolutions_that_are_added_the_later_one_adds() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 6, 6]));
        let a = builder.convolution(builder.input(), 4);
        let b = builder.convolution(builder.input(), 4);
        let sum = builder.add(a, b);
        let score = builder.pooled(sum);
        assert_eq!(names(&builder.finish(score), &[]), ["conv2d_0", "conv2d_1+add_2", "mean_3"]);
    }

    #[test]
    fn a_value_added_to_itself_is_left_alone() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 6, 6]));
        let a = builder.convolution(builder.input(), 4);
        let sum = builder.add(a, a);
        let score = builder.pooled(sum);
        assert_eq!(names(&builder.finish(score), &[]), ["conv2d_0", "add_1", "mean_2"]);
    }

    #[test]
    fn a_broadcast_addition_is_not_fused() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 6, 6]));
        let a = builder.convolution(builder.input(), 4);
        let shift = builder.constant(random(&[4, 1, 1]));
        let sum = builder.add(a, shift);
        let score = builder.pooled(sum);
        assert_eq!(names(&builder.finish(score), &[]), ["conv2d_0", "add_1", "mean_2"]);
    }

    #[test]
    fn a_fused_block_gives_the_gradients_of_its_parts() {
        let block = block();
        let x = random(&[2, 3, 6, 6]);
        for targets in [vec![], vec![block.first], vec![block.sum]] {
            let [exact, fused] = [Mode::Exact, Mode::Default].map(|mode| compile(&block.graph, &targets, mode));
            let [exact, fused] = [&exact, &fused].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
            assert!(distance(fused.logits(), exact.logits()) < 1e-6);
            let seed = random(&[2, 4]);
            for gradient in [Gradient::Plain, Gradient::Guided] {
                let [exact, fused] =
                    [&exact, &fused].map(|pass| pass.reverse(&seed, gradient, Until::Input, &Never).unwrap());
                let pairs = exact
                    .targets
                    .iter()
                    .zip(&fused.targets)
                    .chain([(&exact.input, &fused.input)].map(|(a, b)| (a.as_ref().unwrap(), b.as_ref().unwrap())));
                for (exact, fused) in pairs {
                    let distance = distance(fused, exact);
                    assert!(distance < 1e-5, "{gradient:?} {distance}");
                }
            }
        }
    }
}
