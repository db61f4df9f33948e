//! Small graphs for tests.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::{Plan, PlanSpec};
use crate::model::dimension::{Dimension, Sizes};
use crate::model::graph::{Graph, Input, Output};
use crate::model::layers::Layers;
use crate::model::node::{Argument, Element, Node, Rectifier, ValueId, ValueInfo};
use crate::model::operation::Operation;
use crate::model::stored::Stored;
use crate::plan::Mode;
pub use crate::torch::relative_error as distance;
use crate::torch::{Operator, Value};

/// An argument of a node that is added to a graph.
pub enum Of {
    Value(ValueId),
    Values(Vec<ValueId>),
    Literal(Value),
}

impl From<ValueId> for Of {
    fn from(value: ValueId) -> Self {
        Of::Value(value)
    }
}

impl From<&[ValueId]> for Of {
    fn from(values: &[ValueId]) -> Self {
        Of::Values(values.to_vec())
    }
}

impl From<i64> for Of {
    fn from(value: i64) -> Self {
        Of::Literal(Value::Int(value))
    }
}

impl From<f64> for Of {
    fn from(value: f64) -> Self {
        Of::Literal(Value::Float(value))
    }
}

impl From<bool> for Of {
    fn from(value: bool) -> Self {
        Of::Literal(Value::Bool(value))
    }
}

impl From<[i64; 2]> for Of {
    fn from(value: [i64; 2]) -> Self {
        Of::Literal(Value::Ints(value.to_vec()))
    }
}

/// Builds a graph. Each node runs when it is added, so that its result's shape is known.
pub struct GraphBuilder {
    pub graph: Graph,
    results: Vec<Tensor>,
}

impl GraphBuilder {
    /// A graph whose input is `example`; the batch is dynamic.
    pub fn new(example: &Tensor) -> Self {
        let size = example.size();
        let fixed = |axis: usize| Dimension::Fixed(size[axis]);
        let mut builder = GraphBuilder {
            graph: Graph {
                values: Vec::new(),
                nodes: Vec::new(),
                constants: Default::default(),
                input: Input {
                    value: ValueId(0),
                    kind: example.kind(),
                    shape: [
                        Dimension::Dynamic { example: size[0], sizes: Sizes::any(0) },
                        fixed(1),
                        fixed(2),
                        fixed(3),
                    ],
                    channels_last: false,
                },
                outputs: Vec::new(),
                layers: Layers::default(),
                layouts: Vec::new(),
            },
            results: Vec::new(),
        };
        builder.add_value("x", example.shallow_clone(), true);
        builder
    }

    pub fn input(&self) -> ValueId {
        self.graph.input.value
    }

    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let id = self.add_value("constant", tensor.shallow_clone(), false);
        self.graph.constants.insert(id, Arc::new(Stored::new(tensor, None).unwrap()));
        id
    }

    /// Adds a node of an ATen operator (`relu`, `add.Tensor`) with one result. ReLU and ReLU6 are marked as rectifiers,
    /// SiLU as a smooth activation.
    pub fn node(&mut self, operator: &str, named: Vec<(&str, Of)>) -> ValueId {
        let (name, overload) = operator.split_once('.').unwrap_or((operator, ""));
        let found = Operator::find(&format!("aten::{name}"), overload).unwrap();
        let arguments: Vec<Argument> = found
            .schema()
            .arguments
            .iter()
            .map(|argument| match named.iter().find(|(name, _)| *name == argument.name).map(|(_, of)| of) {
                Some(Of::Value(id)) => Argument::Use(*id),
                Some(Of::Values(ids)) => Argument::List(ids.iter().map(|id| Element::Use(*id)).collect()),
                Some(Of::Literal(value)) => Argument::Literal(value.clone()),
                None => Argument::Literal(argument.default.clone().unwrap_or(Value::None)),
            })
            .collect();
        let node = Node {
            name: format!("{name}_{}", self.graph.nodes.len()),
            operation: Operation::Aten(found),
            arguments,
            outputs: Vec::new(),
            no_grad: false,
            rectifier: matches!(name, "relu" | "relu6").then_some(Rectifier { source: 0 }),
            smooth_activation: name == "silu",
        };
        let grad_output = |id: ValueId| Some(Value::Tensor(self.results[id.index()].shallow_clone()));
        let values: Vec<Value> = node.arguments.iter().map(|a| a.resolve(grad_output).unwrap()).collect();
        let result = node.operation.run(&values, false).unwrap().remove(0).tensor().unwrap().shallow_clone();
        let differentiable = node.uses().any(|id| self.graph.value(id).differentiable);
        let id = self.add_value(&node.name, result, differentiable);
        self.graph.nodes.push(Node { outputs: vec![Some(id)], ..node });
        id
    }

    /// A 3 × 3 convolution with random weights that keeps height and width.
    pub fn convolution(&mut self, input: ValueId, channels: i64) -> ValueId {
        let from = self.results[input.index()].size()[1];
        let weight = self.constant(random(&[channels, from, 3, 3]) / 3.0);
        let bias = self.constant(random(&[channels]));
        let named =
            vec![("input", input.into()), ("weight", weight.into()), ("bias", bias.into()), ("padding", [1, 1].into())];
        self.node("conv2d", named)
    }

    /// A linear layer with a random weight and bias.
    pub fn linear(&mut self, input: ValueId, outputs: i64) -> ValueId {
        let inputs = self.results[input.index()].size().last().copied().unwrap_or(1);
        let (weight, bias) = (self.constant(random(&[outputs, inputs])), self.constant(random(&[outputs])));
        self.node("linear", vec![("input", input.into()), ("weight", weight.into()), ("bias", bias.into())])
    }

    /// Batch normalisation with random running statistics.
    pub fn batch_norm(&mut self, input: ValueId) -> ValueId {
        let channels = [self.results[input.index()].size()[1]];
        let [weight, bias, mean] = [0; 3].map(|_| self.constant(random(&channels)));
        let variance = self.constant(random(&channels).abs() + 0.5);
        let named = vec![
            ("input", input.into()),
            ("weight", weight.into()),
            ("bias", bias.into()),
            ("running_mean", mean.into()),
            ("running_var", variance.into()),
            ("training", false.into()),
            ("momentum", 0.1.into()),
            ("eps", 1e-5.into()),
            ("cudnn_enabled", false.into()),
        ];
        self.node("batch_norm", named)
    }

    pub fn relu(&mut self, input: ValueId) -> ValueId {
        self.node("relu", vec![("self", input.into())])
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node("add.Tensor", vec![("self", a.into()), ("other", b.into()), ("alpha", 1.into())])
    }

    /// The mean over height and width: `[N, C]`.
    pub fn pooled(&mut self, input: ValueId) -> ValueId {
        self.node("mean.dim", vec![("self", input.into()), ("dim", [2, 3].into())])
    }

    pub fn no_grad(mut self) -> Self {
        for node in &mut self.graph.nodes {
            node.no_grad = true;
        }
        self
    }

    /// Ends the graph.
    pub fn finish(mut self, score: ValueId) -> Graph {
        self.graph.outputs = vec![Output { name: "0".into(), value: Some(score) }];
        self.graph
    }

    fn add_value(&mut self, name: &str, result: Tensor, differentiable: bool) -> ValueId {
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(ValueInfo {
            name: name.to_owned(),
            shape: Some(result.size()),
            kind: Some(result.kind()),
            differentiable,
        });
        self.results.push(result);
        id
    }
}

