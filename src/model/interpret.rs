//! Runs a graph node by node and keeps every value: for the checks at load, not for frames.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::torch::{Tape, Value};

use super::ModelError;
use super::graph::{Argument, Element, Node, ValueId};

/// Every value of one run.
pub struct Trace {
    values: Vec<Option<Value>>,
    differentiable: Vec<bool>,
}

impl Trace {
    /// Runs `nodes` on `input`.
    pub fn run(
        nodes: &[Node],
        constants: &BTreeMap<ValueId, Tensor>,
        input: (ValueId, &Tensor),
        value_count: usize,
    ) -> Result<Self, ModelError> {
        let mut trace = Trace { values: vec![None; value_count], differentiable: vec![false; value_count] };
        for (id, tensor) in constants {
            trace.values[id.index()] = Some(Value::Tensor(tensor.shallow_clone()));
        }
        trace.values[input.0.index()] = Some(Value::Tensor(input.1.shallow_clone()));
        trace.differentiable[input.0.index()] = true;
        for node in nodes {
            trace.step(node).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
        }
        Ok(trace)
    }

    pub fn value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.index())?.as_ref()
    }

    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        self.value(id)?.tensor()
    }

    /// Whether the value depends on the input in a way that has a gradient.
    pub fn is_differentiable(&self, id: ValueId) -> bool {
        self.differentiable.get(id.index()).copied().unwrap_or(false)
    }

    fn step(&mut self, node: &Node) -> Result<(), crate::torch::OperatorError> {
        let arguments = node
            .arguments
            .iter()
            .map(|a| a.resolve(|id| self.value(id).cloned()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| crate::torch::OperatorError::Failed {
                operator: format!("{:?}", node.operation),
                message: "reads a value that is not there".into(),
            })?;
        // Where tensors that depend on the input are read.
        let mut places = Vec::new();
        if !node.no_grad {
            for (i, argument) in node.arguments.iter().enumerate() {
                match argument {
                    Argument::Use(id) if self.is_differentiable(*id) => places.push((i, None)),
                    Argument::List(elements) => {
                        for (j, element) in elements.iter().enumerate() {
                            if matches!(element, Element::Use(id) if self.is_differentiable(*id)) {
                                places.push((i, Some(j)));
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        let (results, tape) = if places.is_empty() {
            (node.operation.run(&arguments, false)?, None)
        } else {
            let inputs: Vec<Tensor> = places.iter().filter_map(|&place| tensor_at(&arguments, place)).collect();
            let (results, tape) = Tape::record(&inputs, |leaves| {
                let mut arguments = arguments.clone();
                for (&(i, j), leaf) in places.iter().zip(leaves) {
                    let leaf = leaf.shallow_clone();
                    match (&mut arguments[i], j) {
                        (Value::Tensors(list), Some(j)) => list[j] = Some(leaf),
                        (argument, _) => *argument = Value::Tensor(leaf),
                    }
                }
                node.operation.run(&arguments, true)
            })?;
            (results, Some(tape))
        };
        let mut tensors = 0;
        for (index, result) in results.into_iter().enumerate() {
            let is_tensor = matches!(result, Value::Tensor(_));
            let id = node.outputs.get(index).copied().flatten();
            if let Some(id) = id {
                self.differentiable[id.index()] =
                    is_tensor && tape.as_ref().is_some_and(|t| t.is_differentiable(tensors));
                self.values[id.index()] = Some(result);
            }
            tensors += usize::from(is_tensor);
        }
        Ok(())
    }
}

fn tensor_at(arguments: &[Value], (argument, element): (usize, Option<usize>)) -> Option<Tensor> {
    match (&arguments[argument], element) {
        (Value::Tensor(tensor), None) => Some(tensor.shallow_clone()),
        (Value::Tensors(list), Some(element)) => list[element].as_ref().map(Tensor::shallow_clone),
        _ => None,
    }
}
