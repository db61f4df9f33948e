//! Convolution and batch normalisation become one convolution.

use std::collections::{HashMap, HashSet};

use tch::{Kind, Tensor};

use crate::model::graph::{Argument, Node, ValueId};
use crate::plan::{PlanError, Weights};
use crate::torch::Value;

use super::Draft;

/// The positions of a convolution's weight and bias, in every overload.
const WEIGHT: usize = 1;
const BIAS: usize = 2;

/// Folds batch normalisation by running statistics into the convolution before it: with
/// `s = weight / sqrt(running_var + eps)`, the convolution's weight becomes `s · w` and its bias
/// `s · (b − running_mean) + bias`.
///
/// A convolution whose own result is a target, the score, or read by anyone else keeps it.
pub fn fold_batch_norm(draft: &mut Draft, weights: &mut Weights) -> Result<(), PlanError> {
    let producers: HashMap<ValueId, usize> =
        draft.nodes.iter().enumerate().flat_map(|(index, node)| node.defines().map(move |v| (v, index))).collect();
    let readers = draft.readers();
    let mut gone = HashSet::new();
    for index in 0..draft.nodes.len() {
        let norm = draft.nodes[index].clone();
        if !is_by_running_statistics(draft, &norm) {
            continue;
        }
        let Argument::Use(source) = norm.arguments[0] else { continue };
        let Some(&producer) = producers.get(&source) else { continue };
        if readers.only_reader(source) != Some(index) || !is_foldable(draft, &draft.nodes[producer], &norm) {
            continue;
        }
        let Some(result) = norm.outputs.first().copied().flatten() else { continue };
        let folded = weights.folded(result, || folded(draft, &draft.nodes[producer], &norm))?;
        let Some((weight, bias)) = folded else { continue };
        let (weight, bias) = (draft.add_constant(weight), draft.add_constant(bias));
        let convolution = &mut draft.nodes[producer];
        convolution.arguments[WEIGHT] = Argument::Use(weight);
        convolution.arguments[BIAS] = Argument::Use(bias);
        convolution.outputs = norm.outputs;
        convolution.name = format!("{}+{}", convolution.name, norm.name);
        gone.insert(index);
    }
    draft.remove(&gone);
    Ok(())
}

fn is_by_running_statistics(draft: &Draft, node: &Node) -> bool {
    node.operator_name() == "batch_norm"
        && matches!(node.literal("training"), Some(Value::Bool(false)))
        && (1..=4).all(|i| draft.is_constant_or_none(&node.arguments[i]))
        && (3..=4).all(|i| draft.constant(&node.arguments[i]).is_some())
}

fn is_foldable(draft: &Draft, convolution: &Node, norm: &Node) -> bool {
    let is_convolution = match convolution.operator_name() {
        "conv1d" | "conv2d" | "conv3d" => true,
        "convolution" => matches!(convolution.literal("transposed"), Some(Value::Bool(false))),
        _ => false,
    };
    is_convolution
        && convolution.no_grad == norm.no_grad
        && draft.constant(&convolution.arguments[WEIGHT]).is_some()
        && draft.is_constant_or_none(&convolution.arguments[BIAS])
}

/// The folded weight and bias, computed in double precision.
fn folded(draft: &Draft, convolution: &Node, norm: &Node) -> Result<Option<(Tensor, Tensor)>, PlanError> {
    let exact = |argument: &Argument| draft.constant(argument).map(|t| t.f_to_kind(Kind::Double)).transpose();
    let Some(Value::Float(epsilon)) = norm.literal("eps") else { return Ok(None) };
    let parameters = (
        exact(&norm.arguments[3])?,
        exact(&norm.arguments[4])?,
        exact(&convolution.arguments[WEIGHT])?,
        draft.constant(&convolution.arguments[WEIGHT]).map(|t| t.f_kind()).transpose()?,
    );
    let (Some(mean), Some(variance), Some(weight), Some(kind)) = parameters else { return Ok(None) };
    let mut scale = variance.f_add_scalar(*epsilon)?.f_rsqrt()?;
    if let Some(own) = exact(&norm.arguments[1])? {
        scale = scale.f_mul(&own)?;
    }
    let shift = match exact(&convolution.arguments[BIAS])? {
        Some(bias) => bias.f_sub(&mean)?,
        None => mean.f_neg()?,
    };
    let mut bias = shift.f_mul(&scale)?;
    if let Some(own) = exact(&norm.arguments[2])? {
        bias = bias.f_add(&own)?;
    }
    let mut a_filter = vec![1; weight.dim()];
    a_filter[0] = -1;
    let weight = weight.f_mul(&scale.f_reshape(&a_filter)?)?;
    Ok(Some((weight.f_to_kind(kind)?, bias.f_to_kind(kind)?)))
}