pub fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, tch::Device::Cpu))
}

/// A spec for the graph's own input size that allows every run.
pub fn spec(graph: &Graph, targets: &[ValueId], mode: Mode) -> PlanSpec {
    PlanSpec {
        score: graph.outputs[0].value.unwrap(),
        targets: targets.to_vec(),
        mode,
        input_gradient: true,
        target_gradients: true,
        guide_smooth: false,
        input_size: [2, 3].map(|axis| graph.input.shape[axis].example()),
        device: tch::Device::Cpu,
    }
}

pub fn compile(graph: &Graph, targets: &[ValueId], mode: Mode) -> Plan {
    Plan::compile(graph, &spec(graph, targets, mode)).unwrap()
}

/// The gradients of the score to the input and other values by PyTorch's autograd over the whole graph.
pub fn autograd(graph: &Graph, x: &Tensor, seed: &Tensor, wanted: &[ValueId]) -> Vec<Tensor> {
    let mut values: Vec<Option<Tensor>> = graph.values.iter().map(|_| None).collect();
    for (id, stored) in &graph.constants {
        values[id.index()] = Some(stored.tensor().unwrap());
    }
    values[graph.input.value.index()] = Some(x.detach().set_requires_grad(true));
    for node in &graph.nodes {
        let value = |id: ValueId| values[id.index()].as_ref().map(|t| Value::Tensor(t.shallow_clone()));
        let arguments: Vec<Value> = node.arguments.iter().map(|a| a.resolve(value).unwrap()).collect();
        let result = node.operation.run(&arguments, true).unwrap().remove(0);
        values[node.outputs[0].unwrap().index()] = Some(result.tensor().unwrap().shallow_clone());
    }
    let of = |id: &ValueId| values[id.index()].as_ref().unwrap();
    let score = (of(&graph.outputs[0].value.unwrap()) * seed).sum(Kind::Float);
    let wanted: Vec<&Tensor> = wanted.iter().map(of).collect();
    Tensor::run_backward(&[score], &wanted, false, false)
}

/// A residual network whose values have up to three readers.
pub fn branching() -> (Graph, [ValueId; 3]) {
    let mut builder = GraphBuilder::new(&random(&[2, 3, 6, 6]));
    let a = builder.convolution(builder.input(), 4);
    let b = builder.relu(a);
    let c = builder.convolution(b, 4);
    let c = builder.add(c, b);
    let d = builder.batch_norm(c);
    let d = builder.add(d, b);
    let e = builder.relu(d);
    let e = builder.add(e, c);
    let score = builder.pooled(e);
    (builder.finish(score), [b, c, e])
}
