//! Converts a float32 network to bfloat16.

use std::collections::{HashMap, HashSet};

use tch::Kind;

use crate::model::dtype::scalar_type;
use crate::model::node::{Argument, Element, Node, ValueId};
use crate::model::operation::Operation;
use crate::plan::PlanError;
use crate::plan::constant::Constant;
use crate::torch::{Operator, Value};

use super::sensitive_layers::sensitive_layers;
use crate::plan::draft::{Draft, rename_dtype};

/// Converts the values and weights of a float32 draft to bfloat16, and the dtypes that nodes name (`x.float()`,
/// `softmax(dtype=…)`). These stay float32:
///
/// - the [early layers](sensitive_layers), forward and in reverse: rounding there flips ReLU gates in every later
///   layer, which changes guided backpropagation. With EfficientNet-Lite0, the cosine between the Guided Grad-CAM and
///   float32's is 0.95 to 0.99 when they are rounded, and above 0.99 when they are not;
/// - the parameters of normalisations: one number for each channel, and rounding a variance changes the whole channel;
/// - the linear layer with constant weights that gives the score: two of a thousand logits often agree in the eight
///   bits of bfloat16.
///
/// Batch normalisations must have been folded before, so that their product with the weight is rounded once.
pub fn use_bfloat16(draft: &mut Draft, score: ValueId) -> Result<(), PlanError> {
    let head = draft.nodes.iter().position(|node| {
        node.operator_name() == "linear"
            && node.defines().any(|value| value == score)
            && node.arguments[1..].iter().all(|argument| draft.is_constant_or_none(argument))
    });
    let first = sensitive_layers(draft);
    let mut wide: HashSet<ValueId> = first.iter().flat_map(|&at| draft.nodes[at].defines()).collect();
    if first.iter().any(|&at| draft.nodes[at].uses().any(|value| value == draft.input)) {
        wide.insert(draft.input);
    }
    draft.convert_values(Kind::Float, Kind::BFloat16, |value| {
        !wide.contains(&value) && (head.is_none() || value != score)
    });
    let mut rounding = Rounding { wide, rounded: HashMap::new(), conversions: HashMap::new() };
    for at in 0..draft.nodes.len() {
        if Some(at) == head || first.contains(&at) {
            continue;
        }
        let keeps_constants = is_normalisation(&draft.nodes[at]);
        let mut arguments = std::mem::take(&mut draft.nodes[at].arguments);
        for argument in &mut arguments {
            match argument {
                Argument::Use(value) => *value = rounding.of(draft, *value, keeps_constants)?,
                Argument::List(elements) => {
                    for element in elements {
                        if let Element::Use(value) = element {
                            *value = rounding.of(draft, *value, keeps_constants)?;
                        }
                    }
                }
                Argument::Literal(_) => {}
            }
        }
        draft.nodes[at].arguments = arguments;
        if !keeps_constants {
            rename_dtype(&mut draft.nodes[at], Kind::Float, Kind::BFloat16);
        }
    }
    if let Some(head) = head {
        widen_input(draft, head)?;
    }
    rounding.insert_conversions(draft);
    Ok(())
}

fn is_normalisation(node: &Node) -> bool {
    matches!(
        node.operator_name(),
        "batch_norm" | "layer_norm" | "group_norm" | "native_layer_norm" | "native_group_norm"
    )
}

/// The conversions of a draft's values.
struct Rounding {
    /// Values that stay float32.
    wide: HashSet<ValueId>,
    rounded: HashMap<ValueId, ValueId>,
    /// By the value that the node converts.
    conversions: HashMap<ValueId, Node>,
}

impl Rounding {
    /// The rounded copy of a constant or of a value that stays float32; any other value unchanged.
    fn of(&mut self, draft: &mut Draft, value: ValueId, keeps_constants: bool) -> Result<ValueId, PlanError> {
        let constant = draft.constants.get(&value).filter(|_| !keeps_constants);
        let kind = match constant {
            Some(constant) => Some(constant.kind()?),
            None => draft.kind(value).filter(|_| self.wide.contains(&value)),
        };
        if kind != Some(Kind::Float) {
            return Ok(value);
        }
        if let Some(known) = self.rounded.get(&value) {
            return Ok(*known);
        }
        let new = match constant {
            Some(constant) => {
                let copy = Constant::Converted(Box::new(constant.clone()), Kind::BFloat16);
                draft.add_constant(copy)
            }
            None => {
                let name = format!("{}.bfloat16", draft.name(value));
                let (conversion, new) = conversion(draft, name, value, Kind::BFloat16)?;
                self.conversions.insert(value, conversion);
                new
            }
        };
        self.rounded.insert(value, new);
        Ok(new)
    }

