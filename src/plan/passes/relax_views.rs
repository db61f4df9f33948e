//! Views that do not depend on a value's strides.

use crate::model::node::{Argument, Node, ValueId};
use crate::model::operation::Operation;
use crate::plan::PlanError;
use crate::torch::{Operator, Value};

use crate::plan::draft::Draft;

/// Makes nodes that require certain strides work with any. Exported programs were traced with contiguous values;
/// outside the exact mode, convolutions give channels-last results.
///
/// - `view` becomes `reshape`, which copies where no view is possible.
/// - `as_strided` gets a contiguous copy of its input.
pub fn relax_views(draft: &mut Draft) -> Result<(), PlanError> {
    let reshape = Operator::find("aten::reshape", "")?;
    let contiguous = Operator::find("aten::contiguous", "")?;
    let mut nodes = Vec::with_capacity(draft.nodes.len());
    for mut node in std::mem::take(&mut draft.nodes) {
        match node.operation.aten().map(Operator::to_string).as_deref() {
            Some("aten.view.default" | "aten._unsafe_view.default") => {
                node.operation = Operation::Aten(reshape.clone());
            }
            Some("aten.as_strided.default") => {
                if let Argument::Use(source) = node.arguments[0] {
                    let copy = draft.add_value_like(source);
                    nodes.push(made_contiguous(&contiguous, &node, source, copy));
                    node.arguments[0] = Argument::Use(copy);
                }
            }
            _ => {}
        }
        nodes.push(node);
    }
    draft.nodes = nodes;
    Ok(())
}

fn made_contiguous(contiguous: &Operator, before: &Node, source: ValueId, copy: ValueId) -> Node {
    /// ATen's number for the contiguous memory format.
    const CONTIGUOUS: i64 = 0;
    Node {
        name: format!("contiguous before {}", before.name),
        operation: Operation::Aten(contiguous.clone()),
        arguments: vec![Argument::Use(source), Argument::Literal(Value::Int(CONTIGUOUS))],
        outputs: vec![Some(copy)],
        no_grad: before.no_grad,
        rectifier: None,
        smooth_activation: false,
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::test_graphs::{GraphBuilder, Of, compile, distance, random, spec};
    use crate::plan::{Mode, Never};

    /// A convolution whose result `operator` reads with `size`, then a matrix product.
    fn viewed(operator: &str, arguments: Vec<(&str, Of)>) -> crate::model::graph::Graph {
        let mut builder = GraphBuilder::new(&random(&[2, 3, 4, 4]));
        let y = builder.convolution(builder.input(), 4);
        let mut named: Vec<(&str, Of)> = vec![("self", y.into())];
        named.extend(arguments);
        let flat = builder.node(operator, named);
        let weight = builder.constant(random(&[64, 5]));
        let score = builder.node("matmul", vec![("self", flat.into()), ("other", weight.into())]);
        builder.finish(score)
    }

    #[test]
    fn a_view_of_a_convolution_keeps_its_meaning_when_channels_lie_last() {
        let graph = viewed("view", vec![("size", [-1, 64].into())]);
        let x = random(&[2, 3, 4, 4]);
        for input_gradient in [true, false] {
            let mut wish = spec(&graph, &[], Mode::Default);
            wish.input_gradient = input_gradient;
            let plan = crate::plan::Plan::compile(&graph, &wish).unwrap();
            let exact = compile(&graph, &[], Mode::Exact);
            let found = plan.forward(x.shallow_clone(), &Never).unwrap();
            let expected = exact.forward(x.shallow_clone(), &Never).unwrap();
            assert!(distance(found.logits(), expected.logits()) < 1e-5);
        }
    }

    #[test]
    fn strides_that_the_program_names_are_those_of_a_contiguous_value() {
        let graph = viewed("as_strided", vec![("size", [2, 64].into()), ("stride", [64, 1].into())]);
        let x = random(&[2, 3, 4, 4]);
        let found = compile(&graph, &[], Mode::Default);
        let expected = compile(&graph, &[], Mode::Exact);
        let found = found.forward(x.shallow_clone(), &Never).unwrap();
        let expected = expected.forward(x, &Never).unwrap();
        assert!(distance(found.logits(), expected.logits()) < 1e-5);
    }
}
