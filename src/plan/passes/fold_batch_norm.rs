//! Folds batch normalisation into the convolution before it.

use std::collections::{HashMap, HashSet};

use tch::{Kind, Tensor};

use crate::model::node::{Argument, Node, ValueId};
use crate::plan::constant::Constant;
use crate::plan::{PlanError, Weights};
use crate::torch::Value;

use crate::plan::draft::Draft;

/// Positions of a convolution's weight and bias among its arguments, in every overload.
const WEIGHT: usize = 1;
const BIAS: usize = 2;

/// Folds batch normalisation with running statistics into the convolution before it: with `s = weight /
/// sqrt(running_var + eps)`, the convolution's weight becomes `s · w` and its bias `s · (b − running_mean) + bias`.
///
/// A convolution whose own result is a target, the score, or read by another node stays as it is.
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
        let Some(folded) = folded else { continue };
        let [weight, bias] = folded.map(|constant| draft.add_constant(constant));
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
fn folded(draft: &Draft, convolution: &Node, norm: &Node) -> Result<Option<[Constant; 2]>, PlanError> {
    let exact = |argument: &Argument| -> Result<Option<Tensor>, PlanError> {
        let Some(constant) = draft.constant(argument) else { return Ok(None) };
        Ok(Some(constant.tensor()?.f_to_kind(Kind::Double)?))
    };
    let Some(Value::Float(epsilon)) = norm.literal("eps") else { return Ok(None) };
    let Some(weight) = draft.constant(&convolution.arguments[WEIGHT]) else { return Ok(None) };
    let (Some(mean), Some(variance)) = (exact(&norm.arguments[3])?, exact(&norm.arguments[4])?) else {
        return Ok(None);
    };
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
    let mut per_filter = vec![1; weight.size().len()];
    per_filter[0] = -1;
    let bias = Constant::Whole(bias.f_to_kind(weight.kind()?)?);
    Ok(Some([Constant::Scaled { weight: Box::new(weight.clone()), scale: scale.f_reshape(&per_filter)? }, bias]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::Mode;
    use crate::plan::test_graphs::{GraphBuilder, random, spec};

    fn folded(graph: &Graph, targets: &[ValueId]) -> Draft {
        let mut draft = Draft::new(graph, &spec(graph, targets, Mode::Default));
        fold_batch_norm(&mut draft, &mut Weights::default()).unwrap();
        draft
    }

    fn operators(draft: &Draft) -> Vec<&str> {
        draft.nodes.iter().map(Node::operator_name).collect()
    }

    /// The score of a draft, node by node.
    fn run(graph: &Graph, draft: &Draft, x: &Tensor) -> Tensor {
        let mut values: HashMap<ValueId, Tensor> =
            draft.constants.iter().map(|(id, constant)| (*id, constant.tensor().unwrap())).collect();
        values.insert(graph.input.value, x.shallow_clone());
        for node in &draft.nodes {
            let value = |id| values.get(&id).map(|t: &Tensor| Value::Tensor(t.shallow_clone()));
            let arguments: Vec<Value> = node.arguments.iter().map(|a| a.resolve(value).unwrap()).collect();
            let result = node.operation.run(&arguments, false).unwrap().remove(0);
            values.insert(node.outputs[0].unwrap(), result.tensor().unwrap().shallow_clone());
        }
        values[&graph.outputs[0].value.unwrap()].shallow_clone()
    }

    #[test]
    fn a_convolution_takes_in_the_normalisation_after_it() {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 5, 5]));
        let y = builder.convolution(builder.input(), 4);
        let y = builder.batch_norm(y);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let draft = folded(&graph, &[]);
        assert_eq!(operators(&draft), ["conv2d", "mean"]);
        let x = random(&[2, 3, 5, 5]);
        let unfolded = Draft::new(&graph, &spec(&graph, &[], Mode::Default));
        let distance = crate::plan::test_graphs::distance(&run(&graph, &draft, &x), &run(&graph, &unfolded, &x));
        assert!(distance < 1e-6, "{distance}");
    }

    #[test]
    fn a_convolution_that_is_a_target_keeps_its_value() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 5, 5]));
        let y = builder.convolution(builder.input(), 4);
        let z = builder.batch_norm(y);
        let score = builder.pooled(z);
        let graph = builder.finish(score);
        assert_eq!(operators(&folded(&graph, &[y])), ["conv2d", "batch_norm", "mean"]);
        // The normalised value still exists after folding.
        assert_eq!(operators(&folded(&graph, &[z])), ["conv2d", "mean"]);
    }

    #[test]
    fn a_convolution_that_is_read_elsewhere_keeps_its_value() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 5, 5]));
        let y = builder.convolution(builder.input(), 4);
        let z = builder.batch_norm(y);
        let sum = builder.add(y, z);
        let score = builder.pooled(sum);
        let graph = builder.finish(score);
        assert_eq!(operators(&folded(&graph, &[])), ["conv2d", "batch_norm", "add", "mean"]);
    }

    #[test]
    fn a_normalisation_without_a_convolution_before_it_stays() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 5, 5]));
        let y = builder.relu(builder.input());
        let y = builder.batch_norm(y);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        assert_eq!(operators(&folded(&graph, &[])), ["relu", "batch_norm", "mean"]);
    }

    #[test]
    fn plans_of_one_graph_share_the_folded_weights() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 5, 5]));
        let y = builder.convolution(builder.input(), 4);
        let y = builder.batch_norm(y);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let mut weights = Weights::default();
        let mut identity = || {
            let mut draft = Draft::new(&graph, &spec(&graph, &[], Mode::Default));
            fold_batch_norm(&mut draft, &mut weights).unwrap();
            [WEIGHT, BIAS].map(|i| draft.constant(&draft.nodes[0].arguments[i]).unwrap().identity())
        };
        assert_eq!(identity(), identity());
    }
}
