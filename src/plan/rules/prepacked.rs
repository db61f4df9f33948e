//! Convolutions whose weights are laid out for the processor once, with what follows them.
//!
//! The operators are oneDNN's, as ATen carries them: `mkldnn::_convolution_pointwise` is a convolution and an activation,
//! its overload `binary` adds another tensor before the activation. They have no derivative of their own: the gradient
//! to the input is a transposed convolution, with its weights laid out too. The plan's `fuse_convolutions` pass makes
//! these nodes.

use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;

use crate::model::graph::{Argument, Node};
use crate::plan::rule::{Gradient, Ran, Rule, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, unfit};
use super::polyphase::Phases;

/// How a two-dimensional convolution moves over its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Geometry {
    pub padding: [i64; 2],
    pub stride: [i64; 2],
    pub dilation: [i64; 2],
    pub groups: i64,
}

impl Geometry {
    /// The shape of the result for weights `[outputs, inputs, height, width]`, and how much of the input's lower and right
    /// edge the kernel never reaches.
    fn result(&self, input: &[i64], weight: &[i64]) -> ([i64; 4], [i64; 2]) {
        let span = |axis: usize| self.dilation[axis] * (weight[axis + 2] - 1) + 1;
        let room = |axis: usize| input[axis + 2] + 2 * self.padding[axis] - span(axis);
        let steps = [0, 1].map(|axis| room(axis).div_euclid(self.stride[axis]));
        let rest = [0, 1].map(|axis| room(axis) - steps[axis] * self.stride[axis]);
        ([input[0], weight[0], steps[0] + 1, steps[1] + 1], rest)
    }

    fn values(&self) -> [Value; 4] {
        [
            Value::Ints(self.padding.to_vec()),
            Value::Ints(self.stride.to_vec()),
            Value::Ints(self.dilation.to_vec()),
            Value::Int(self.groups),
        ]
    }
}

/// A convolution's weights, laid out at their first use. Plans of one model share them.
///
/// The layouts suit the input size that came first. They stay right for any other.
pub(in crate::plan) struct LaidOut {
    /// As the model has them, `[outputs, inputs / groups, height, width]`.
    weight: Tensor,
    geometry: Geometry,
    forward: Option<Tensor>,
    backward: Option<Backward>,
}

/// How the gradient of the result goes back to the input.
enum Backward {
    Transposed(Tensor),
    Phases(Phases),
}

impl Clone for Backward {
    fn clone(&self) -> Self {
        match self {
            Backward::Transposed(weight) => Backward::Transposed(weight.shallow_clone()),
            Backward::Phases(phases) => Backward::Phases(phases.clone()),
        }
    }
}

impl LaidOut {
    pub fn new(weight: &Tensor, geometry: Geometry) -> Self {
        LaidOut { weight: weight.shallow_clone(), geometry, forward: None, backward: None }
    }

    /// Whether these are that tensor's.
    pub fn are_of(&self, weight: &Tensor, geometry: &Geometry) -> bool {
        self.geometry == *geometry && self.weight.data_ptr() == weight.data_ptr() && self.weight.size() == weight.size()
    }

    fn forward(&mut self, input: &[i64], operators: &Operators) -> Result<Tensor, OperatorError> {
        if let Some(weight) = &self.forward {
            return Ok(weight.shallow_clone());
        }
        let [padding, stride, dilation, groups] = self.geometry.values();
        let plain = Value::Tensor(self.weight.shallow_clone());
        let weight =
            operators.reorder.call_tensor(&[plain, padding, stride, dilation, groups, Value::Ints(input.to_vec())])?;
        Ok(self.forward.insert(weight).shallow_clone())
    }

    fn backward(&mut self, input: &[i64], operators: &Operators) -> Result<Backward, OperatorError> {
        if let Some(backward) = &self.backward {
            return Ok(backward.clone());
        }
        let size = self.weight.size();
        let (result, rest) = self.geometry.result(input, &size);
        let backward = if Phases::suit(&size, &self.geometry) {
            Backward::Phases(Phases::new(&self.weight, &self.geometry, &result, &operators.reorder)?)
        } else {
            let [padding, stride, dilation, groups] = self.geometry.values();
            let rest = Value::Ints(rest.to_vec());
            let plain = Value::Tensor(self.weight.shallow_clone());
            let result = Value::Ints(result.to_vec());
            Backward::Transposed(
                operators.reorder_transposed.call_tensor(&[plain, padding, rest, stride, dilation, groups, result])?,
            )
        };
        Ok(self.backward.insert(backward).clone())
    }
}

