//! Convolutions whose weights are laid out for the processor once, with what follows them.
//!
//! The operators are oneDNN's, as ATen carries them: `mkldnn::_convolution_pointwise` is a convolution and an activation,
//! its overload `binary` adds another tensor before the activation. Where another way to the same result is faster, it is taken
//! ([`way_there`]): a matrix product (`gemm`), Winograd's algorithm of 3 × 3 kernels, products without the zeros that
//! rectifiers leave. They have no derivative of their own; the ways back are in [`way_back`]. The plan's `fuse_convolutions` pass makes
//! these nodes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use self::epilogue::Activation;
use crate::model::node::{Argument, Node};
use crate::plan::rule::{Gradient, Parts, Ran, Rule, Saved, Slot};
use crate::torch::{OperatorError, PendingMask, Value, channels_last};

use crate::plan::rules::arguments::{first, unfit};
use crate::plan::rules::rectifiers::Gate;
use backward::BackCall;
use batch_split::Rows;
use epilogue::After;
use forward::ThereCall;
use onednn::Operators;

pub(in crate::plan) use geometry::Geometry;
pub(in crate::plan) use packed_weight::LaidOut;

/// The rule of both operators. Tensors but for the input and what is added are taken from the weights that it was made
/// with, not from the arguments.
pub(in crate::plan) struct Prepacked {
    convolution: Arc<Convolution>,
    /// Whether another tensor is added.
    adds: bool,
    activation: Activation,
    guided: bool,
}

/// What a rule and its runs share.
struct Convolution {
    operators: Operators,
    weights: Arc<Mutex<LaidOut>>,
    weight_size: Vec<i64>,
    geometry: Geometry,
    there: Mutex<Option<ThereCall>>,
    /// By the height and width of the input.
    back: Mutex<Option<([i64; 2], BackCall)>>,
    rows_there: Rows,
    rows_back: Rows,
    classes_back: Rows,
}

impl Prepacked {
    /// Where a node of one of the two operators keeps its weight, and how it moves. None for other nodes.
    pub fn read(node: &Node) -> Option<(usize, Geometry)> {
        let operator = node.operation.aten().filter(|o| o.name() == "mkldnn::_convolution_pointwise")?;
        let position = |name| operator.schema().position(name).filter(|&at| at < node.arguments.len());
        let at = |name| Some(&node.arguments[position(name)?]);
        let pair = |name| match at(name)? {
            Argument::Literal(Value::Ints(pair)) => <[i64; 2]>::try_from(pair.as_slice()).ok(),
            _ => None,
        };
        let Argument::Literal(Value::Int(groups)) = at("groups")? else { return None };
        let (padding, stride, dilation) = (pair("padding")?, pair("stride")?, pair("dilation")?);
        if stride.iter().any(|&stride| stride < 1) {
            return None;
        }
        Some((position("W")?, Geometry { padding, stride, dilation, groups: *groups }))
    }

    /// The rule of a node that can be [read](Prepacked::read).
    pub fn new(node: &Node, geometry: Geometry, weights: Arc<Mutex<LaidOut>>) -> Result<Self, OperatorError> {
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
        let weight_size = lock(&weights).size();
        let convolution = Convolution {
            operators: Operators::find()?,
            weights,
            weight_size,
            geometry,
            there: Mutex::new(None),
            back: Mutex::new(None),
            rows_there: Rows::default(),
            rows_back: Rows::default(),
            classes_back: Rows::default(),
        };
        Ok(Prepacked { convolution: Arc::new(convolution), adds, activation, guided: node.rectifier.is_some() })
    }
}

impl Rule for Prepacked {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<Ran, OperatorError> {
        let input = channels_last(first(arguments)?)?;
        let other = if self.adds { arguments.get(1).and_then(Value::tensor) } else { None };
        let bias = arguments.get(if self.adds { 3 } else { 2 }).ok_or_else(|| unfit(2, "a bias", arguments))?;
        let other = other.map(channels_last).transpose()?;
        let after = After {
            other: other.as_ref(),
            activation: self.activation,
            has_gate: !wanted.is_empty(),
            guided: self.guided,
        };
        let (result, gate) = self.convolution.run(&input, bias, &after)?;
        if wanted.is_empty() {
            return Ok((vec![Value::Tensor(result)], None));
        }
        let back = Back {
            convolution: Arc::clone(&self.convolution),
            gate,
            size: input.size(),
            wanted: wanted.iter().map(|slot| slot.argument).collect(),
        };
        Ok((vec![Value::Tensor(result)], Some(Box::new(back))))
    }
}

impl Convolution {
    /// The result with what follows. The bias, the activation and whether something is added are those of the first run.
    fn run(&self, input: &Tensor, bias: &Value, after: &After<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        if let Some(other) = after.other {
            let expected = self.geometry.result(&input.size(), &self.weight_size);
            if other.size() != expected {
                return Err(OperatorError::Argument {
                    operator: "mkldnn._convolution_pointwise.binary".into(),
                    argument: "other".into(),
                    problem: format!("has shape {:?}, and the convolution gives {expected:?}", other.size()),
                });
            }
        }
        let mut there = lock(&self.there);
        let call = match there.take() {
            Some(call) => call,
            None => {
                let mut weights = lock(&self.weights);
                let way = weights.there(input, after, &self.operators)?;
                way.call(bias, &self.geometry, after.at_once(), &self.operators)?
            }
        };
        let call = there.insert(call);
        if input.size()[0] == 1 {
            return call.run_with(input, after);
        }
        after.then(self.rows_there.run(input, |input| call.run(input))?)
    }

