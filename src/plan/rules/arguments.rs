//! Reading a node's arguments.

use tch::Tensor;

use crate::model::node::{Argument, Node};
use crate::torch::{OperatorError, Value};

/// A number that the graph fixes as a literal.
pub(in crate::plan) fn literal_number(node: &Node, argument: usize) -> Option<f64> {
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

/// The tensor at position `at`.
pub(in crate::plan) fn tensor(arguments: &[Value], at: usize) -> Result<&Tensor, OperatorError> {
    arguments.get(at).and_then(Value::tensor).ok_or_else(|| unfit(at, "a tensor", arguments))
}

/// The tensor that is the first argument.
pub(in crate::plan) fn first(arguments: &[Value]) -> Result<&Tensor, OperatorError> {
    tensor(arguments, 0)
}

pub(in crate::plan) fn number(arguments: &[Value], at: usize) -> Result<f64, OperatorError> {
    arguments.get(at).and_then(as_number).ok_or_else(|| unfit(at, "a number", arguments))
}

pub(in crate::plan) fn optional_number(arguments: &[Value], at: usize) -> Result<Option<f64>, OperatorError> {
    match arguments.get(at) {
        None | Some(Value::None) => Ok(None),
        Some(_) => number(arguments, at).map(Some),
    }
}

pub(in crate::plan) fn integer(arguments: &[Value], at: usize) -> Result<i64, OperatorError> {
    optional_integer(arguments, at)?.ok_or_else(|| unfit(at, "an integer", arguments))
}

pub(in crate::plan) fn optional_integer(arguments: &[Value], at: usize) -> Result<Option<i64>, OperatorError> {
    match arguments.get(at) {
        Some(Value::Int(v)) => Ok(Some(*v)),
        None | Some(Value::None) => Ok(None),
        _ => Err(unfit(at, "an integer", arguments)),
    }
}

pub(in crate::plan) fn integers(arguments: &[Value], at: usize) -> Result<Vec<i64>, OperatorError> {
    match arguments.get(at) {
        Some(Value::Ints(v)) => Ok(v.clone()),
        Some(Value::Int(v)) => Ok(vec![*v]),
        Some(Value::None) | None => Ok(Vec::new()),
        _ => Err(unfit(at, "integers", arguments)),
    }
}

pub(in crate::plan) fn is_true(arguments: &[Value], at: usize) -> bool {
    matches!(arguments.get(at), Some(Value::Bool(true) | Value::Int(1)))
}

/// An axis counted from the front. None when there is no such axis.
pub(in crate::plan) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let from_front = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&from_front).then(|| usize::try_from(from_front).ok())?
}

pub(in crate::plan) fn unfit(at: usize, wanted: &str, arguments: &[Value]) -> OperatorError {
    let got = arguments.get(at).map_or("nothing", Value::kind);
    OperatorError::Argument {
        operator: "with a rule of its own".into(),
        argument: format!("number {at}"),
        problem: format!("takes {wanted}, got {got}"),
    }
}