#[derive(Clone)]
struct Operators {
    convolution: Operator,
    transposed: Operator,
    reorder: Operator,
    reorder_transposed: Operator,
    add_relu: Operator,
    contiguous: Operator,
}

/// What follows the convolution, as far as its result tells how to come back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    None,
    Relu,
    /// `min(max(·, low), high)`.
    Clamp {
        low: f64,
        high: f64,
    },
}

/// The rule of both operators. Tensors but for the input and what is added are taken from the weights that it was made
/// with, not from the arguments.
pub(in crate::plan) struct Prepacked {
    operators: Operators,
    weights: Arc<Mutex<LaidOut>>,
    weight_size: Vec<i64>,
    geometry: Geometry,
    /// Whether another tensor is added.
    adds: bool,
    activation: Activation,
    guided: bool,
}

impl Prepacked {
    /// Where a node of one of the two operators keeps its weight, and how it moves. None for other nodes.
    pub fn read(node: &Node) -> Option<(&Argument, Geometry)> {
        let operator = node.operation.aten().filter(|o| o.name() == "mkldnn::_convolution_pointwise")?;
        let at = |name| node.arguments.get(operator.schema().position(name)?);
        let pair = |name| match at(name)? {
            Argument::Literal(Value::Ints(pair)) => <[i64; 2]>::try_from(pair.as_slice()).ok(),
            _ => None,
        };
        let Argument::Literal(Value::Int(groups)) = at("groups")? else { return None };
        let (padding, stride, dilation) = (pair("padding")?, pair("stride")?, pair("dilation")?);
        Some((at("W")?, Geometry { padding, stride, dilation, groups: *groups }))
    }

    /// The rule of a node that can be [read](Prepacked::read).
    pub fn new(node: &Node, geometry: Geometry, weights: Arc<Mutex<LaidOut>>) -> Result<Self, OperatorError> {
        let find = |name| Operator::find(name, "");
        let adds = node.operation.aten().is_some_and(|operator| operator.overload() == "binary");
        let (activation, scalars) = if adds { ("unary_attr", "unary_scalars") } else { ("attr", "scalars") };
        let activation = match (node.literal(activation), node.literal(scalars)) {
            (Some(Value::String(name)), Some(Value::Floats(scalars))) => match (name.as_str(), scalars.as_slice()) {
                ("none", []) => Some(Activation::None),
                ("relu", []) => Some(Activation::Relu),
                ("hardtanh", &[low, high]) => Some(Activation::Clamp { low, high }),
                _ => None,
            },
            (Some(Value::None), _) => Some(Activation::None),
            _ => None,
        };
        let activation = activation.ok_or_else(|| OperatorError::Argument {
            operator: node.name.clone(),
            argument: "attr".into(),
            problem: "takes none, relu or hardtanh".into(),
        })?;
        let weight_size = lock(&weights).weight.size();
        Ok(Prepacked {
            operators: Operators {
                convolution: find("mkldnn::_convolution_pointwise")?,
                transposed: find("mkldnn::_convolution_transpose_pointwise")?,
                reorder: find("mkldnn::_reorder_convolution_weight")?,
                reorder_transposed: find("mkldnn::_reorder_convolution_transpose_weight")?,
                add_relu: Operator::find("aten::_add_relu_", "Tensor")?,
                contiguous: find("aten::contiguous")?,
            },
            weights,
            weight_size,
            geometry,
            adds,
            activation,
            guided: node.rectifier.is_some(),
        })
    }

    fn convolve(&self, input: &Tensor, bias: &Value, activation: Activation) -> Result<Tensor, OperatorError> {
        let (name, scalars) = match activation {
            Activation::None => ("none", Vec::new()),
            Activation::Relu => ("relu", Vec::new()),
            Activation::Clamp { low, high } => ("hardtanh", vec![low, high]),
        };
        let weight = lock(&self.weights).forward(&input.size(), &self.operators)?;
        let [padding, stride, dilation, groups] = self.geometry.values();
        self.operators.convolution.call_tensor(&[
            Value::Tensor(input.shallow_clone()),
            Value::Tensor(weight),
            bias.clone(),
            padding,
            stride,
            dilation,
            groups,
            Value::String(name.into()),
            Value::Floats(scalars),
            Value::None,
        ])
    }