    /// Inserts each conversion after the node whose result it converts.
    fn insert_conversions(mut self, draft: &mut Draft) {
        let nodes = std::mem::take(&mut draft.nodes);
        draft.nodes.extend(self.conversions.remove(&draft.input));
        for node in nodes {
            let behind: Vec<Node> = node.defines().filter_map(|value| self.conversions.remove(&value)).collect();
            draft.nodes.push(node);
            draft.nodes.extend(behind);
        }
    }
}

/// Inserts a conversion of the head's input to float32.
fn widen_input(draft: &mut Draft, head: usize) -> Result<(), PlanError> {
    let Argument::Use(input) = draft.nodes[head].arguments[0] else { return Ok(()) };
    let name = format!("{}.float", draft.nodes[head].name);
    let (widening, wide) = conversion(draft, name, input, Kind::Float)?;
    draft.nodes[head].arguments[0] = Argument::Use(wide);
    draft.nodes.insert(head, widening);
    Ok(())
}

/// A node that converts a value to `kind`, and its result.
fn conversion(draft: &mut Draft, name: String, value: ValueId, kind: Kind) -> Result<(Node, ValueId), PlanError> {
    let new = draft.add_value_like(value);
    draft.set_kind(new, kind);
    let dtype = Value::Int(scalar_type(kind));
    let literals = [dtype, Value::Bool(false), Value::Bool(false), Value::None].map(Argument::Literal);
    let node = Node {
        name,
        operation: Operation::Aten(Operator::find("aten::to", "dtype")?),
        arguments: [Argument::Use(value)].into_iter().chain(literals).collect(),
        outputs: vec![Some(new)],
        no_grad: false,
        rectifier: None,
        smooth_activation: false,
    };
    Ok((node, new))
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::model::graph::Graph;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{GraphBuilder, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Until};

    /// Convolution, normalisation, rectifier, residual sum, average, and a linear layer when `has_head`.
    fn network(has_head: bool) -> (Graph, ValueId) {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 9, 9]));
        let y = builder.convolution(builder.input(), 8);
        let y = builder.batch_norm(y);
        let y = builder.relu(y);
        let z = builder.convolution(y, 8);
        let z = builder.add(z, y);
        let target = builder.relu(z);
        let mut score = builder.pooled(target);
        if has_head {
            score = builder.linear(score, 5);
        }
        (builder.finish(score), target)
    }

    fn cosine(a: &Tensor, b: &Tensor) -> f64 {
        let [a, b] = [a, b].map(|t| t.to_kind(Kind::Double).reshape([-1]));
        (a.dot(&b) / (a.norm() * b.norm())).double_value(&[])
    }

    #[test]
    fn maps_are_those_of_float32_but_for_rounding() {
        let (graph, target) = network(true);
        let x = random(&[2, 3, 9, 9]);
        let [wide, narrow] = [Mode::Default, Mode::Bfloat16].map(|mode| compile(&graph, &[target], mode));
        let [wide, narrow] = [&wide, &narrow].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
        assert!(cosine(wide.logits(), narrow.logits()) > 0.9999);
        assert_eq!(narrow.activations(0).kind(), Kind::BFloat16);
        let seed = wide.logits().ones_like();
        for gradient in [Gradient::Plain, Gradient::Guided] {
            let [wide, narrow] =
                [&wide, &narrow].map(|pass| pass.reverse(&seed, gradient, Until::Input, &Never).unwrap());
            for (wide, narrow) in
                [(&wide.targets[0], &narrow.targets[0]), (wide.input.as_ref().unwrap(), narrow.input.as_ref().unwrap())]
            {
                // In one network of 256, the class has no positive gradient at any channel.
                if wide.norm().double_value(&[]) == 0.0 {
                    assert!(narrow.norm().double_value(&[]) == 0.0);
                    continue;
                }
                let cosine = cosine(wide, narrow);
                assert!(cosine > 0.95, "{gradient:?}: {cosine}");
                assert!(!wide.equal(&narrow.to_kind(Kind::Float)), "nothing was rounded");
            }
        }
    }

    #[test]
    fn early_layers_are_float32() {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 16, 16]));
        let stem = builder.convolution(builder.input(), 4);
        let stem = builder.relu(stem);
        let mut y = builder.node("max_pool2d", vec![("self", stem.into()), ("kernel_size", [4, 4].into())]);
        let pooled = y;
        for _ in 0..40 {
            y = builder.convolution(y, 12);
            y = builder.relu(y);
        }
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let x = random(&[2, 3, 16, 16]);
        let [wide, narrow] = [Mode::Default, Mode::Bfloat16].map(|mode| compile(&graph, &[stem, pooled, y], mode));
        let [wide, narrow] = [&wide, &narrow].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
        for target in 0..2 {
            assert_eq!(narrow.activations(target).kind(), Kind::Float);
            // Kernels of a convolution differ in rounding, by far less than bfloat16 does.
            assert!(distance(narrow.activations(target), wide.activations(target)) < 1e-5);
        }
        assert_eq!(narrow.activations(2).kind(), Kind::BFloat16);
        let found = narrow.reverse(&narrow.logits().ones_like(), Gradient::Plain, Until::Input, &Never).unwrap();
        let kinds = found.targets.iter().map(Tensor::kind).collect::<Vec<_>>();
        assert_eq!(kinds, [Kind::Float, Kind::Float, Kind::BFloat16]);
        assert_eq!(found.input.unwrap().kind(), Kind::Float);
    }

    #[test]
    fn logits_of_a_linear_layer_are_float32() {
        for (has_head, kind) in [(true, Kind::Float), (false, Kind::BFloat16)] {
            let (graph, target) = network(has_head);
            let plan = compile(&graph, &[target], Mode::Bfloat16);
            let pass = plan.forward(random(&[1, 3, 9, 9]), &Never).unwrap();
            assert_eq!(pass.logits().kind(), kind);
        }
    }

    #[test]
    fn a_head_whose_weight_is_computed_runs_in_bfloat16() {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 4, 4]));
        let features = builder.pooled(builder.input());
        let weight = builder.constant(random(&[5, 3]));
        let weight = builder.node("abs", vec![("self", weight.into())]);
        let score = builder.node("linear", vec![("input", features.into()), ("weight", weight.into())]);
        let graph = builder.finish(score);
        let plan = compile(&graph, &[], Mode::Bfloat16);
        let pass = plan.forward(random(&[2, 3, 4, 4]), &Never).unwrap();
        assert_eq!(pass.logits().kind(), Kind::BFloat16);
    }

    #[test]
    fn a_strided_convolution_of_few_channels_gives_gradients_of_its_dtype() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 12, 12]));
        let colour = builder.convolution(builder.input(), 3);
        let weight = builder.constant(random(&[8, 3, 3, 3]));
        let stem = builder.node(
            "conv2d",
            vec![
                ("input", colour.into()),
                ("weight", weight.into()),
                ("stride", [2, 2].into()),
                ("padding", [1, 1].into()),
            ],
        );
        let score = builder.pooled(stem);
        let graph = builder.finish(score);
        let plan = compile(&graph, &[colour], Mode::Bfloat16);
        let pass = plan.forward(random(&[1, 3, 12, 12]), &Never).unwrap();
        let seed = pass.logits().ones_like();
        let found = pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap();
        assert_eq!((found.targets[0].kind(), found.input.unwrap().kind()), (Kind::BFloat16, Kind::BFloat16));
    }

    #[test]
    fn parameters_of_a_normalisation_that_stays_are_not_rounded() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 5, 5]));
        let y = builder.relu(builder.input());
        let y = builder.batch_norm(y);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let mut draft = Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16));
        use_bfloat16(&mut draft, score).unwrap();
        draft.drop_unread_constants();
        assert!(!draft.constants.is_empty());
        assert!(draft.constants.values().all(|constant| constant.kind().unwrap() == Kind::Float));
    }

    #[test]
    fn a_dtype_that_is_named_becomes_bfloat16() {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 4, 4]));
        let y = builder.convolution(builder.input(), 3);
        let y = builder.node("to.dtype", vec![("self", y.into()), ("dtype", scalar_type(Kind::Float).into())]);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let plan = compile(&graph, &[y], Mode::Bfloat16);
        let pass = plan.forward(random(&[2, 3, 4, 4]), &Never).unwrap();
        assert_eq!(pass.activations(0).kind(), Kind::BFloat16);
    }
}
