//! In-place writes become new values.
//!
//! The program is run once exactly as it was exported, and the memory that its tensors use tells which names alias,
//! including what no schema says (dropout in evaluation mode returns its input; `reshape` may copy). Then each in-place
//! operator becomes its functional twin and its names are bound to the new value; a write through a view is written back
//! into the base, and other live views of it are derived again.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::torch::{Operator, OperatorError, Storage, Value};

use super::ModelError;
use super::graph::{Argument, Dimension, Element, Node, Operation, ValueId};
use super::operation::{Size, View, ViewArgument, WriteBack, flat};
use super::pt2::{Call, RawArgument, RawElement, RawNode, RawOperation, RawProgram, is_dropout};

/// A node with the module calls that it is part of.
pub struct Draft {
    pub node: Node,
    pub calls: Vec<Call>,
    /// Made here, not in the file.
    synthetic: bool,
}

/// A node that vanished because its result is its input.
pub struct Ghost {
    /// Before which node it stood.
    pub position: usize,
    pub name: String,
    pub calls: Vec<Call>,
    pub value: ValueId,
}

/// A program in which each value is computed once.
pub struct Functional {
    pub drafts: Vec<Draft>,
    pub ghosts: Vec<Ghost>,
    /// By [`ValueId`].
    pub names: Vec<String>,
    pub constants: BTreeMap<ValueId, Tensor>,
    pub input: ValueId,
    pub outputs: Vec<(String, Option<ValueId>)>,
    pub probe: Probe,
}

/// The program's run as it was exported.
pub struct Probe {
    /// The input, as it was before the run.
    pub given: Tensor,
    env: BTreeMap<String, Value>,
    geometry: BTreeMap<String, Geometry>,
}

/// Which memory a tensor uses, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Geometry {
    storage: usize,
    offset: i64,
    size: Vec<i64>,
    stride: Vec<i64>,
}

impl Geometry {
    fn aliases(&self, other: &Geometry) -> bool {
        self.storage != 0 && self.storage == other.storage
    }
}

impl Probe {
    /// Runs the program on `given`; every tensor is kept, so that no memory is used twice.
    pub fn run(program: &RawProgram, given: Tensor) -> Result<Self, ModelError> {
        let writes = program.nodes.iter().any(|node| node.written().is_some());
        // In-place operators may write into buffers: they get copies, in which what was tied still is.
        let (weights, tensors) =
            if writes { (Some(program.weights.copy()?), Some(program.tensors.copy()?)) } else { (None, None) };
        let weights = weights.as_ref().unwrap_or(&program.weights);
        let tensors = tensors.as_ref().unwrap_or(&program.tensors);
        let mut probe = Probe { given: given.f_detach_copy()?, env: BTreeMap::new(), geometry: BTreeMap::new() };
        for (name, constant) in &program.constants {
            let tensor = match constant {
                super::pt2::Constant::Weight(key) => weights.tensor(key)?,
                super::pt2::Constant::Constant(key) => tensors.tensor(key)?,
            };
            probe.set(name, Value::Tensor(tensor));
        }
        for input in &program.inputs {
            probe.set(&input.name, Value::Tensor(given.shallow_clone()));
        }
        let _guard = tch::no_grad_guard();
        for node in &program.nodes {
            probe.step(node).map_err(|source| ModelError::Node { node: node.name.clone(), source })?;
        }
        Ok(probe)
    }