    /// Adds first and activates then, in place. oneDNN's own fused addition was measured at more than twice the time.
    fn convolve_and_add(&self, input: &Tensor, bias: &Value, other: &Tensor) -> Result<Tensor, OperatorError> {
        let mut sum = self.convolve(input, bias, Activation::None)?;
        let other = channels_last(&self.operators.contiguous, other)?;
        if other.size() != sum.size() {
            return Err(OperatorError::Argument {
                operator: "mkldnn._convolution_pointwise.binary".into(),
                argument: "other".into(),
                problem: format!("has shape {:?}, and the convolution gives {:?}", other.size(), sum.size()),
            });
        }
        match self.activation {
            Activation::None => Ok(sum.f_add_(&other)?),
            Activation::Relu => {
                self.operators.add_relu.call_tensor(&[Value::Tensor(sum), Value::Tensor(other), Value::Int(1)])
            }
            Activation::Clamp { low, high } => Ok(sum.f_add_(&other)?.f_clamp_(low, high)?),
        }
    }
}

impl Rule for Prepacked {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        let input = channels_last(&self.operators.contiguous, first(arguments)?)?;
        let other = if self.adds { arguments.get(1).and_then(Value::tensor) } else { None };
        let bias = arguments.get(if self.adds { 3 } else { 2 }).ok_or_else(|| unfit(2, "a bias", arguments))?;
        let result = match other {
            Some(other) => self.convolve_and_add(&input, bias, other)?,
            None => self.convolve(&input, bias, self.activation)?,
        };
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let size = input.size();
        let back = Back {
            operators: self.operators.clone(),
            weights: lock(&self.weights).backward(&size, &self.operators)?,
            rest: self.geometry.result(&size, &self.weight_size).1,
            size,
            geometry: self.geometry,
            activation: self.activation,
            result: result.shallow_clone(),
            guided: self.guided,
        };
        let wanted: Vec<usize> = wanted.iter().map(|slot| slot.argument).collect();
        let saved = move |results: &[Option<Tensor>], gradient: Gradient| {
            let Some(Some(given)) = results.first() else { return Ok(wanted.iter().map(|_| None).collect()) };
            let given = back.through_the_gate(given, gradient)?;
            wanted
                .iter()
                .map(|&argument| match argument {
                    0 => back.through_the_convolution(&given).map(Some),
                    _ => Ok(Some(given.shallow_clone())),
                })
                .collect()
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(saved))))
    }
}

/// The way back of one run.
struct Back {
    operators: Operators,
    weights: Backward,
    /// The input's shape.
    size: Vec<i64>,
    rest: [i64; 2],
    geometry: Geometry,
    activation: Activation,
    /// It tells where the gate was open.
    result: Tensor,
    guided: bool,
}

impl Back {
    fn through_the_gate(&self, given: &Tensor, gradient: Gradient) -> Result<Tensor, OperatorError> {
        let given = channels_last(&self.operators.contiguous, given)?;
        let mut passed = match self.activation {
            Activation::None => return Ok(given),
            Activation::Relu => self.result.f_threshold_backward(&given, 0)?,
            Activation::Clamp { low, high } => self.result.f_hardtanh_backward(&given, low, high)?,
        };
        Ok(if self.guided && gradient == Gradient::Guided { passed.f_relu_()? } else { passed })
    }

    fn through_the_convolution(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let weight = match &self.weights {
            Backward::Phases(phases) => {
                return phases.input_gradient(given, &self.size, &self.operators.convolution);
            }
            Backward::Transposed(weight) => weight,
        };
        let [padding, stride, dilation, groups] = self.geometry.values();
        self.operators.transposed.call_tensor(&[
            Value::Tensor(given.shallow_clone()),
            Value::Tensor(weight.shallow_clone()),
            Value::None,
            padding,
            Value::Ints(self.rest.to_vec()),
            stride,
            dilation,
            groups,
            Value::String("none".into()),
            Value::Floats(Vec::new()),
            Value::None,
        ])
    }
}

/// Weights are whole even when a panic came between: they are written in one go.
fn lock(weights: &Mutex<LaidOut>) -> std::sync::MutexGuard<'_, LaidOut> {
    weights.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tensor with its channels next to each other in memory; itself where it has them so.
fn channels_last(contiguous: &Operator, tensor: &Tensor) -> Result<Tensor, OperatorError> {
    /// ATen's number of the memory format.
    const CHANNELS_LAST: i64 = 2;
    contiguous.call_tensor(&[Value::Tensor(tensor.shallow_clone()), Value::Int(CHANNELS_LAST)])
}
