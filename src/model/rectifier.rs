//! Recognises rectifiers: operators whose derivative gates the gradient by their input.

use std::collections::{BTreeMap, HashMap};

use tch::Tensor;

use crate::torch::Value;

use super::node::{Argument, Node, Rectifier, ValueId};

/// Marks rectifiers and smooth activations.
pub fn mark(nodes: &mut [Node], constants: &BTreeMap<ValueId, Tensor>) {
    let mut zeros = Zeros { constants, known: HashMap::new() };
    for node in nodes {
        let found = rectifier(node, &mut zeros);
        node.rectifier = found;
        node.smooth_activation = matches!(
            node.operator_name(),
            "silu"
                | "silu_"
                | "gelu"
                | "gelu_"
                | "hardswish"
                | "hardswish_"
                | "mish"
                | "mish_"
                | "elu"
                | "elu_"
                | "celu"
                | "celu_"
                | "selu"
                | "selu_"
                | "softplus"
        );
        zeros.learn(node);
    }
}

/// Values that are zero everywhere.
struct Zeros<'a> {
    constants: &'a BTreeMap<ValueId, Tensor>,
    known: HashMap<ValueId, bool>,
}

impl Zeros<'_> {
    fn is_zero(&mut self, id: ValueId) -> bool {
        let constants = self.constants;
        *self.known.entry(id).or_insert_with(|| {
            constants.get(&id).is_some_and(|tensor| {
                tensor.numel() > 0
                    && tensor.f_count_nonzero(None::<i64>).and_then(|n| n.f_int64_value(&[])).is_ok_and(|n| n == 0)
            })
        })
    }

    /// The node's result, if its operator makes zeros or passes zeros on.
    fn learn(&mut self, node: &Node) {
        let is_zero_literal = |name: &str| match node.literal(name) {
            Some(Value::Int(v)) => *v == 0,
            Some(Value::Float(v)) => *v == 0.0,
            _ => false,
        };
        let zero = match node.operator_name() {
            "zeros" | "zeros_like" | "new_zeros" => true,
            "full" | "full_like" | "new_full" => is_zero_literal("fill_value"),
            "scalar_tensor" => is_zero_literal("s"),
            "lift_fresh_copy" | "lift_fresh" | "detach" | "alias" | "clone" | "to" | "view" | "expand"
            | "expand_as" | "reshape" | "type_as" | "unsqueeze" | "contiguous" | "_to_copy" => {
                match node.arguments.first() {
                    Some(Argument::Use(source)) => self.is_zero(*source),
                    _ => false,
                }
            }
            _ => return,
        };
        for output in node.defines() {
            self.known.insert(output, zero);
        }
    }
}

fn rectifier(node: &Node, zeros: &mut Zeros<'_>) -> Option<Rectifier> {
    let source = |name: &str| {
        let position = node.operation.aten()?.schema().position(name)?;
        matches!(node.arguments.get(position), Some(Argument::Use(_))).then_some(Rectifier { source: position })
    };
    let number = |name: &str| match node.literal(name) {
        Some(Value::Int(v)) => Some(*v as f64),
        Some(Value::Float(v)) => Some(*v),
        _ => None,
    };
    let mut is_zero = |name: &str| match node.argument(name) {
        Some(Argument::Literal(_)) => number(name) == Some(0.0),
        Some(Argument::Use(id)) => zeros.is_zero(*id),
        _ => false,
    };
    match node.operator_name().trim_end_matches('_') {
        "relu" | "relu6" | "leaky_relu" => source("self"),
        "hardtanh" => is_zero("min_val").then(|| source("self"))?,
        "clamp" | "clip" => {
            let upper_is_number = matches!(node.argument("max"), Some(Argument::Literal(_)));
            (is_zero("min") && upper_is_number).then(|| source("self"))?
        }
        "clamp_min" => is_zero("min").then(|| source("self"))?,
        "threshold" => (number("threshold") == Some(0.0) && number("value") == Some(0.0)).then(|| source("self"))?,
        "max" | "maximum" | "fmax" => {
            node.argument("other")?;
            let (mine, other) = (is_zero("self"), is_zero("other"));
            match (mine, other) {
                (false, true) => source("self"),
                (true, false) => source("other"),
                _ => None,
            }
        }
        _ => None,
    }
}
