//! Makes the nodes of a program, and runs each with example inputs as it is made.
//!
//! So ranks, sizes and dtypes are known where an operator's meaning depends on them, and what does not depend on the
//! input is computed at once. Two example inputs of different sizes show which sizes depend on the input's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::value::{Known, Number, Numbers, Scalar, Val};
use crate::model::guard::Guard;
use crate::model::operation::{Operation, Symbolic, flat};
use crate::model::program::{ModuleCall, ProgramArgument, ProgramElement, ProgramNode, ProgramOperation, WeightSource};
use crate::model::{LoadLimits, ModelError, dtype};
use crate::torch::{Operator, Value};

/// Largest result that is copied to be contiguous when it is computed once, in bytes.
const MAX_COPIED_BYTES: usize = 64 << 20;

/// An argument of an operator.
pub enum Arg {
    Tensor(Rc<Known>),
    Tensors(Vec<Rc<Known>>),
    /// An integer or a float, or a list of integers.
    Number(Number),
    Numbers(Vec<Number>),
    Literal(Value),
}

impl From<&Rc<Known>> for Arg {
    fn from(known: &Rc<Known>) -> Self {
        Arg::Tensor(Rc::clone(known))
    }
}

impl From<Option<&Rc<Known>>> for Arg {
    fn from(known: Option<&Rc<Known>>) -> Self {
        known.map_or(Arg::Literal(Value::None), Arg::from)
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Arg::Literal(Value::Int(number))
    }
}

impl From<f64> for Arg {
    fn from(number: f64) -> Self {
        Arg::Literal(Value::Float(number))
    }
}

impl From<bool> for Arg {
    fn from(flag: bool) -> Self {
        Arg::Literal(Value::Bool(flag))
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Arg::Literal(Value::String(text.to_owned()))
    }
}

impl From<&[i64]> for Arg {
    fn from(numbers: &[i64]) -> Self {
        Arg::Literal(Value::Ints(numbers.to_vec()))
    }
}

impl From<Vec<i64>> for Arg {
    fn from(numbers: Vec<i64>) -> Self {
        Arg::Literal(Value::Ints(numbers))
    }
}

impl From<Vec<Number>> for Arg {
    fn from(numbers: Vec<Number>) -> Self {
        Arg::Numbers(numbers)
    }
}

impl From<Number> for Arg {
    fn from(number: Number) -> Self {
        Arg::Number(number)
    }
}

impl From<Kind> for Arg {
    fn from(kind: Kind) -> Self {
        Arg::Literal(Value::Int(dtype::scalar_type(kind)))
    }
}

/// An argument that is not given.
pub const NONE: Arg = Arg::Literal(Value::None);

/// The node of the file that is being lowered.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub name: String,
    pub operator: String,
    pub calls: Vec<ModuleCall>,
}

/// A node of the program, and the number of the file's node that it was made for.
pub struct Made {
    pub node: ProgramNode,
    pub origin: usize,
}

pub struct Builder {
    pub made: Vec<Made>,
    /// Name of a constant → its tensor, and where it can be read again.
    pub constants: BTreeMap<String, (Tensor, Option<Arc<dyn WeightSource>>)>,
    /// Name in the program → the node that defines it.
    pub defined_by: HashMap<String, usize>,
    /// Names in the program → names in the file.
    pub labels: BTreeMap<String, String>,
    /// By number.
    pub origins: Vec<Origin>,
    pub notices: BTreeSet<String>,
    /// Of each value that is computed, its dtype, and its size with each example input.
    shapes: HashMap<String, (Kind, Vec<Vec<i64>>)>,
    operators: HashMap<String, Operator>,
    guards: Vec<Guard>,
    max_nodes: u64,
    next: usize,
}

impl Builder {
    /// A program without nodes; `runs` is the number of example inputs.
    pub fn new(runs: usize, limits: &LoadLimits) -> Self {
        Builder {
            made: Vec::new(),
            constants: BTreeMap::new(),
            defined_by: HashMap::new(),
            labels: BTreeMap::new(),
            origins: Vec::new(),
            notices: BTreeSet::new(),
            shapes: HashMap::new(),
            operators: HashMap::new(),
            guards: vec![Guard::new(limits.max_value_bytes); runs],
            max_nodes: limits.max_nodes,
            next: 0,
        }
    }

    pub fn runs(&self) -> usize {
        self.guards.len()
    }

    pub fn origin(&self) -> Origin {
        self.origins.last().cloned().unwrap_or_default()
    }

