//! Convolutions with their weights laid out for the processor once, and with what follows in the same call.
//!
//! The operators are oneDNN's, as ATen carries them: `mkldnn::_convolution_pointwise` is a convolution and an activation,
//! its overload `binary` adds another tensor before the activation. They have no derivative of their own. The gradient of
//! the input is a transposed convolution whose weights are laid out as well.
//!
//! The plan's `fuse_convolutions` pass makes these nodes.

use std::cell::OnceCell;

use tch::Tensor;

use crate::model::graph::Node;
use crate::plan::rule::{Gradient, Ran, Rule, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, unfit};

/// The positions of both overloads' arguments.
#[derive(Debug, Clone, Copy)]
struct Positions {
    other: Option<usize>,
    weight: usize,
    bias: usize,
    padding: usize,
    activation: usize,
    scalars: usize,
}

const UNARY: Positions = Positions { other: None, weight: 1, bias: 2, padding: 3, activation: 7, scalars: 8 };
const BINARY: Positions = Positions { other: Some(1), weight: 2, bias: 3, padding: 4, activation: 10, scalars: 11 };

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

/// The rule of `mkldnn::_convolution_pointwise` and its overload `binary` with `add`. The weight must be the same tensor
/// at each run.
pub(super) struct Prepacked {
    operator: Operator,
    operators: Operators,
    positions: Positions,
    guided: bool,
    packed: OnceCell<Packed>,
}

#[derive(Clone)]
struct Operators {
    reorder: Operator,
    reorder_transposed: Operator,
    transposed: Operator,
    contiguous: Operator,
}

/// Weights for an input of a certain height and width, whatever its batch.
struct Packed {
    forward: Value,
    transposed: Value,
    output_padding: Value,
}

impl Prepacked {
    /// The rule of a node of one of the two operators; none for any other.
    pub(super) fn of(node: &Node) -> Result<Option<Self>, OperatorError> {
        let Some(operator) = node.operation.aten().filter(|o| o.name() == "mkldnn::_convolution_pointwise") else {
            return Ok(None);
        };
        let find = |name| Operator::find(name, "");
        Ok(Some(Prepacked {
            operator: operator.clone(),
            operators: Operators {
                reorder: find("mkldnn::_reorder_convolution_weight")?,
                reorder_transposed: find("mkldnn::_reorder_convolution_transpose_weight")?,
                transposed: find("mkldnn::_convolution_transpose_pointwise")?,
                contiguous: find("aten::contiguous")?,
            },
            positions: if operator.overload().is_empty() { UNARY } else { BINARY },
            guided: node.rectifier.is_some(),
            packed: OnceCell::new(),
        }))
    }

    fn pack(&self, arguments: &[Value], input: &Tensor) -> Result<Packed, OperatorError> {
        let at = |offset: usize| arguments[self.positions.padding + offset].clone();
        let (padding, stride, dilation, groups) = (at(0), at(1), at(2), at(3));
        let weight = &arguments[self.positions.weight];
        let kernel = weight.tensor().ok_or_else(|| unfit(self.positions.weight, "a tensor", arguments))?.size();
        let pair = |value: &Value, what| match value {
            Value::Ints(pair) if pair.len() == 2 => Ok([pair[0], pair[1]]),
            _ => Err(unfit(self.positions.padding, what, arguments)),
        };
        let (p, s, d) =
            (pair(&padding, "two paddings")?, pair(&stride, "two strides")?, pair(&dilation, "two dilations")?);
        let size = input.size();
        let spans = [0, 1].map(|axis| d[axis] * (kernel[axis + 2] - 1) + 1);
        let result = [0, 1].map(|axis| (size[axis + 2] + 2 * p[axis] - spans[axis]) / s[axis] + 1);
        let rest = [0, 1].map(|axis| size[axis + 2] - ((result[axis] - 1) * s[axis] - 2 * p[axis] + spans[axis]));
        let output_padding = Value::Ints(rest.to_vec());
        let forward = self.operators.reorder.call_tensor(&[
            weight.clone(),
            padding.clone(),
            stride.clone(),
            dilation.clone(),
            groups.clone(),
            Value::Ints(size.clone()),
        ])?;
        let transposed = self.operators.reorder_transposed.call_tensor(&[
            weight.clone(),
            padding,
            output_padding.clone(),
            stride,
            dilation,
            groups,
            Value::Ints(vec![size[0], kernel[0], result[0], result[1]]),
        ])?;
        Ok(Packed { forward: Value::Tensor(forward), transposed: Value::Tensor(transposed), output_padding })
    }

