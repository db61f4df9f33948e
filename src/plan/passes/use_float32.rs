//! Converts a network of float16 or bfloat16 to float32.

use std::collections::HashMap;

use tch::Kind;

use crate::model::node::{Argument, Element, ValueId};
use crate::plan::constant::Constant;
use crate::plan::draft::{Draft, rename_dtype};

/// Converts the values and weights of dtype `kind` to float32, and the dtypes that nodes name. A draft that reads the
/// bits of a value as another dtype stays as it is.
pub fn use_float32(draft: &mut Draft, kind: Kind) {
    let mut operators = draft.nodes.iter().filter_map(|node| node.operation.aten());
    if operators.any(|operator| operator.to_string() == "aten.view.dtype") {
        return;
    }
    draft.convert_values(kind, Kind::Float, |_| true);
    let mut copies = HashMap::new();
    for at in 0..draft.nodes.len() {
        let mut arguments = std::mem::take(&mut draft.nodes[at].arguments);
        for argument in &mut arguments {
            match argument {
                Argument::Use(value) => *value = converted(draft, &mut copies, *value, kind),
                Argument::List(elements) => {
                    for element in elements {
                        if let Element::Use(value) = element {
                            *value = converted(draft, &mut copies, *value, kind);
                        }
                    }
                }
                Argument::Literal(_) => {}
            }
        }
        draft.nodes[at].arguments = arguments;
        rename_dtype(&mut draft.nodes[at], kind, Kind::Float);
    }
}

/// The float32 copy of a constant of dtype `kind`; any other value itself.
fn converted(draft: &mut Draft, copies: &mut HashMap<ValueId, ValueId>, value: ValueId, kind: Kind) -> ValueId {
    if let Some(known) = copies.get(&value) {
        return *known;
    }
    let Some(constant) = draft.constants.get(&value).filter(|constant| constant.kind().is_ok_and(|of| of == kind))
    else {
        return value;
    };
    let copy = Constant::Converted(Box::new(constant.clone()), Kind::Float);
    let new = draft.add_constant(copy);
    copies.insert(value, new);
    new
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tch::Tensor;

    use super::*;
    use crate::model::dtype::scalar_type;
    use crate::model::graph::Graph;
    use crate::model::stored::Stored;
    use crate::plan::rule::Gradient;
    use crate::plan::test_graphs::{GraphBuilder, compile, distance, random, spec};
    use crate::plan::{Mode, Never, Until};
    use crate::torch::computes_in;

    /// Convolutions, normalisation, a named dtype, a residual sum, a linear layer. Gives a target layer too.
    fn network() -> (Graph, ValueId) {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 9, 9]));
        let y = builder.convolution(builder.input(), 8);
        let y = builder.batch_norm(y);
        let y = builder.relu(y);
        let z = builder.convolution(y, 8);
        let z = builder.node("to.dtype", vec![("self", z.into()), ("dtype", scalar_type(Kind::Float).into())]);
        let z = builder.add(z, y);
        let target = builder.relu(z);
        let score = builder.pooled(target);
        let score = builder.linear(score, 5);
        (builder.finish(score), target)
    }

    /// A float32 graph as if it had been saved in dtype `kind`, with weights rounded to dtype `through` before.
    fn saved_in(graph: &Graph, kind: Kind, through: Kind) -> Graph {
        let mut graph = graph.share();
        for stored in graph.constants.values_mut() {
            let tensor = stored.tensor().unwrap().to_kind(through).to_kind(kind);
            *stored = Arc::new(Stored::new(tensor, None).unwrap());
        }
        graph.values.iter_mut().for_each(|value| value.kind = Some(kind));
        graph.nodes.iter_mut().for_each(|node| rename_dtype(node, Kind::Float, kind));
        graph.input.kind = kind;
        graph
    }

    #[test]
    fn a_network_of_a_dtype_that_the_processor_lacks_gives_what_float32_gives() {
        let x = random(&[2, 3, 9, 9]);
        for kind in [Kind::BFloat16, Kind::Half] {
            let (graph, target) = network();
            let plans =
                [Kind::Float, kind].map(|saved| compile(&saved_in(&graph, saved, kind), &[target], Mode::Default));
            let [wide, found] = plans.each_ref().map(|plan| plan.forward(x.shallow_clone(), &Never).unwrap());
            let kinds = if computes_in(kind) { kind } else { Kind::Float };
            assert_eq!((found.logits().kind(), found.activations(0).kind()), (kinds, kinds));
            let allowed = if computes_in(kind) { 0.14 } else { 1e-6 };
            let near = |what: &str, found: &Tensor, wide: &Tensor| {
                let distance = distance(found, wide);
                assert!(distance < allowed, "{kind:?} {what}: {distance}");
            };
            near("logits", found.logits(), wide.logits());
            let seed = random(&[2, 5]);
            for gradient in [Gradient::Plain, Gradient::Guided] {
                let [wide, found] = [&wide, &found].map(|pass| {
                    let seed = seed.to_kind(pass.logits().kind());
                    pass.reverse(&seed, gradient, Until::Input, &Never).unwrap()
                });
                near("target", &found.targets[0], &wide.targets[0]);
                near("input", found.input.as_ref().unwrap(), wide.input.as_ref().unwrap());
            }
        }
    }

    #[test]
    fn nothing_of_a_narrow_dtype_is_left() {
        for kind in [Kind::BFloat16, Kind::Half] {
            let (wide, target) = network();
            let narrow = saved_in(&wide, kind, kind);
            let mut draft = Draft::new(&narrow, &spec(&narrow, &[target], Mode::Default));
            use_float32(&mut draft, kind);
            draft.drop_unread_constants();
            let values = draft.nodes.iter().flat_map(|node| node.defines()).chain([draft.input]);
            assert!(values.into_iter().all(|value| draft.kind(value) == Some(Kind::Float)));
            assert!(draft.constants.values().all(|constant| constant.kind().unwrap() == Kind::Float));
            assert_eq!(draft.constants.len(), wide.constants.len());
            let named = draft.nodes.iter().find(|node| node.operator_name() == "to").unwrap();
            assert!(matches!(named.literal("dtype"), Some(crate::torch::Value::Int(6))));
        }
    }

    #[test]
    fn in_exact_mode_it_is_the_dtype_that_the_model_was_saved_in() {
        for kind in [Kind::BFloat16, Kind::Half] {
            let (graph, target) = network();
            let plan = compile(&saved_in(&graph, kind, kind), &[target], Mode::Exact);
            let pass = plan.forward(random(&[2, 3, 9, 9]), &Never).unwrap();
            assert_eq!((pass.logits().kind(), pass.activations(0).kind()), (kind, kind));
            let seed = pass.logits().ones_like();
            let found = pass.reverse(&seed, Gradient::Guided, Until::Input, &Never).unwrap();
            assert_eq!(found.input.unwrap().kind(), kind);
        }
    }

    #[test]
    fn numbers_whose_bits_are_read_stay_as_they_are() {
        let mut builder = GraphBuilder::new(&random(&[1, 3, 4, 4]).to_kind(Kind::BFloat16));
        let bits = builder.node("view.dtype", vec![("self", builder.input().into()), ("dtype", 2.into())]);
        let y = builder.node("to.dtype", vec![("self", bits.into()), ("dtype", scalar_type(Kind::BFloat16).into())]);
        let score = builder.pooled(y);
        let graph = builder.finish(score);
        let mut draft = Draft::new(&graph, &spec(&graph, &[], Mode::Default));
        use_float32(&mut draft, Kind::BFloat16);
        assert_eq!(draft.kind(draft.input), Some(Kind::BFloat16));
    }
}
