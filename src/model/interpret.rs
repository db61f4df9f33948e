//! Runs a graph node by node for the checks at load; frames run through a plan. [`Trace`] records the shape, dtype and
//! differentiability of every value; [`outputs`] returns the outputs alone.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::torch::{OperatorError, Tape, Value};

use super::ModelError;
use super::guard::Guard;
use super::node::{Argument, Element, Node, ValueId};
use super::operation::Operation;

/// Shape, dtype and differentiability of every value in one run. Values are freed after their last use, except those in
/// `wanted` and those that depend on constants alone.
pub struct Trace {
    values: Vec<Option<Value>>,
    /// Shapes and dtypes of the values that are tensors.
    shapes: Vec<Option<(Vec<i64>, Option<Kind>)>>,
    differentiable: Vec<bool>,
    /// Values that depend on constants alone.
    fixed: Vec<bool>,
}

impl Trace {
    /// Runs `nodes` on `input`, within what `guard` allows, and keeps the values of `wanted`.
    pub fn run(
        nodes: &[Node],
        constants: &BTreeMap<ValueId, Tensor>,
        input: (ValueId, &Tensor),
        wanted: &[ValueId],
        value_count: usize,
        mut guard: Guard,
    ) -> Result<Self, ModelError> {
        let values = initial(constants, input, value_count);
        let shapes = values.iter().map(|value| value.as_ref().and_then(shape)).collect();
        let mut fixed = vec![false; value_count];
        constants.keys().for_each(|id| fixed[id.index()] = true);
        let mut trace = Trace { values, shapes, differentiable: vec![false; value_count], fixed };
        trace.differentiable[input.0.index()] = true;
        let last_use = last_uses(nodes, wanted, value_count);
        for (index, node) in nodes.iter().enumerate() {
            trace.step(node, &mut guard).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
            let is_fixed = is_fixed(node, |value| trace.fixed[value.index()]);
            node.defines().for_each(|value| trace.fixed[value.index()] = is_fixed);
            for value in node.uses().filter(|value| last_use[value.index()] == Some(index)) {
                if !trace.fixed[value.index()] {
                    trace.values[value.index()] = None;
                }
            }
        }
        Ok(trace)
    }

    /// The tensor of a value that was kept.
    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        self.values.get(id.index())?.as_ref()?.tensor()
    }

    /// The shape of a value that is a tensor.
    pub fn shape(&self, id: ValueId) -> Option<&[i64]> {
        self.shapes.get(id.index())?.as_ref().map(|(shape, _)| shape.as_slice())
    }

    /// The dtype of a value that is a tensor.
    pub fn kind(&self, id: ValueId) -> Option<Kind> {
        self.shapes.get(id.index())?.as_ref()?.1
    }

    /// Whether the value depends on the input in a way that has a gradient.
    pub fn is_differentiable(&self, id: ValueId) -> bool {
        self.differentiable.get(id.index()).copied().unwrap_or(false)
    }

    fn step(&mut self, node: &Node, guard: &mut Guard) -> Result<(), OperatorError> {
        let arguments = arguments(node, &self.values)?;
        check_before(node, &arguments, guard)?;
        // Arguments that are tensors and depend on the input.
        let mut places = Vec::new();
        if !node.no_grad && !has_zero_derivative(node) {
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
        guard.after(&node.name, node.outputs.len(), &results)?;
        let mut tensors = 0;
        for (index, result) in results.into_iter().enumerate() {
            let is_tensor = matches!(result, Value::Tensor(_));
            let id = node.outputs.get(index).copied().flatten();
            if let Some(id) = id {
                self.differentiable[id.index()] =
                    is_tensor && tape.as_ref().is_some_and(|t| t.is_differentiable(tensors));
                self.shapes[id.index()] = shape(&result);
                self.values[id.index()] = Some(result);
            }
            tensors += usize::from(is_tensor);
        }
        Ok(())
    }
}

/// Whether an operator's derivative is 0 wherever it has one: autograd computes with it, and nothing comes back.
fn has_zero_derivative(node: &Node) -> bool {
    match node.operator_name().trim_end_matches('_') {
        "ceil" | "fix" | "floor" | "floor_divide" | "heaviside" | "round" | "sgn" | "sign" | "trunc" => true,
        "div" | "divide" => matches!(node.literal("rounding_mode"), Some(Value::String(_))),
        _ => false,
    }
}

