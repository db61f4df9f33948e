//! What a node computes, and running it.

use crate::torch::{OperatorError, Value};

use super::graph::Operation;

/// Arithmetic on sizes: what PyTorch writes as `_operator.mul`, `torch.sym_float`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symbolic {}

/// The chain of views through which an in-place write reached its base.
#[derive(Debug, Clone)]
pub struct WriteBack {}

pub(super) fn run(operation: &Operation, arguments: &[Value], record: bool) -> Result<Vec<Value>, OperatorError> {
    match operation {
        Operation::Aten(operator) if record => operator.call_recording(arguments),
        Operation::Aten(operator) => operator.call(arguments),
        _ => Err(OperatorError::Unsupported { operator: format!("{operation:?}") }),
    }
}
