//! Device-independent rules, one file for each operator family. Each agrees with the one-node tape.

pub mod tape;

mod activations;
#[cfg(test)]
pub mod against_tape;
pub mod arguments;
mod arithmetic;
mod concat;
mod convolution;
mod explicit;
mod linear;
pub(in crate::plan) mod meta;
mod normalization;
mod padding;
mod pooling;
pub mod rectifiers;
mod strides;
mod views;

use crate::model::node::Node;
use crate::plan::rule::Rule;
use crate::torch::OperatorError;

use arguments::literal_number;
use explicit::{ExplicitRule, Guide, Run, Single, single};
use tape::TapeRule;

/// The rule of a node: an explicit one where the table has one for its operator and literals, otherwise the tape.
///
/// `exact` allows only rules that give autograd's results bit for bit. A node with a [`Node::rectifier`] is guided in a
/// guided reverse, whatever its operator; a smooth activation becomes one when its `rectifier` is set.
pub fn rule_for(node: &Node, exact: bool) -> Result<Box<dyn Rule>, OperatorError> {
    Ok(match explicit_rule(node, exact)? {
        Some(rule) => rule,
        None => Box::new(tape(node)),
    })
}

fn tape(node: &Node) -> TapeRule {
    TapeRule::new(node.operation.clone(), node.rectifier.is_some())
}

fn explicit_rule(node: &Node, exact: bool) -> Result<Option<Box<dyn Rule>>, OperatorError> {
    Ok(explicit_run(node, exact)?.map(|run| Box::new(ExplicitRule::new(run, tape(node))) as Box<dyn Rule>))
}

/// The table of explicit rules. An operator that is missing, or arguments that a rule does not cover, run on the tape.
fn explicit_run(node: &Node, exact: bool) -> Result<Option<Run>, OperatorError> {
    let Some(operator) = node.operation.aten().cloned() else { return Ok(None) };
    let name = operator.to_string();
    let is_guided = node.rectifier.is_some();
    // A rectifier that is written with a comparison runs on the tape, which guides any operator.
    if is_guided && matches!(node.operator_name(), "where" | "masked_fill" | "mul" | "add") {
        return Ok(None);
    }
    let guided = |guide| if is_guided { guide } else { Guide::No };
    let plain = |forward: Single| single(forward, Guide::No);
    let gate = |forward: Single| single(forward, guided(Guide::After));
    let smooth = |forward: Single| single(forward, guided(Guide::Before));

    Ok(Some(match name.strip_prefix("aten.").unwrap_or_default() {
        "conv1d.default" | "conv2d.default" | "conv3d.default" => plain(convolution::plain(operator)?),
        "conv1d.padding" | "conv2d.padding" | "conv3d.padding" => plain(convolution::padded_in_words(operator)?),
        "conv_transpose1d.default" | "conv_transpose2d.input" | "conv_transpose3d.input" => {
            plain(convolution::transposed(operator)?)
        }
        "convolution.default" => plain(convolution::general(operator)?),
        "linear.default" if !exact => plain(linear::linear(operator)),

        "batch_norm.default" if !exact => plain(normalization::batch_norm(operator)),
        "layer_norm.default" => plain(normalization::layer_norm()?),

        "relu.default" => rectifiers::relu(operator, is_guided),
        "relu6.default" => rectifiers::relu6(operator, is_guided),
        "hardtanh.default" => rectifiers::hardtanh(operator, is_guided),
        "clamp.default" | "clamp_min.default" | "clip.default" => gate(rectifiers::clamp(operator)),
        "threshold.default" => rectifiers::threshold(operator, is_guided),
        "leaky_relu.default" => {
            let rises = literal_number(node, 1).is_some_and(|slope| slope >= 0.0);
            single(rectifiers::leaky_relu(operator), guided(if rises { Guide::After } else { Guide::Before }))
        }

        "silu.default" => smooth(activations::silu(operator)),
        "gelu.default" => smooth(activations::gelu(operator)),
        "hardswish.default" => smooth(activations::hardswish(operator)),
        "hardsigmoid.default" => smooth(activations::hardsigmoid(operator)),
        "mish.default" => smooth(activations::mish(operator)),
        "elu.default" => smooth(activations::elu(operator)),
        "sigmoid.default" => smooth(activations::sigmoid(operator)),
        "tanh.default" => smooth(activations::tanh(operator)),
        "softmax.int" => plain(activations::softmax(operator)),

        "max_pool2d.default" => plain(pooling::max_pool2d(exact)?),
        "avg_pool2d.default" => plain(pooling::avg_pool2d(operator)?),
        "adaptive_avg_pool2d.default" if !exact => plain(pooling::adaptive_avg_pool2d(operator)),
        "mean.dim" if !exact => plain(pooling::over_axes(operator, true)),
        "sum.dim_IntList" => plain(pooling::over_axes(operator, false)),
        "mean.default" if !exact => plain(pooling::over_all(operator, true)),
        "sum.default" => plain(pooling::over_all(operator, false)),

        "add.Tensor" | "add.Scalar" => arithmetic::add(operator),
        "sub.Tensor" | "sub.Scalar" => arithmetic::sub(operator),
        "rsub.Tensor" | "rsub.Scalar" => arithmetic::reversed_sub(operator),
        "mul.Tensor" | "mul.Scalar" => arithmetic::mul(operator),
        "div.Tensor" | "div.Scalar" => arithmetic::div(operator),

        "pad.default" => plain(padding::pad(operator)),
        "constant_pad_nd.default" => plain(padding::constant_pad()),
        "cat.default" => concat::cat(operator),
        "stack.default" => concat::stack(operator),
        "chunk.default" | "split.Tensor" | "split_with_sizes.default" => concat::split(operator),
        "unbind.int" => concat::unbind(operator),

        "view.default" | "_unsafe_view.default" | "reshape.default" | "view_as.default" | "reshape_as.default" => {
            plain(views::reshape(operator))
        }
        "flatten.using_ints" | "unflatten.int" => plain(views::reshape(operator)),
        "squeeze.default" | "squeeze.dim" | "squeeze.dims" | "unsqueeze.default" => plain(views::reshape(operator)),
        "contiguous.default" | "clone.default" | "alias.default" => plain(views::identity(operator)),
        "to.dtype" | "_to_copy.default" | "type_as.default" => plain(views::cast(operator)),
        "permute.default" => plain(views::permute(operator)),
        "transpose.int" | "swapaxes.default" | "swapdims.default" => plain(views::transpose(operator)),
        "t.default" => plain(views::matrix_transpose(operator)),
        "expand.default" | "expand_as.default" => plain(views::expand(operator)),
        "slice.Tensor" => plain(views::slice(operator)),
        "narrow.default" => plain(views::narrow(operator)),
        "select.int" => plain(views::select(operator)),
        _ => return Ok(None),
    }))
}