    /// The gradient to an input of `size`, from that of the result.
    fn input_gradient(&self, given: &Tensor, size: &[i64]) -> Result<Tensor, OperatorError> {
        self.check(given, size)?;
        let given = channels_last(given)?;
        let of_size = [size[2], size[3]];
        let mut back = lock(&self.back);
        let call = match back.take().filter(|(known, _)| *known == of_size) {
            Some((_, call)) => call,
            None => {
                let mut weights = lock(&self.weights);
                let way = weights.back(&given, size, &self.operators)?;
                way.call(&self.weight_size, &self.geometry, &given.size(), size, &self.operators)?
            }
        };
        let (_, call) = back.insert((of_size, call));
        self.rows_back.run(&given, |given| call.input_gradient(given))
    }

    /// [`Convolution::input_gradient`] of a gradient that has a gate ahead. None where the way does not take one through it, for several rows, and
    /// where none was chosen yet for inputs of that size.
    fn input_gradient_ahead(
        &self,
        given: &Tensor,
        ahead: PendingMask<'_>,
        size: &[i64],
    ) -> Result<Option<Tensor>, OperatorError> {
        self.check(given, size)?;
        let back = lock(&self.back);
        match &*back {
            // Several rows may be run one by one.
            Some((of_size, call)) if *of_size == [size[2], size[3]] && size[0] == 1 => {
                call.input_gradient_ahead(given, ahead)
            }
            _ => Ok(None),
        }
    }

    /// [`Convolution::input_gradient`] of each of several gradients.
    fn input_gradients(&self, given: &[&Tensor], size: &[i64]) -> Result<Vec<Tensor>, OperatorError> {
        for given in given {
            self.check(given, size)?;
        }
        let is_laid_out = lock(&self.back).is_some();
        if let (Some(first), false) = (given.first(), is_laid_out) {
            // For the rows of one.
            drop(self.input_gradient(first, size)?);
        }
        self.classes_back.run_each(given, |given| {
            let mut size = size.to_vec();
            size[0] = given.size()[0];
            self.input_gradient(given, &size)
        })
    }

    /// Whether it is the gradient of the result for an input of `size`.
    fn check(&self, given: &Tensor, size: &[i64]) -> Result<(), OperatorError> {
        let expected = self.geometry.result(size, &self.weight_size);
        if given.size() != expected {
            return Err(OperatorError::Argument {
                operator: "a convolution's gradient".into(),
                argument: "gradient".into(),
                problem: format!("has shape {:?}, and the result had {expected:?}", given.size()),
            });
        }
        Ok(())
    }
}

/// The way back of one run.
struct Back {
    convolution: Arc<Convolution>,
    gate: Option<Gate>,
    /// The input's shape.
    size: Vec<i64>,
    /// The arguments whose gradients are wanted.
    wanted: Vec<usize>,
}

impl Saved for Back {
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let given = results.iter().map(|given| given.as_ref().map(Tensor::shallow_clone).into()).collect();
        self.reverse_parts(given, gradient)
    }

    fn reverse_parts(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        if let Some(found) = self.reverse_ahead(&results, gradient)? {
            return Ok(vec![Some(found)]);
        }
        let Some(given) = self.gated(results, gradient)? else { return Ok(self.wanted.iter().map(|_| None).collect()) };
        self.wanted
            .iter()
            .map(|&argument| match argument {
                0 => self.convolution.input_gradient(&given, &self.size).map(Some),
                _ => Ok(Some(given.shallow_clone())),
            })
            .collect()
    }

    fn reverse_each(
        &self,
        each: Vec<Vec<Parts>>,
        gradient: Gradient,
    ) -> Result<Vec<Vec<Option<Tensor>>>, OperatorError> {
        let given = each.into_iter().map(|results| self.gated(results, gradient)).collect::<Result<Vec<_>, _>>()?;
        let there: Vec<&Tensor> = given.iter().flatten().collect();
        let wants_input = self.wanted.contains(&0);
        let inputs = if wants_input { self.convolution.input_gradients(&there, &self.size)? } else { Vec::new() };
        let mut inputs = inputs.into_iter();
        let answer = |given: &Option<Tensor>| {
            let input = if given.is_some() { inputs.next() } else { None };
            let of = |argument| if argument == 0 { &input } else { given };
            self.wanted.iter().map(|&argument| of(argument).as_ref().map(Tensor::shallow_clone)).collect()
        };
        Ok(given.iter().map(answer).collect())
    }
}

impl Back {
    /// The gradient to the input, where it alone is wanted and comes through the gate on the way.
    fn reverse_ahead(&self, results: &[Parts], gradient: Gradient) -> Result<Option<Tensor>, OperatorError> {
        let ahead = self.gate.as_ref().and_then(|gate| gate.ahead(gradient));
        match (ahead, results.first().map(Parts::as_slice), self.wanted.as_slice()) {
            (Some(ahead), Some([given]), [0]) => self.convolution.input_gradient_ahead(given, ahead, &self.size),
            _ => Ok(None),
        }
    }

    /// The gradient of the convolution with what is added.
    fn gated(&self, results: Vec<Parts>, gradient: Gradient) -> Result<Option<Tensor>, OperatorError> {
        match (&self.gate, results.into_iter().next()) {
            (Some(gate), Some(parts)) => gate.pass(parts.as_slice(), gradient),
            (None, Some(parts)) => parts.into_sum(),
            (_, None) => Ok(None),
        }
    }
}

/// What is locked here is whole even when a panic came between: it is written in one go.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
pub mod backward;
pub mod batch_split;
pub mod col2im;
pub mod epilogue;
pub mod forward;
pub mod gemm;
pub mod geometry;
pub mod onednn;
pub mod packed_weight;
pub mod sparse;
#[cfg(test)]
mod tests;
pub mod winograd;