    pub fn value(&self, name: &str) -> Option<&Value> {
        self.env.get(name)
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

    fn step(&mut self, node: &RawNode) -> Result<(), OperatorError> {
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
            RawOperation::Aten(operator) => flat(operator.call(&arguments)?),
            RawOperation::Symbolic(symbolic) => Operation::Symbolic(*symbolic).run(&arguments, false)?,
        };
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

/// One view operator as it may be applied again to another base.
#[derive(Debug, Clone)]
struct Step {
    /// Name and overload.
    operator: (String, String),
    arguments: Vec<RawArgument>,
    /// The argument that is the base; none when the base is not one of its own.
    slot: Option<usize>,
    result: usize,
}

impl Step {
    fn new(operator: &Operator, arguments: Vec<RawArgument>, parent: &str, result: usize) -> Self {
        let slot = arguments.iter().position(|a| matches!(a, RawArgument::Use(name) if name == parent));
        Step { operator: (operator.name().to_owned(), operator.overload().to_owned()), arguments, slot, result }
    }
}

/// In-place operators that change a tensor's own shape and write no data.
const METADATA: [&str; 7] = ["detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"];
/// Functional twins that have no derivative.
const NO_DERIVATIVE: [&str; 3] = ["copy", "resize", "normal_functional"];

/// `aten::relu_` → `aten::relu`; none where ATen has none with the same arguments and a derivative.
fn functional_twin(operator: &Operator) -> Option<Operator> {
    let name = operator.name().strip_prefix("aten::")?;
    let plain = name.strip_suffix('_').filter(|n| !n.ends_with('_'))?;
    if name.starts_with("__") || NO_DERIVATIVE.contains(&plain) {
        return None;
    }
    let twin = Operator::find(&format!("aten::{plain}"), operator.overload()).ok()?;
    let names = |o: &Operator| o.schema().arguments.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
    (names(operator) == names(&twin)).then_some(twin)
}

struct Functionaliser {
    geometry: BTreeMap<String, Geometry>,
    /// Name → the value that it means now.
    current: BTreeMap<String, ValueId>,
    /// Name → the name that it is a view of, and how; no step when it is the same tensor.
    parent: BTreeMap<String, (String, Option<Step>)>,
    /// Name → the last node that reads it.
    last_use: BTreeMap<String, usize>,
    names: Vec<String>,
    drafts: Vec<Draft>,
    ghosts: Vec<Ghost>,
}

/// Turns a program into its functional form.
pub fn functionalise(program: &RawProgram, probe: Probe) -> Result<Functional, ModelError> {
    let mut last_use = BTreeMap::new();
    for (index, node) in program.nodes.iter().enumerate() {
        for name in node.uses() {
            last_use.insert(name.to_owned(), index);
        }
    }
    for name in program.outputs.iter().filter_map(|(_, name)| name.as_ref()) {
        last_use.insert(name.clone(), program.nodes.len());
    }
    let mut f = Functionaliser {
        geometry: probe.geometry.clone(),
        current: BTreeMap::new(),
        parent: BTreeMap::new(),
        last_use,
        names: Vec::new(),
        drafts: Vec::new(),
        ghosts: Vec::new(),
    };
    let mut constants = BTreeMap::new();
    for (name, constant) in &program.constants {
        let id = f.fresh(name);
        f.current.insert(name.clone(), id);
        constants.insert(id, program.constant(constant)?);
    }
    let input_name = &program.inputs[0].name;
    let input = f.fresh(input_name);
    f.current.insert(input_name.clone(), input);
    for (index, node) in program.nodes.iter().enumerate() {
        f.node(index, node)?;
    }
    let outputs = program
        .outputs
        .iter()
        .map(|(key, name)| Ok((key.clone(), name.as_ref().map(|n| f.value(n)).transpose()?)))
        .collect::<Result<Vec<_>, ModelError>>()?;
    let drafts = sweep(f.drafts, &outputs, &mut f.ghosts);
    Ok(Functional { drafts, ghosts: f.ghosts, names: f.names, constants, input, outputs, probe })
}

/// Drops nodes made here that nothing reads (write-backs into bases that are only read through other views).
fn sweep(drafts: Vec<Draft>, outputs: &[(String, Option<ValueId>)], ghosts: &mut [Ghost]) -> Vec<Draft> {
    let mut wanted: std::collections::BTreeSet<ValueId> = outputs.iter().filter_map(|(_, v)| *v).collect();
    let keep: Vec<bool> = drafts
        .iter()
        .rev()
        .map(|draft| {
            let keep = !draft.synthetic || draft.node.defines().any(|v| wanted.contains(&v));
            if keep {
                wanted.extend(draft.node.uses());
            }
            keep
        })
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    for ghost in ghosts {
        ghost.position = keep[..ghost.position].iter().filter(|&&k| k).count();
    }
    drafts.into_iter().zip(keep).filter_map(|(draft, keep)| keep.then_some(draft)).collect()
}

impl Functionaliser {
    fn fresh(&mut self, name: &str) -> ValueId {
        self.names.push(name.to_owned());
        ValueId((self.names.len() - 1) as u32)
    }

    fn value(&self, name: &str) -> Result<ValueId, ModelError> {
        self.current
            .get(name)
            .copied()
            .ok_or_else(|| ModelError::malformed("graph", format!("{name} is read before it is computed")))
    }

    fn bind(&self, arguments: &[RawArgument]) -> Result<Vec<Argument>, ModelError> {
        arguments
            .iter()
            .map(|argument| {
                Ok(match argument {
                    RawArgument::Literal(value) => Argument::Literal(value.clone()),
                    RawArgument::Use(name) => Argument::Use(self.value(name)?),
                    RawArgument::List(elements) => Argument::List(
                        elements
                            .iter()
                            .map(|element| {
                                Ok(match element {
                                    RawElement::Use(name) => Element::Use(self.value(name)?),
                                    RawElement::None => Element::None,
                                    RawElement::Int(v) => Element::Int(*v),
                                    RawElement::Float(v) => Element::Float(*v),
                                    RawElement::Bool(v) => Element::Bool(*v),
                                })
                            })
                            .collect::<Result<_, ModelError>>()?,
                    ),
                })
            })
            .collect()
    }

    fn push(
        &mut self,
        name: &str,
        operation: Operation,
        arguments: Vec<Argument>,
        outputs: Vec<Option<ValueId>>,
        from: &RawNode,
    ) {
        let node = Node {
            name: name.to_owned(),
            operation,
            arguments,
            outputs,
            no_grad: from.no_grad,
            rectifier: None,
            smooth_activation: false,
        };
        self.drafts.push(Draft { node, calls: from.calls.clone(), synthetic: false });
    }

    /// The base that a name is a view of, and the views in between, outermost first.
    fn chain(&self, name: &str) -> (String, Vec<Step>) {
        let mut steps = Vec::new();
        let mut at = name.to_owned();
        while let Some((parent, step)) = self.parent.get(&at) {
            steps.extend(step.clone());
            at.clone_from(parent);
        }
        steps.reverse();
        (at, steps)
    }

    fn node(&mut self, index: usize, node: &RawNode) -> Result<(), ModelError> {
        if is_dropout(node.operator_name()) {
            return self.identity(node);
        }
        match node.written() {
            None => self.pure(node),
            Some(written) => self.in_place(index, node, written),
        }
    }

    /// A dropout in evaluation mode: the output is the input, and stays so.
    fn identity(&mut self, node: &RawNode) -> Result<(), ModelError> {
        let source = node.uses().next().map(str::to_owned);
        let output = node.outputs.first().cloned().flatten();
        let (Some(source), Some(output)) = (source, output) else {
            return Err(ModelError::malformed("graph", format!("node {} has no input", node.name)));
        };
        let value = self.value(&source)?;
        self.current.insert(output.clone(), value);
        if let Some(geometry) = self.geometry.get(&source).cloned() {
            self.geometry.insert(output.clone(), geometry);
        }
        self.parent.insert(output, (source, None));
        self.ghosts.push(Ghost {
            position: self.drafts.len(),
            name: node.name.clone(),
            calls: node.calls.clone(),
            value,
        });
        Ok(())
    }

    fn pure(&mut self, node: &RawNode) -> Result<(), ModelError> {
        let arguments = self.bind(&node.arguments)?;
        let operation = match &node.operation {
            RawOperation::Aten(operator) => Operation::Aten(operator.clone()),
            RawOperation::Symbolic(symbolic) => Operation::Symbolic(*symbolic),
        };
        let outputs: Vec<Option<ValueId>> =
            node.outputs.iter().map(|name| name.as_ref().map(|n| self.fresh(n))).collect();
        self.push(&node.name, operation, arguments, outputs.clone(), node);
        for (result, (name, value)) in node.outputs.iter().zip(&outputs).enumerate() {
            let (Some(name), Some(value)) = (name, value) else { continue };
            self.current.insert(name.clone(), *value);
            // Does the result alias an argument?
            let Some(mine) = self.geometry.get(name).cloned() else { continue };
            let source = node.uses().find(|r| self.geometry.get(*r).is_some_and(|g| g.aliases(&mine)));
            if let (Some(source), RawOperation::Aten(operator)) = (source, &node.operation) {
                let same = self.geometry.get(source) == Some(&mine);
                let step = (!same).then(|| Step::new(operator, node.arguments.clone(), source, result));
                self.parent.insert(name.clone(), (source.to_owned(), step));
            }
        }
        Ok(())
    }

    fn in_place(&mut self, index: usize, node: &RawNode, written: usize) -> Result<(), ModelError> {
        let RawOperation::Aten(operator) = &node.operation else { return Ok(()) };
        let (Some(RawArgument::Use(target)), Some(Some(output))) = (node.arguments.get(written), node.outputs.first())
        else {
            return Err(ModelError::malformed("graph", format!("node {} writes no tensor", node.name)));
        };
        if METADATA.contains(&node.operator_name()) {
            return self.metadata(index, node, operator, written, target, output);
        }
        let arguments = self.bind(&node.arguments)?;
        let operation = match functional_twin(operator) {
            Some(twin) => Operation::Aten(twin),
            None => Operation::ClonedInPlace { operator: operator.clone(), written },
        };
        let value = self.fresh(output);
        self.push(&node.name, operation, arguments, vec![Some(value)], node);

        let (root, steps) = self.chain(target);
        let mine = self.geometry.get(target).cloned();
        let live: Vec<String> = self
            .geometry
            .iter()
            .filter(|(name, geometry)| {
                *name != target
                    && *name != output
                    && self.current.contains_key(*name)
                    && mine.as_ref().is_some_and(|m| m.aliases(geometry))
                    && self.last_use.get(*name).is_some_and(|&last| last > index)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let (same, others): (Vec<_>, Vec<_>) = live.into_iter().partition(|n| self.geometry.get(n) == mine.as_ref());
        for name in same {
            self.current.insert(name, value);
        }
        if steps.is_empty() {
            self.current.insert(root.clone(), value);
        } else if !others.is_empty() {
            // Written through a view: the base changes, …
            let base = self.write_back(&root, &steps, value, node)?;
            self.current.insert(root.clone(), base);
        }
        for name in others.iter().filter(|name| **name != root) {
            // … then every other live view of it.
            let (other_root, steps) = self.chain(name);
            if other_root != root {
                return Err(ModelError::refused(
                    format!("node {} writes memory that {name} shares in a way that cannot be followed", node.name),
                    "clone the tensor before writing into it",
                ));
            }
            let derived = self.rederive(&root, &steps, node)?;
            self.current.insert(name.clone(), derived);
        }
        self.current.insert(target.clone(), value);
        self.current.insert(output.clone(), value);
        self.parent.insert(output.clone(), (target.clone(), None));
        if let Some(mine) = mine {
            self.geometry.insert(output.clone(), mine);
        }
        Ok(())
    }

    /// `x.transpose_(…)` and the like.
    fn metadata(
        &mut self,
        index: usize,
        node: &RawNode,
        operator: &Operator,
        written: usize,
        target: &str,
        output: &str,
    ) -> Result<(), ModelError> {
        let plain = operator.name().trim_end_matches('_');
        let overload = if plain == "aten::transpose" { "int" } else { operator.overload() };
        let twin = Operator::find(plain, overload)?;
        let arguments = self.bind(&node.arguments)?;
        let value = self.fresh(output);
        // The name as it was, so that chains still start at the root.
        let old = format!("{target}#{index}");
        if let Some(link) = self.parent.remove(target) {
            self.parent.insert(old.clone(), link);
        }
        for link in self.parent.values_mut() {
            if link.0 == target {
                link.0.clone_from(&old);
            }
        }
        if let (Some(value), Some(geometry)) = (self.current.get(target).copied(), self.geometry.get(target).cloned()) {
            self.current.insert(old.clone(), value);
            self.geometry.insert(old.clone(), geometry);
        }
        let mut step_arguments = node.arguments.clone();
        step_arguments[written] = RawArgument::Use(old.clone());
        let step = Step::new(&twin, step_arguments, &old, 0);
        self.push(&node.name, Operation::Aten(twin), arguments, vec![Some(value)], node);
        self.current.insert(target.to_owned(), value);
        self.current.insert(output.to_owned(), value);
        if let Some(geometry) = self.geometry.get(output).cloned() {
            self.geometry.insert(target.to_owned(), geometry);
        }
        self.parent.insert(target.to_owned(), (old, Some(step)));
        self.parent.insert(output.to_owned(), (target.to_owned(), None));
        Ok(())
    }

    /// The steps' views of what `root` means now.
    fn rederive(&mut self, root: &str, steps: &[Step], from: &RawNode) -> Result<ValueId, ModelError> {
        let mut value = self.value(root)?;
        for step in steps {
            let slot = step.slot.ok_or_else(|| cannot_follow(from))?;
            let mut arguments = self.bind(&step.arguments)?;
            arguments[slot] = Argument::Use(value);
            let view = self.fresh("view");
            let mut outputs = vec![None; step.result];
            outputs.push(Some(view));
            let operator = Operator::find(&step.operator.0, &step.operator.1)?;
            self.push(&format!("{}/view", from.name), Operation::Aten(operator), arguments, outputs, from);
            self.mark_synthetic();
            value = view;
        }
        Ok(value)
    }

    fn write_back(&mut self, root: &str, steps: &[Step], new: ValueId, from: &RawNode) -> Result<ValueId, ModelError> {
        let mut arguments = vec![Argument::Use(self.value(root)?), Argument::Use(new)];
        let mut views = Vec::new();
        for step in steps {
            let slot = step.slot.ok_or_else(|| cannot_follow(from))?;
            let mut place = |f: &Self, name: &str| -> Result<usize, ModelError> {
                arguments.push(Argument::Use(f.value(name)?));
                Ok(arguments.len() - 1)
            };
            let mut view_arguments = Vec::new();
            for (i, argument) in step.arguments.iter().enumerate() {
                view_arguments.push(match argument {
                    _ if i == slot => ViewArgument::Base,
                    RawArgument::Literal(value) => ViewArgument::Literal(value.clone()),
                    RawArgument::Use(name) => ViewArgument::Argument(place(self, name)?),
                    RawArgument::List(elements) => ViewArgument::Sizes(
                        elements
                            .iter()
                            .map(|element| match element {
                                RawElement::Int(v) => Ok(Size::Int(*v)),
                                RawElement::Use(name) => Ok(Size::Argument(place(self, name)?)),
                                _ => Err(cannot_follow(from)),
                            })
                            .collect::<Result<_, _>>()?,
                    ),
                });
            }
            let operator = Operator::find(&step.operator.0, &step.operator.1)?;
            views.push(View { operator, arguments: view_arguments, result: step.result });
        }
        let written = self.fresh(root);
        let operation = Operation::WriteBack(WriteBack { views });
        self.push(&format!("{}/write_back", from.name), operation, arguments, vec![Some(written)], from);
        self.mark_synthetic();
        Ok(written)
    }

    fn mark_synthetic(&mut self) {
        if let Some(draft) = self.drafts.last_mut() {
            draft.synthetic = true;
        }
    }
}

fn cannot_follow(node: &RawNode) -> ModelError {
    ModelError::refused(
        format!("node {} writes through a view that cannot be followed", node.name),
        "clone the tensor before writing into it",
    )
}