    /// Refuses the node that is being lowered.
    pub fn refused(&self, problem: impl std::fmt::Display) -> ModelError {
        let Origin { name, operator, .. } = self.origin();
        ModelError::refused(format!("node {name} ({operator}): {problem}"), ADVICE)
    }

    fn failed(&self, source: crate::torch::OperatorError) -> ModelError {
        let Origin { name, operator, .. } = self.origin();
        ModelError::Node { node: format!("{name} ({operator})"), source }
    }

    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%{}", self.next)
    }

    /// A constant of the file.
    pub fn constant(&mut self, tensor: Tensor, source: Option<Arc<dyn WeightSource>>) -> Rc<Known> {
        let name = self.fresh();
        self.constants.insert(name.clone(), (tensor.shallow_clone(), source));
        Rc::new(Known { name, runs: vec![tensor], is_constant: true })
    }

    /// The program's input.
    pub fn input(&mut self, name: &str, runs: Vec<Tensor>) -> Rc<Known> {
        self.known(name.to_owned(), runs)
    }

    fn known(&mut self, name: String, runs: Vec<Tensor>) -> Rc<Known> {
        let known = Known { name, runs, is_constant: false };
        let sizes = known.runs.iter().map(Tensor::size).collect();
        self.shapes.insert(known.name.clone(), (known.kind(), sizes));
        Rc::new(known)
    }

    /// The dtype of a value, and its size with each example input; a constant has one.
    pub fn shape(&self, name: &str) -> Option<(Kind, Vec<Vec<i64>>)> {
        match self.constants.get(name) {
            Some((tensor, _)) => Some((tensor.f_kind().ok()?, vec![tensor.size()])),
            None => self.shapes.get(name).cloned(),
        }
    }

    fn operator(&mut self, name: &str) -> Result<Operator, ModelError> {
        if let Some(operator) = self.operators.get(name) {
            return Ok(operator.clone());
        }
        let (base, overload) = name.split_once('.').unwrap_or((name, ""));
        let operator = Operator::find(&format!("aten::{base}"), overload)?;
        self.operators.insert(name.to_owned(), operator.clone());
        Ok(operator)
    }

    /// Calls an operator (`add.Tensor`) that gives one tensor. Arguments that are left out have the schema's defaults.
    ///
    /// # Errors
    /// The operator fails with an example input, or its results are too large.
    pub fn call(&mut self, operator: &str, arguments: Vec<Arg>) -> Result<Rc<Known>, ModelError> {
        let mut results = self.call_many(operator, arguments)?;
        if results.is_empty() {
            return Err(self.refused("its operator gives nothing"));
        }
        Ok(results.swap_remove(0))
    }

    /// As [`Builder::call`], for an operator that gives several tensors or a list.
    pub fn call_many(&mut self, operator: &str, arguments: Vec<Arg>) -> Result<Vec<Rc<Known>>, ModelError> {
        let operator = self.operator(operator)?;
        let arguments = with_defaults(&operator, arguments);
        let is_fixed = arguments.iter().all(is_fixed);
        let runs = if is_fixed { 1 } else { self.runs() };
        let mut results: Vec<Vec<Tensor>> = Vec::new();
        for run in 0..runs {
            let values: Vec<Value> = arguments.iter().map(|argument| value_in(argument, run)).collect();
            let name = self.origin().name;
            let guard = &mut self.guards[run];
            let called = guard
                .before(&operator, &values)
                .and_then(|()| operator.call(&values))
                .map(flat)
                .and_then(|values| guard.after(&name, 0, &values).map(|()| values));
            for (index, value) in called.map_err(|error| self.failed(error))?.into_iter().enumerate() {
                let Value::Tensor(tensor) = value else { return Err(self.refused("its operator gives no tensor")) };
                match results.get_mut(index) {
                    Some(list) => list.push(tensor),
                    None => results.push(vec![tensor]),
                }
            }
        }
        if is_fixed {
            let mut constants = Vec::new();
            for mut list in results {
                let tensor = list.swap_remove(0);
                let bytes = tensor.numel() * tensor.f_kind()?.elt_size_in_bytes();
                let tensor = if bytes <= MAX_COPIED_BYTES { tensor.f_contiguous()? } else { tensor };
                constants.push(self.constant(tensor, None));
            }
            return Ok(constants);
        }
        self.define(operator, &arguments, results)
    }

    /// Adds a node whose result is known already: an operator that computes what several others did.
    ///
    /// # Errors
    /// The graph grows too large.
    pub fn replace(
        &mut self,
        operator: &str,
        arguments: Vec<ProgramArgument>,
        like: &Known,
    ) -> Result<Rc<Known>, ModelError> {
        let name = self.add(operator, arguments)?;
        let runs = like.runs.iter().map(Tensor::shallow_clone).collect();
        Ok(self.known(name, runs))
    }

    /// Adds a node that no example input is run through. Arguments that are left out have the schema's defaults.
    ///
    /// # Errors
    /// The graph grows too large.
    pub fn add(&mut self, operator: &str, mut arguments: Vec<ProgramArgument>) -> Result<String, ModelError> {
        let operator = self.operator(operator)?;
        let defaults = operator.schema().arguments.iter().skip(arguments.len());
        let defaults = defaults.map(|argument| argument.default.clone().unwrap_or(Value::None));
        arguments.extend(defaults.map(ProgramArgument::Literal));
        let name = self.fresh();
        self.push(ProgramOperation::Aten(operator), arguments, vec![name.clone()])?;
        Ok(name)
    }

    fn define(
        &mut self,
        operator: Operator,
        arguments: &[Arg],
        results: Vec<Vec<Tensor>>,
    ) -> Result<Vec<Rc<Known>>, ModelError> {
        let names: Vec<String> = results.iter().map(|_| self.fresh()).collect();
        let arguments = arguments.iter().map(program_argument).collect();
        self.push(ProgramOperation::Aten(operator), arguments, names.clone())?;
        Ok(names.into_iter().zip(results).map(|(name, runs)| self.known(name, runs)).collect())
    }

    fn push(
        &mut self,
        operation: ProgramOperation,
        arguments: Vec<ProgramArgument>,
        outputs: Vec<String>,
    ) -> Result<(), ModelError> {
        let got = self.made.len() as u64 + 1;
        if got > self.max_nodes {
            let what = "the graph, once it is lowered".to_owned();
            return Err(ModelError::Limit { what, got, limit: self.max_nodes, option: "max_nodes" });
        }
        let origin = self.origins.len().saturating_sub(1);
        let name = outputs.first().cloned().unwrap_or_default();
        self.defined_by.extend(outputs.iter().map(|output| (output.clone(), self.made.len())));
        let calls = self.origin().calls;
        let outputs = outputs.into_iter().map(Some).collect();
        self.made
            .push(Made { node: ProgramNode { name, operation, arguments, outputs, calls, no_grad: false }, origin });
        Ok(())
    }

    /// The size of an axis.
    pub fn size(&mut self, known: &Rc<Known>, axis: usize) -> Result<Number, ModelError> {
        if let Some(size) = known.fixed_size(axis) {
            return Ok(Number::int(size));
        }
        let operator = self.operator("sym_size.int")?;
        let runs = known.runs.iter().map(|run| Scalar::Int(run.size()[axis])).collect();
        let name = self.fresh();
        let arguments =
            vec![ProgramArgument::Use(known.name.clone()), ProgramArgument::Literal(Value::Int(axis as i64))];
        self.push(ProgramOperation::Aten(operator), arguments, vec![name.clone()])?;
        Ok(Number { runs, name: Some(name) })
    }

    /// The sizes of all axes.
    pub fn sizes(&mut self, known: &Rc<Known>) -> Result<Vec<Number>, ModelError> {
        (0..known.rank()).map(|axis| self.size(known, axis)).collect()
    }

    /// Arithmetic on numbers.
    ///
    /// # Errors
    /// It divides by zero or overflows.
    pub fn compute(&mut self, symbolic: Symbolic, numbers: &[Number]) -> Result<Number, ModelError> {
        let [first, rest @ ..] = numbers else { return Err(self.refused("arithmetic on no numbers")) };
        if let (Symbolic::Mul | Symbolic::FloorDiv, Some(Some(Scalar::Int(1)))) =
            (symbolic, rest.first().map(Number::fixed))
            && matches!(first.runs[0], Scalar::Int(_))
        {
            return Ok(first.clone());
        }
        let is_fixed = numbers.iter().all(|number| number.name.is_none());
        let mut runs = Vec::new();
        for run in 0..if is_fixed { 1 } else { self.runs() } {
            let values: Vec<Value> = numbers.iter().map(|number| number.run(run).value()).collect();
            let result = Operation::Symbolic(symbolic).run(&values, false).map_err(|error| self.failed(error))?;
            runs.push(match result.as_slice() {
                [Value::Int(number)] => Scalar::Int(*number),
                [Value::Float(number)] => Scalar::Float(*number),
                [Value::Bool(flag)] => Scalar::Int(i64::from(*flag)),
                _ => return Err(self.refused("arithmetic on sizes gives no number")),
            });
        }
        if is_fixed {
            return Ok(Number { runs, name: None });
        }
        let arguments = numbers
            .iter()
            .map(|number| match &number.name {
                Some(name) => ProgramArgument::Use(name.clone()),
                None => ProgramArgument::Literal(number.runs[0].value()),
            })
            .collect();
        let name = self.fresh();
        self.push(ProgramOperation::Symbolic(symbolic), arguments, vec![name.clone()])?;
        Ok(Number { runs, name: Some(name) })
    }

    /// Numbers as a tensor of the program.
    pub fn tensor_of(&mut self, numbers: &Numbers) -> Result<Rc<Known>, ModelError> {
        let kind = numbers.kind;
        let mut items = Vec::new();
        for item in &numbers.items {
            items.push(self.call("scalar_tensor", vec![item.clone().into(), kind.into()])?);
        }
        match (numbers.is_list, items.len()) {
            (false, 1) => Ok(items.swap_remove(0)),
            (true, 0) => Ok(self.constant(Tensor::f_zeros([0i64], (kind, tch::Device::Cpu))?, None)),
            _ => self.call("stack", vec![Arg::Tensors(items), 0.into()]),
        }
    }

    /// A value as a tensor of the program.
    pub fn tensor(&mut self, value: &Val) -> Result<Rc<Known>, ModelError> {
        match value {
            Val::Tensor(known) => Ok(Rc::clone(known)),
            Val::Numbers(numbers) => self.tensor_of(numbers),
            Val::Quantized(_) => Err(self.refused("it computes with quantised numbers, which have no gradient")),
            Val::Absent => Err(self.refused("an input is missing")),
        }
    }

    /// The operator that computes a value, with its arguments; none for inputs and constants.
    pub fn maker(&self, name: &str) -> Option<(&str, &[ProgramArgument])> {
        let node = &self.made.get(*self.defined_by.get(name)?)?.node;
        Some((node.operator_name(), &node.arguments))
    }
}

