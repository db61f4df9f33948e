//! The program's run exactly as it was exported: what it gives, and which of its names share memory.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::model::ModelError;
use crate::model::graph::{Dimension, Operation};
use crate::model::guard::Guard;
use crate::model::operation::flat;
use crate::model::pt2::{Constant, RawArgument, RawElement, RawNode, RawOperation, RawProgram};
use crate::torch::{OperatorError, Storage, Value};

/// The program's run as it was exported.
pub struct Probe {
    env: BTreeMap<String, Value>,
    geometry: BTreeMap<String, Geometry>,
}

/// Which memory a tensor uses, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) storage: usize,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

impl Geometry {
    pub(super) fn aliases(&self, other: &Geometry) -> bool {
        self.storage != 0 && self.storage == other.storage
    }
}

impl Probe {
    /// Runs the program on a copy of `given`; every tensor is kept, so that no memory is used twice.
    pub fn run(program: &RawProgram, given: &Tensor) -> Result<Self, ModelError> {
        // In-place operators may write into the input and the buffers: they get copies, in which what was tied still is.
        let (weights, tensors) = (program.weights.copy()?, program.tensors.copy()?);
        let given = given.f_detach_copy()?;
        let mut guard = Guard::new(program.limits.max_value_bytes);
        let mut probe = Probe { env: BTreeMap::new(), geometry: BTreeMap::new() };
        for (name, constant) in &program.constants {
            let tensor = match constant {
                Constant::Weight(key) => weights.tensor(key)?,
                Constant::Constant(key) => tensors.tensor(key)?,
            };
            probe.set(name, Value::Tensor(tensor));
        }
        for input in &program.inputs {
            probe.set(&input.name, Value::Tensor(given.shallow_clone()));
        }
        let _guard = tch::no_grad_guard();
        for node in &program.nodes {
            probe.step(node, &mut guard).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
        }
        Ok(probe)
    }

    /// The values of `names` alone; the rest is freed.
    pub fn into_values<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> BTreeMap<String, Value> {
        names.into_iter().filter_map(|name| self.env.remove_entry(name)).collect()
    }

    /// Which memory each name uses.
    pub(super) fn geometry(&self) -> impl Iterator<Item = (&str, &Geometry)> {
        self.geometry.iter().map(|(name, geometry)| (name.as_str(), geometry))
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Value::Tensor(tensor) = &value {
            let storage = Storage::of(tensor);
            let geometry = Geometry {
                storage: storage.address,
                offset: storage.offset,
                size: tensor.size(),
                stride: tensor.stride(),
            };
            self.geometry.insert(name.to_owned(), geometry);
        }
        self.env.insert(name.to_owned(), value);
    }

    fn step(&mut self, node: &RawNode, guard: &mut Guard) -> Result<(), OperatorError> {
        let missing = |name: &str| OperatorError::Failed {
            operator: node.operator_name().to_owned(),
            message: format!("reads {name}, which is not there"),
        };
        let read = |name: &str| self.env.get(name).cloned().ok_or_else(|| missing(name));
        let arguments = node
            .arguments
            .iter()
            .map(|argument| match argument {
                RawArgument::Literal(value) => Ok(value.clone()),
                RawArgument::Use(name) => read(name),
                RawArgument::List(elements) => {
                    let values = elements
                        .iter()
                        .map(|element| match element {
                            RawElement::Use(name) => read(name),
                            RawElement::None => Ok(Value::None),
                            RawElement::Int(v) => Ok(Value::Int(*v)),
                            RawElement::Float(v) => Ok(Value::Float(*v)),
                            RawElement::Bool(v) => Ok(Value::Bool(*v)),
                        })
                        .collect::<Result<Vec<_>, _>>()?;
                    Value::from_list(values).ok_or_else(|| missing("a list of mixed kinds"))
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let results = match &node.operation {
            RawOperation::Aten(operator) => {
                guard.before(operator, &arguments)?;
                flat(operator.call(&arguments)?)
            }
            RawOperation::Symbolic(symbolic) => Operation::Symbolic(*symbolic).run(&arguments, false)?,
        };
        guard.after(&node.name, node.outputs.len(), &results)?;
        for (name, result) in node.outputs.iter().zip(results) {
            if let Some(name) = name {
                self.set(name, result);
            }
        }
        Ok(())
    }
}

/// An input to probe with: noise of the sizes that the model was exported with.
pub fn example(kind: Kind, shape: &[Dimension]) -> Result<Tensor, ModelError> {
    tch::manual_seed(0);
    let size: Vec<i64> = shape.iter().map(|d| d.example()).collect();
    Ok(Tensor::f_randn(&size, (Kind::Float, Device::Cpu))?.f_to_kind(kind)?)
}