    fn activation(&self, arguments: &[Value]) -> Result<Activation, OperatorError> {
        let position = self.positions.activation;
        match (&arguments[position], &arguments[self.positions.scalars]) {
            (Value::None, _) => Ok(Activation::None),
            (Value::String(name), Value::Floats(scalars)) => match (name.as_str(), scalars.as_slice()) {
                ("none", _) => Ok(Activation::None),
                ("relu", _) => Ok(Activation::Relu),
                ("hardtanh", &[low, high]) => Ok(Activation::Clamp { low, high }),
                _ => Err(unfit(position, "none, relu or hardtanh", arguments)),
            },
            _ => Err(unfit(position, "none, relu or hardtanh", arguments)),
        }
    }
}

impl Rule for Prepacked {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        let positions = self.positions;
        let activation = self.activation(arguments)?;
        let mut arguments = arguments.to_vec();
        let input = channels_last(&self.operators.contiguous, first(&arguments)?)?;
        arguments[0] = Value::Tensor(input.shallow_clone());
        if let Some(other) = positions.other {
            let tensor = arguments[other].tensor().ok_or_else(|| unfit(other, "a tensor", &arguments))?;
            arguments[other] = Value::Tensor(channels_last(&self.operators.contiguous, tensor)?);
        }
        let packed = match self.packed.get() {
            Some(packed) => packed,
            None => {
                let packed = self.pack(&arguments, &input)?;
                self.packed.get_or_init(|| packed)
            }
        };
        arguments[positions.weight] = packed.forward.clone();
        let result = self.operator.call_tensor(&arguments)?;
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let back = Back {
            operators: self.operators.clone(),
            arguments: vec![
                Value::None,
                packed.transposed.clone(),
                Value::None,
                arguments[positions.padding].clone(),
                packed.output_padding.clone(),
                arguments[positions.padding + 1].clone(),
                arguments[positions.padding + 2].clone(),
                arguments[positions.padding + 3].clone(),
                Value::String("none".into()),
                Value::Floats(Vec::new()),
                Value::None,
            ],
            gate: (activation != Activation::None).then(|| result.shallow_clone()),
            activation,
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
    /// Of the transposed convolution, but for its input.
    arguments: Vec<Value>,
    activation: Activation,
    /// The result, which tells where the gate was open.
    gate: Option<Tensor>,
    guided: bool,
}

impl Back {
    fn through_the_gate(&self, given: &Tensor, gradient: Gradient) -> Result<Tensor, OperatorError> {
        let given = channels_last(&self.operators.contiguous, given)?;
        let Some(gate) = &self.gate else { return Ok(given) };
        let mut passed = match self.activation {
            Activation::None => return Ok(given),
            Activation::Relu => gate.f_threshold_backward(&given, 0)?,
            Activation::Clamp { low, high } => gate.f_hardtanh_backward(&given, low, high)?,
        };
        Ok(if self.guided && gradient == Gradient::Guided { passed.f_relu_()? } else { passed })
    }

    fn through_the_convolution(&self, given: &Tensor) -> Result<Tensor, OperatorError> {
        let mut arguments = self.arguments.clone();
        arguments[0] = Value::Tensor(given.shallow_clone());
        self.operators.transposed.call_tensor(&arguments)
    }
}

/// The tensor with its channels next to each other in memory; itself where it has them so.
fn channels_last(contiguous: &Operator, tensor: &Tensor) -> Result<Tensor, OperatorError> {
    /// ATen's number of the memory format.
    const CHANNELS_LAST: i64 = 2;
    contiguous.call_tensor(&[Value::Tensor(tensor.shallow_clone()), Value::Int(CHANNELS_LAST)])
}