/// What helps against an operator or an attribute that is not read.
pub const ADVICE: &str = "export the model with other operators, or as a .pt2 with deploy/export";

fn with_defaults(operator: &Operator, mut arguments: Vec<Arg>) -> Vec<Arg> {
    let schema = operator.schema();
    for argument in schema.arguments.iter().skip(arguments.len()) {
        arguments.push(Arg::Literal(argument.default.clone().unwrap_or(Value::None)));
    }
    arguments
}

fn is_fixed(argument: &Arg) -> bool {
    match argument {
        Arg::Tensor(known) => known.is_constant,
        Arg::Tensors(list) => list.iter().all(|known| known.is_constant),
        Arg::Number(number) => number.name.is_none(),
        Arg::Numbers(list) => list.iter().all(|number| number.name.is_none()),
        Arg::Literal(_) => true,
    }
}

fn value_in(argument: &Arg, run: usize) -> Value {
    match argument {
        Arg::Tensor(known) => Value::Tensor(known.run(run).shallow_clone()),
        Arg::Tensors(list) => Value::Tensors(list.iter().map(|known| Some(known.run(run).shallow_clone())).collect()),
        Arg::Number(number) => number.run(run).value(),
        Arg::Numbers(list) => {
            let values = list.iter().map(|number| number.run(run).value()).collect();
            Value::from_list(values).unwrap_or(Value::None)
        }
        Arg::Literal(value) => value.clone(),
    }
}

fn program_argument(argument: &Arg) -> ProgramArgument {
    match argument {
        Arg::Tensor(known) => ProgramArgument::Use(known.name.clone()),
        Arg::Tensors(list) => {
            ProgramArgument::List(list.iter().map(|known| ProgramElement::Use(known.name.clone())).collect())
        }
        Arg::Number(Number { name: Some(name), .. }) => ProgramArgument::Use(name.clone()),
        Arg::Numbers(list) if list.iter().any(|number| number.name.is_some()) => ProgramArgument::List(
            list.iter()
                .map(|number| match (&number.name, number.runs[0]) {
                    (Some(name), _) => ProgramElement::Use(name.clone()),
                    (None, Scalar::Int(number)) => ProgramElement::Int(number),
                    (None, Scalar::Float(number)) => ProgramElement::Float(number),
                })
                .collect(),
        ),
        fixed => ProgramArgument::Literal(value_in(fixed, 0)),
    }
}