/// The outputs of a run without gradients; each value is freed after its last use.
pub fn outputs(
    nodes: &[Node],
    constants: &BTreeMap<ValueId, Tensor>,
    input: (ValueId, &Tensor),
    wanted: &[ValueId],
    value_count: usize,
    mut guard: Guard,
) -> Result<Vec<Option<Tensor>>, ModelError> {
    let mut values = initial(constants, input, value_count);
    let last_use = last_uses(nodes, wanted, value_count);
    let mut step = |index: usize, node: &Node| {
        let arguments = arguments(node, &values)?;
        check_before(node, &arguments, &guard)?;
        let results = node.operation.run(&arguments, false)?;
        guard.after(&node.name, node.outputs.len(), &results)?;
        for (id, result) in node.outputs.iter().zip(results) {
            if let Some(id) = id {
                values[id.index()] = Some(result);
            }
        }
        for value in node.uses().filter(|value| last_use[value.index()] == Some(index)) {
            values[value.index()] = None;
        }
        Ok(())
    };
    for (index, node) in nodes.iter().enumerate() {
        step(index, node).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
    }
    Ok(wanted.iter().map(|id| Some(values[id.index()].as_ref()?.tensor()?.shallow_clone())).collect())
}

/// Whether a node's results are the same for every input: it reads constants alone, or only the dtype of a value.
pub fn is_fixed(node: &Node, is_constant: impl Fn(ValueId) -> bool) -> bool {
    node.uses().all(is_constant) || is_shapeless_factory(node)
}

/// `x.new_zeros([2, 3])`: reads only the dtype of its input.
fn is_shapeless_factory(node: &Node) -> bool {
    matches!(node.operator_name(), "new_zeros" | "new_ones" | "new_full" | "new_empty")
        && matches!(node.argument("size"), Some(Argument::Literal(_)))
        && node.operator_name() != "new_empty"
}

/// The last node that reads each value; none for values that are wanted after the run.
fn last_uses(nodes: &[Node], wanted: &[ValueId], value_count: usize) -> Vec<Option<usize>> {
    let mut last_use = vec![None; value_count];
    for (index, node) in nodes.iter().enumerate() {
        node.uses().for_each(|value| last_use[value.index()] = Some(index));
    }
    wanted.iter().for_each(|value| last_use[value.index()] = None);
    last_use
}

fn shape(value: &Value) -> Option<(Vec<i64>, Option<Kind>)> {
    value.tensor().map(|tensor| (tensor.size(), tensor.f_kind().ok()))
}

/// The values before the first node: the input and the constants.
fn initial(constants: &BTreeMap<ValueId, Tensor>, input: (ValueId, &Tensor), value_count: usize) -> Vec<Option<Value>> {
    let mut values = vec![None; value_count];
    for (id, tensor) in constants {
        values[id.index()] = Some(Value::Tensor(tensor.shallow_clone()));
    }
    values[input.0.index()] = Some(Value::Tensor(input.1.shallow_clone()));
    values
}

fn arguments(node: &Node, values: &[Option<Value>]) -> Result<Vec<Value>, OperatorError> {
    let value_of = |id: ValueId| values.get(id.index()).cloned().flatten();
    let arguments: Option<Vec<Value>> = node.arguments.iter().map(|argument| argument.resolve(value_of)).collect();
    arguments.ok_or_else(|| OperatorError::Failed {
        operator: format!("{:?}", node.operation),
        message: "reads a value that is not there".into(),
    })
}

fn check_before(node: &Node, arguments: &[Value], guard: &Guard) -> Result<(), OperatorError> {
    match &node.operation {
        Operation::Aten(operator) | Operation::ClonedInPlace { operator, .. } => guard.before(operator, arguments),
        Operation::Symbolic(_) | Operation::WriteBack(_) => Ok(()),
    }
}

fn tensor_at(arguments: &[Value], (argument, element): (usize, Option<usize>)) -> Option<Tensor> {
    match (&arguments[argument], element) {
        (Value::Tensor(tensor), None) => Some(tensor.shallow_clone()),
        (Value::Tensors(list), Some(element)) => list[element].as_ref().map(Tensor::shallow_clone),
        _ => None,
    }
}
