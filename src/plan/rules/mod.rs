//! Reverse rules, one file per operator family. Each agrees with its one-node tape.

pub mod tape;

mod canonical;
mod rectifiers;
mod single;
#[cfg(test)]
mod trial;

use tch::Tensor;

use crate::model::graph::{Argument, Node};
use crate::plan::rule::Rule;
use crate::torch::{OperatorError, Value};

use single::{Forward, Guide, Single};
use tape::TapeRule;

/// The rule of a node: a hand-written one where there is one for its operator and its literals, else the tape.
///
/// `exact` keeps to rules that give autograd's own numbers, bit for bit. A node with a [`Node::rectifier`] is guided in
/// a guided reverse, whatever its operator; a smooth activation becomes one when its `rectifier` is set.
pub fn rule_for(node: &Node, exact: bool) -> Result<Box<dyn Rule>, OperatorError> {
    Ok(match hand_written(node, exact)? {
        Some(rule) => rule,
        None => Box::new(tape(node)),
    })
}

fn tape(node: &Node) -> TapeRule {
    TapeRule::new(node.operation.clone(), node.rectifier.is_some())
}

fn hand_written(node: &Node, _exact: bool) -> Result<Option<Box<dyn Rule>>, OperatorError> {
    let Some(operator) = node.operation.aten() else { return Ok(None) };
    let name = operator.to_string();
    let Some(name) = name.strip_prefix("aten.") else { return Ok(None) };
    let operator = operator.clone();

    let guided = |guide| if node.rectifier.is_some() { guide } else { Guide::No };
    let single = |forward: Forward, guide| -> Box<dyn Rule> { Box::new(Single::new(forward, guide, tape(node))) };
    let gate = |forward| single(forward, guided(Guide::After));

    Ok(Some(match name {
        "relu.default" => gate(rectifiers::relu(operator)),
        "relu6.default" => gate(rectifiers::relu6(operator)),
        "hardtanh.default" => gate(rectifiers::hardtanh(operator)),
        "clamp.default" | "clamp_min.default" | "clip.default" => gate(rectifiers::clamp(operator)),
        "threshold.default" => gate(rectifiers::threshold(operator)),
        "leaky_relu.default" => {
            let rises = literal_number(node, 1).is_some_and(|slope| slope >= 0.0);
            single(rectifiers::leaky_relu(operator), guided(if rises { Guide::After } else { Guide::Before }))
        }
        _ => return Ok(None),
    }))
}

/// A number that the graph fixes.
fn literal_number(node: &Node, argument: usize) -> Option<f64> {
    match node.arguments.get(argument)? {
        Argument::Literal(value) => as_number(value),
        _ => None,
    }
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(v) => Some(*v as f64),
        Value::Float(v) => Some(*v),
        Value::Bool(v) => Some(f64::from(u8::from(*v))),
        _ => None,
    }
}

/// The tensor that is the first argument.
fn first(arguments: &[Value]) -> Result<&Tensor, OperatorError> {
    arguments.first().and_then(Value::tensor).ok_or_else(|| unfit(0, "a tensor", arguments))
}

fn number(arguments: &[Value], at: usize) -> Result<f64, OperatorError> {
    arguments.get(at).and_then(as_number).ok_or_else(|| unfit(at, "a number", arguments))
}

fn optional_number(arguments: &[Value], at: usize) -> Result<Option<f64>, OperatorError> {
    match arguments.get(at) {
        None | Some(Value::None) => Ok(None),
        Some(_) => number(arguments, at).map(Some),
    }
}

fn unfit(at: usize, wanted: &str, arguments: &[Value]) -> OperatorError {
    let got = arguments.get(at).map_or("nothing", Value::kind);
    OperatorError::Argument {
        operator: "with a rule of its own".into(),
        argument: format!("number {at}"),
        problem: format!("takes {wanted}, got {got}"),
    }
}
