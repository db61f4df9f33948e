//! A float32 network computes in bfloat16.

use std::collections::{HashMap, HashSet};

use tch::Kind;

use crate::model::dtype::scalar_type;
use crate::model::node::{Argument, Element, Node, ValueId};
use crate::model::operation::Operation;
use crate::plan::PlanError;
use crate::plan::constant::Constant;
use crate::torch::{Operator, Value};

use super::Draft;
use super::sensitive_layers::first_layers;
use crate::plan::draft::rename_dtype;

/// Makes a float32 draft one of bfloat16: values, weights, and where a node names float32 (`x.float()`, `softmax(dtype=…)`), that too.
/// Float32 stay
///
/// - the [first layers](first_layers), both ways: what rounding adds there passes every gate that follows, and with guided
///   backpropagation a gate that falls the other way moves the map. EfficientNet-Lite0's Guided Grad-CAM keeps a cosine of 0.95 to 0.99 to
///   float32's when they are rounded, and of more than 0.99 when they are not;
/// - the parameters of normalisations: a number a channel, and rounding a variance moves the whole channel;
/// - the linear layer of constant weights that gives the score: two of a thousand logits often share the eight bits that bfloat16 has.
///
/// Batch normalisations must have been folded before: what is rounded then is their product with the weight.
pub fn use_bfloat16(draft: &mut Draft, score: ValueId) -> Result<(), PlanError> {
    let head = draft.nodes.iter().position(|node| {
        node.operator_name() == "linear"
            && node.defines().any(|value| value == score)
            && node.arguments[1..].iter().all(|argument| draft.is_constant_or_none(argument))
    });
    let first = first_layers(draft);
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

/// What nodes read that compute in bfloat16.
struct Rounding {
    /// Values that stay float32.
    wide: HashSet<ValueId>,
    rounded: HashMap<ValueId, ValueId>,
    /// By the value that each converts.
    conversions: HashMap<ValueId, Node>,
}

impl Rounding {
    /// The rounded copy of a constant or of a value that stays float32; any other value itself.
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

    /// Puts each behind the node that gives what it converts.
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

/// Makes the head's input float32 before it.
fn widen_input(draft: &mut Draft, head: usize) -> Result<(), PlanError> {
    let Argument::Use(input) = draft.nodes[head].arguments[0] else { return Ok(()) };
    let name = format!("{}.float", draft.nodes[head].name);
    let (widening, wide) = conversion(draft, name, input, Kind::Float)?;
    draft.nodes[head].arguments[0] = Argument::Use(wide);
    draft.nodes.insert(head, widening);
    Ok(())
}

/// A node that makes a value one of another dtype, and the value that it gives.
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
    use crate::plan::test_graphs::{Sketch, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Until};

    /// Convolution, normalisation, rectifier, residual sum, average, and a linear layer when `has_head`.
    fn network(has_head: bool) -> (Graph, ValueId) {
        let mut sketch = Sketch::new(&random(&[2, 3, 9, 9]));
        let y = sketch.convolution(sketch.input(), 8);
        let y = sketch.batch_norm(y);
        let y = sketch.relu(y);
        let z = sketch.convolution(y, 8);
        let z = sketch.add(z, y);
        let target = sketch.relu(z);
        let mut score = sketch.pooled(target);
        if has_head {
            score = sketch.linear(score, 5);
        }
        (sketch.finish(score), target)
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
                // One network in 256 has no class that speaks for any channel.
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
    fn first_layers_are_float32() {
        let mut sketch = Sketch::new(&random(&[2, 3, 16, 16]));
        let stem = sketch.convolution(sketch.input(), 4);
        let stem = sketch.relu(stem);
        let mut y = sketch.node("max_pool2d", vec![("self", stem.into()), ("kernel_size", [4, 4].into())]);
        let pooled = y;
        for _ in 0..40 {
            y = sketch.convolution(y, 12);
            y = sketch.relu(y);
        }
        let score = sketch.pooled(y);
        let graph = sketch.finish(score);
        let x = random(&[2, 3, 16, 16]);
        let [wide, narrow] = [Mode::Default, Mode::Bfloat16].map(|mode| compile(&graph, &[stem, pooled, y], mode));
        let [wide, narrow] = [&wide, &narrow].map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
        for target in 0..2 {
            assert_eq!(narrow.activations(target).kind(), Kind::Float);
            // Ways through a convolution differ in rounding, by far less than bfloat16 does.
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
        let mut sketch = Sketch::new(&random(&[2, 3, 4, 4]));
        let features = sketch.pooled(sketch.input());
        let weight = sketch.constant(random(&[5, 3]));
        let weight = sketch.node("abs", vec![("self", weight.into())]);
        let score = sketch.node("linear", vec![("input", features.into()), ("weight", weight.into())]);
        let graph = sketch.finish(score);
        let plan = compile(&graph, &[], Mode::Bfloat16);
        let pass = plan.forward(random(&[2, 3, 4, 4]), &Never).unwrap();
        assert_eq!(pass.logits().kind(), Kind::BFloat16);
    }

    #[test]
    fn a_strided_convolution_of_few_channels_gives_gradients_of_its_dtype() {
        let mut sketch = Sketch::new(&random(&[1, 3, 12, 12]));
        let colour = sketch.convolution(sketch.input(), 3);
        let weight = sketch.constant(random(&[8, 3, 3, 3]));
        let stem = sketch.node(
            "conv2d",
            vec![
                ("input", colour.into()),
                ("weight", weight.into()),
                ("stride", [2, 2].into()),
                ("padding", [1, 1].into()),
            ],
        );
        let score = sketch.pooled(stem);
        let graph = sketch.finish(score);
        let plan = compile(&graph, &[colour], Mode::Bfloat16);
        let pass = plan.forward(random(&[1, 3, 12, 12]), &Never).unwrap();
        let seed = pass.logits().ones_like();
        let found = pass.reverse(&seed, Gradient::Plain, Until::Input, &Never).unwrap();
        assert_eq!((found.targets[0].kind(), found.input.unwrap().kind()), (Kind::BFloat16, Kind::BFloat16));
    }

    #[test]
    fn parameters_of_a_normalisation_that_stays_are_not_rounded() {
        let mut sketch = Sketch::new(&random(&[1, 3, 5, 5]));
        let y = sketch.relu(sketch.input());
        let y = sketch.batch_norm(y);
        let score = sketch.pooled(y);
        let graph = sketch.finish(score);
        let mut draft = Draft::new(&graph, &spec(&graph, &[], Mode::Bfloat16));
        use_bfloat16(&mut draft, score).unwrap();
        draft.drop_unread_constants();
        assert!(!draft.constants.is_empty());
        assert!(draft.constants.values().all(|constant| constant.kind().unwrap() == Kind::Float));
    }

    #[test]
    fn a_dtype_that_is_named_becomes_bfloat16() {
        let mut sketch = Sketch::new(&random(&[2, 3, 4, 4]));
        let y = sketch.convolution(sketch.input(), 3);
        let y = sketch.node("to.dtype", vec![("self", y.into()), ("dtype", scalar_type(Kind::Float).into())]);
        let score = sketch.pooled(y);
        let graph = sketch.finish(score);
        let plan = compile(&graph, &[y], Mode::Bfloat16);
        let pass = plan.forward(random(&[2, 3, 4, 4]), &Never).unwrap();
        assert_eq!(pass.activations(0).kind(), Kind::BFloat16);
    }
}
