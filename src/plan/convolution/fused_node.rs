//! Reads a fused node.

use crate::model::node::{Argument, Node, ValueId};
use crate::torch::{OperatorError, Value};

use super::{Activation, Geometry};

/// What a node of [`fuse_convolutions`](super::fuse_convolutions) asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusedNode {
    /// The position of the weight among the node's arguments. The input is the first of them, a tensor to add the
    /// second.
    pub weight_position: usize,
    pub weight: ValueId,
    pub geometry: Geometry,
    /// Whether another tensor is added.
    pub adds: bool,
    pub activation: Activation,
    /// Whether guided backpropagation guides the activation.
    pub guided: bool,
}

impl FusedNode {
    /// `None` for other nodes.
    ///
    /// # Errors
    /// An activation that the pass does not fuse.
    pub fn read(node: &Node) -> Result<Option<Self>, OperatorError> {
        let Some((weight_position, geometry)) = convolution(node) else { return Ok(None) };
        let Argument::Use(weight) = node.arguments[weight_position] else { return Ok(None) };
        let adds = node.operation.aten().is_some_and(|operator| operator.overload() == "binary");
        let (activation, guided) = (activation(node, adds)?, node.rectifier.is_some());
        Ok(Some(FusedNode { weight_position, weight, geometry, adds, activation, guided }))
    }

    /// The position of the bias among the node's arguments.
    pub fn bias_position(&self) -> usize {
        self.weight_position + 1
    }
}

/// The position of the weight, and the convolution's parameters.
fn convolution(node: &Node) -> Option<(usize, Geometry)> {
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

fn activation(node: &Node, adds: bool) -> Result<Activation, OperatorError> {
    let (name, scalars) = if adds { ("unary_attr", "unary_scalars") } else { ("attr", "scalars") };
    let activation = match (node.literal(name), node.literal(scalars)) {
        (Some(Value::String(name)), Some(Value::Floats(scalars))) => match (name.as_str(), scalars.as_slice()) {
            ("none", []) => Some(Activation::None),
            ("relu", []) => Some(Activation::Relu),
            ("hardtanh", &[low, high]) => Some(Activation::Clamp { low, high }),
            _ => None,
        },
        (Some(Value::None), _) => Some(Activation::None),
        _ => None,
    };
    activation.ok_or_else(|| OperatorError::Argument {
        operator: node.name.clone(),
        argument: "attr".into(),
        problem: "takes none, relu or hardtanh".into(),
    })
}
