//! Recognises rectifiers: operators whose derivative gates the gradient by their input.

use std::collections::{BTreeMap, HashMap};

use tch::Tensor;

use crate::torch::Value;

use super::node::{Argument, Node, Rectifier, ValueId};

/// Marks rectifiers and smooth activations.
pub fn mark(nodes: &mut [Node], constants: &BTreeMap<ValueId, Tensor>) {
    let mut zeros = Zeros { constants, known: HashMap::new() };
    let mut signs = Signs::default();
    for node in nodes {
        let found = rectifier(node, &mut zeros).or_else(|| signs.rectifier(node, &mut zeros));
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
        signs.learn(node, &mut zeros);
    }
}

/// Values that tell the sign of another value.
#[derive(Default)]
struct Signs {
    /// `x > 0` → `x`, also as numbers 0 and 1.
    positive: HashMap<ValueId, ValueId>,
    /// `x < 0` → `x`.
    negative: HashMap<ValueId, ValueId>,
    /// `|x|` → `x`.
    absolute: HashMap<ValueId, ValueId>,
}

impl Signs {
    /// A rectifier that is written with a comparison: `where(x > 0, x, 0)`, `x.masked_fill(x < 0, 0)`, `x · (x > 0)`,
    /// or as `x + |x|`.
    fn rectifier(&self, node: &Node, zeros: &mut Zeros<'_>) -> Option<Rectifier> {
        let position = |name: &str| node.operation.aten()?.schema().position(name);
        let value = |name: &str| match node.argument(name) {
            Some(Argument::Use(value)) => Some(*value),
            _ => None,
        };
        let source = |name: &str| position(name).map(|source| Rectifier { source });
        let tells = |signs: &HashMap<ValueId, ValueId>, sign: &str, of: &str| match (value(sign), value(of)) {
            (Some(sign), Some(of)) => signs.get(&sign) == Some(&of),
            _ => false,
        };
        match node.operator_name().trim_end_matches('_') {
            "where" if tells(&self.positive, "condition", "self") && zeros.is_zero_argument(node, "other") => {
                source("self")
            }
            "where" if tells(&self.negative, "condition", "other") && zeros.is_zero_argument(node, "self") => {
                source("other")
            }
            "masked_fill" if tells(&self.negative, "mask", "self") && zeros.is_zero_argument(node, "value") => {
                source("self")
            }
            "mul" if tells(&self.positive, "other", "self") => source("self"),
            "mul" if tells(&self.positive, "self", "other") => source("other"),
            "add" if tells(&self.absolute, "other", "self") => source("self"),
            "add" if tells(&self.absolute, "self", "other") => source("other"),
            _ => None,
        }
    }

    fn learn(&mut self, node: &Node, zeros: &mut Zeros<'_>) {
        let Some(Argument::Use(first)) = node.arguments.first() else { return };
        let mut outputs = node.defines();
        let (Some(output), None) = (outputs.next(), outputs.next()) else { return };
        match node.operator_name() {
            "gt" | "ge" | "greater" | "greater_equal" if zeros.is_zero_argument(node, "other") => {
                self.positive.insert(output, *first);
            }
            "lt" | "le" | "less" | "less_equal" if zeros.is_zero_argument(node, "other") => {
                self.negative.insert(output, *first);
            }
            "abs" => {
                self.absolute.insert(output, *first);
            }
            "to" | "_to_copy" | "type_as" | "clone" | "alias" => {
                if let Some(of) = self.positive.get(first) {
                    self.positive.insert(output, *of);
                }
            }
            "logical_not" | "bitwise_not" => {
                if let Some(of) = self.negative.get(first) {
                    self.positive.insert(output, *of);
                } else if let Some(of) = self.positive.get(first) {
                    self.negative.insert(output, *of);
                }
            }
            _ => {}
        }
    }
}

/// Values that are zero everywhere.
struct Zeros<'a> {
    constants: &'a BTreeMap<ValueId, Tensor>,
    known: HashMap<ValueId, bool>,
}

impl Zeros<'_> {
    /// Whether an argument is zero: a number, or a value that is zero everywhere.
    fn is_zero_argument(&mut self, node: &Node, name: &str) -> bool {
        match node.argument(name) {
            Some(Argument::Literal(Value::Int(number))) => *number == 0,
            Some(Argument::Literal(Value::Float(number))) => *number == 0.0,
            Some(Argument::Use(id)) => self.is_zero(*id),
            _ => false,
        }
    }

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
        // In evaluation mode, `rrelu` is a leaky one.
        "relu" | "relu6" | "leaky_relu" | "prelu" | "rrelu" => source("self"),
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
