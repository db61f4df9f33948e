//! Runs the program unchanged, to learn its outputs and which of its names share memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use tch::{Device, Kind, Tensor};

use crate::model::ModelError;
use crate::model::dimension::Dimension;
use crate::model::guard::Guard;
use crate::model::operation::Operation;
use crate::model::operation::flat;
use crate::model::program::{Program, ProgramArgument, ProgramElement, ProgramNode, ProgramOperation, Weights};
use crate::torch::{Alias, OperatorError, Storage, Value};

/// A run of the program, unchanged.
pub struct Probe {
    env: BTreeMap<String, Value>,
    geometry: BTreeMap<String, Geometry>,
    /// Address of the memory of each value in `env`.
    addresses: BTreeMap<String, usize>,
    /// Address → the number of the memory there, and the count of values in `env` that use it.
    storages: HashMap<usize, (usize, usize)>,
    numbers: usize,
    /// Addresses of constants, which may not be written into.
    originals: HashSet<usize>,
}

/// The memory that a tensor uses: storage, offset, sizes and strides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Number of the storage; 0 for an empty tensor, which aliases nothing.
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
    /// Runs the program on a copy of `given`. Values are freed after their last use, but for the program's outputs.
    pub fn run(program: &Program, given: &Tensor) -> Result<Self, ModelError> {
        if let Some(probe) = Self::attempt(program, given, &*program.weights, true)? {
            return Ok(probe);
        }
        // The program writes into its constants: it runs on copies, in which tied tensors are still tied.
        let weights = program.weights.copied()?;
        let probe = Self::attempt(program, given, &*weights, false)?;
        probe.ok_or_else(|| ModelError::malformed("the graph", "it writes into a copy of its constants".to_owned()))
    }

    /// None if the program would write into an original constant.
    fn attempt(
        program: &Program,
        given: &Tensor,
        weights: &dyn Weights,
        are_originals: bool,
    ) -> Result<Option<Self>, ModelError> {
        let given = given.f_detach_copy()?;
        let mut guard = Guard::new(program.limits.max_value_bytes);
        let mut probe = Probe {
            env: BTreeMap::new(),
            geometry: BTreeMap::new(),
            addresses: BTreeMap::new(),
            storages: HashMap::new(),
            numbers: 0,
            originals: HashSet::new(),
        };
        let last_use = program.last_uses();
        for name in &program.constants {
            let tensor = weights.tensor(name)?;
            if are_originals {
                probe.originals.insert(Storage::of(&tensor).address);
            }
            probe.set(name, Value::Tensor(tensor));
        }
        for input in &program.inputs {
            probe.set(&input.name, Value::Tensor(given.shallow_clone()));
        }
        let _guard = tch::no_grad_guard();
        for (index, node) in program.nodes.iter().enumerate() {
            if probe.would_write_an_original(node) {
                return Ok(None);
            }
            probe.step(node, &mut guard).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
            let defined = node.outputs.iter().flatten().map(String::as_str);
            for name in node.uses().chain(defined).filter(|name| last_use.get(name).is_none_or(|&last| last == index)) {
                probe.free(name);
            }
        }
        Ok(Some(probe))
    }

    fn would_write_an_original(&self, node: &ProgramNode) -> bool {
        let ProgramOperation::Aten(operator) = &node.operation else { return false };
        let arguments = operator.schema().arguments.iter().zip(&node.arguments);
        let mut written = arguments.filter(|(argument, _)| argument.alias == Alias::Written);
        written.any(|(_, argument)| argument.uses().any(|name| self.is_original(name)))
    }

    fn is_original(&self, name: &str) -> bool {
        let tensor = self.env.get(name).and_then(Value::tensor);
        tensor.is_some_and(|tensor| self.originals.contains(&Storage::of(tensor).address))
    }

    /// The values of `names` alone; the rest is freed.
    pub fn into_values<'n>(mut self, names: impl IntoIterator<Item = &'n str>) -> BTreeMap<String, Value> {
        names.into_iter().filter_map(|name| self.env.remove_entry(name)).collect()
    }

    /// The memory that each name uses.
    pub(super) fn geometry(&self) -> impl Iterator<Item = (&str, &Geometry)> {
        self.geometry.iter().map(|(name, geometry)| (name.as_str(), geometry))
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Value::Tensor(tensor) = &value {
            let storage = Storage::of(tensor);
            let geometry = Geometry {
                storage: self.number(storage.address),
                offset: storage.offset,
                size: tensor.size(),
                stride: tensor.stride(),
            };
            self.geometry.insert(name.to_owned(), geometry);
            self.addresses.insert(name.to_owned(), storage.address);
        }
        self.env.insert(name.to_owned(), value);
    }

    /// The number of the memory at an address; counts one more user of it.
    fn number(&mut self, address: usize) -> usize {
        if address == 0 {
            return 0;
        }
        let (number, names) = self.storages.entry(address).or_insert_with(|| {
            self.numbers += 1;
            (self.numbers, 0)
        });
        *names += 1;
        *number
    }

    /// Frees a value. After the last user of an address, memory there gets a new number: it is no alias of the old one.
    fn free(&mut self, name: &str) {
        self.env.remove(name);
        let Some(address) = self.addresses.remove(name) else { return };
        if let Some((_, names)) = self.storages.get_mut(&address) {
            *names -= 1;
            if *names == 0 {
                self.storages.remove(&address);
            }
        }
    }

    fn step(&mut self, node: &ProgramNode, guard: &mut Guard) -> Result<(), OperatorError> {
        let missing = |name: &str| OperatorError::Failed {
            operator: node.operator_name().to_owned(),
            message: format!("reads {name}, which is not there"),
        };
        let read = |name: &str| self.env.get(name).cloned().ok_or_else(|| missing(name));
        let arguments = node
            .arguments
            .iter()
            .map(|argument| match argument {
                ProgramArgument::Literal(value) => Ok(value.clone()),
                ProgramArgument::Use(name) => read(name),
                ProgramArgument::List(elements) => {
                    let values = elements
                        .iter()
                        .map(|element| match element {
                            ProgramElement::Use(name) => read(name),
                            ProgramElement::None => Ok(Value::None),
                            ProgramElement::Int(v) => Ok(Value::Int(*v)),
                            ProgramElement::Float(v) => Ok(Value::Float(*v)),
                            ProgramElement::Bool(v) => Ok(Value::Bool(*v)),
                        })
                        .collect::<Result<Vec<_>, _>>()?;
                    Value::from_list(values).ok_or_else(|| missing("a list of mixed kinds"))
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let results = match &node.operation {
            ProgramOperation::Aten(operator) => {
                guard.before(operator, &arguments)?;
                flat(operator.call(&arguments)?)
            }
            ProgramOperation::Symbolic(symbolic) => Operation::Symbolic(*symbolic).run(&arguments, false)?,
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

/// The example input: noise of the sizes that the model was exported with.
pub fn example(kind: Kind, shape: &[Dimension]) -> Result<Tensor, ModelError> {
    tch::manual_seed(0);
    let size: Vec<i64> = shape.iter().map(|d| d.example()).collect();
    Ok(Tensor::f_randn(&size, (Kind::Float, Device::Cpu))?.f_to_kind(kind)?)
}
