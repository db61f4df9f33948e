//! Makes a program functional: in-place writes become new values.
//!
//! A program that writes into tensors is run once unchanged (`probe`). The addresses of its tensors show which names
//! alias, including aliases that no schema declares (dropout in evaluation mode returns its input; `reshape` may copy).
//! Then each in-place operator becomes its functional twin and its names are bound to the new value (`in_place`); a
//! write through a view is written back into the base, and other live views of it are derived again (`views`).

mod in_place;
mod probe;
pub mod traced;
mod views;

use crate::model::functional::traced::ElidedNode;
use crate::model::functional::traced::TracedNode;
use std::collections::{BTreeMap, BTreeSet};

use tch::Tensor;

use super::ModelError;
use super::allowed_operators::is_dropout;
use super::node::{Argument, Element, Node, ValueId};
use super::operation::Operation;
use super::program::{Program, ProgramArgument, ProgramElement, ProgramNode, ProgramOperation};
use probe::Geometry;
pub use probe::{Probe, example};
use views::Step;

/// A program in which each value is computed once.
pub struct Functional {
    pub traced: Vec<TracedNode>,
    pub elided: Vec<ElidedNode>,
    /// By [`ValueId`].
    pub names: Vec<String>,
    pub constants: BTreeMap<ValueId, Tensor>,
    /// The name of each constant in the program.
    pub originals: BTreeMap<ValueId, String>,
    pub input: ValueId,
    pub outputs: Vec<(String, Option<ValueId>)>,
}

/// Most steps that following aliases may take. A real model takes thousands; a program of views and writes alone could
/// take the square of its length.
const MAX_STEPS: u64 = 20_000_000;

struct Functionaliser {
    geometry: BTreeMap<String, Geometry>,
    /// Storage → the names that use it.
    sharing: BTreeMap<usize, BTreeSet<String>>,
    /// Name → its current value.
    current: BTreeMap<String, ValueId>,
    /// Name → the name that it is a view of, and the view operator; no step when it is the same tensor.
    parent: BTreeMap<String, (String, Option<Step>)>,
    /// Name → the last node that reads it.
    last_use: BTreeMap<String, usize>,
    names: Vec<String>,
    traced: Vec<TracedNode>,
    elided: Vec<ElidedNode>,
    /// Steps taken so far, of [`MAX_STEPS`].
    steps: u64,
    max_nodes: u64,
}

/// Turns a program into its functional form. `probe` is the program's own run; a program that writes nothing
/// needs none.
pub fn functionalise(program: &Program, probe: Option<&Probe>) -> Result<Functional, ModelError> {
    let last_use = program.last_uses().into_iter().map(|(name, index)| (name.to_owned(), index)).collect();
    let mut f = Functionaliser {
        geometry: BTreeMap::new(),
        sharing: BTreeMap::new(),
        current: BTreeMap::new(),
        parent: BTreeMap::new(),
        last_use,
        names: Vec::new(),
        traced: Vec::new(),
        elided: Vec::new(),
        steps: 0,
        max_nodes: program.limits.max_nodes,
    };
    for (name, geometry) in probe.into_iter().flat_map(Probe::geometry) {
        f.place(name, geometry.clone());
    }
    let (mut constants, mut originals) = (BTreeMap::new(), BTreeMap::new());
    for name in &program.constants {
        let id = f.fresh(name);
        f.current.insert(name.clone(), id);
        constants.insert(id, program.weights.tensor(name)?);
        originals.insert(id, name.clone());
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
    let traced = sweep(f.traced, &outputs, &mut f.elided);
    Ok(Functional { traced, elided: f.elided, names: f.names, constants, originals, input, outputs })
}

/// Drops synthetic nodes that nothing reads (write-backs into bases that are only read through other views).
fn sweep(traced: Vec<TracedNode>, outputs: &[(String, Option<ValueId>)], elided: &mut [ElidedNode]) -> Vec<TracedNode> {
    let mut wanted: BTreeSet<ValueId> = outputs.iter().filter_map(|(_, v)| *v).collect();
    let keep: Vec<bool> = traced
        .iter()
        .rev()
        .map(|traced_node| {
            let keep = !traced_node.synthetic || traced_node.node.defines().any(|v| wanted.contains(&v));
            if keep {
                wanted.extend(traced_node.node.uses());
            }
            keep
        })
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    let mut kept_before = Vec::with_capacity(keep.len() + 1);
    kept_before.push(0);
    for &kept in &keep {
        kept_before.push(kept_before[kept_before.len() - 1] + usize::from(kept));
    }
    for elided_node in elided {
        elided_node.position = kept_before[elided_node.position];
    }
    traced.into_iter().zip(keep).filter_map(|(traced_node, keep)| keep.then_some(traced_node)).collect()
}

impl Functionaliser {
    /// Records the memory that a name uses.
    fn place(&mut self, name: &str, geometry: Geometry) {
        if geometry.storage != 0 {
            self.sharing.entry(geometry.storage).or_default().insert(name.to_owned());
        }
        self.geometry.insert(name.to_owned(), geometry);
    }

    /// Charges steps to [`MAX_STEPS`].
    fn spend(&mut self, steps: usize) -> Result<(), ModelError> {
        self.steps += steps as u64;
        if self.steps > MAX_STEPS {
            return Err(ModelError::refused(
                "the program writes into so many views that following them takes too long",
                "clone tensors before writing into them",
            ));
        }
        Ok(())
    }

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

    fn bind(&self, arguments: &[ProgramArgument]) -> Result<Vec<Argument>, ModelError> {
        arguments
            .iter()
            .map(|argument| {
                Ok(match argument {
                    ProgramArgument::Literal(value) => Argument::Literal(value.clone()),
                    ProgramArgument::Use(name) => Argument::Use(self.value(name)?),
                    ProgramArgument::List(elements) => Argument::List(
                        elements
                            .iter()
                            .map(|element| {
                                Ok(match element {
                                    ProgramElement::Use(name) => Element::Use(self.value(name)?),
                                    ProgramElement::None => Element::None,
                                    ProgramElement::Int(v) => Element::Int(*v),
                                    ProgramElement::Float(v) => Element::Float(*v),
                                    ProgramElement::Bool(v) => Element::Bool(*v),
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
        from: &ProgramNode,
    ) -> Result<(), ModelError> {
        // Views that are derived again count in addition to the program's own nodes.
        let limit = self.max_nodes.saturating_mul(2);
        if self.traced.len() as u64 >= limit {
            let (what, got) = ("the functional form of the graph".into(), self.traced.len() as u64 + 1);
            return Err(ModelError::Limit { what, got, limit, option: "max_nodes" });
        }
        let node = Node {
            name: name.to_owned(),
            operation,
            arguments,
            outputs,
            no_grad: from.no_grad,
            rectifier: None,
            smooth_activation: false,
        };
        self.traced.push(TracedNode { node, calls: from.calls.clone(), synthetic: false });
        Ok(())
    }

    fn node(&mut self, index: usize, node: &ProgramNode) -> Result<(), ModelError> {
        if is_dropout(node.operator_name()) {
            return self.identity(node);
        }
        match node.written() {
            None => self.pure(node),
            Some(written) => self.in_place(index, node, written),
        }
    }

    /// A dropout in evaluation mode: the output is the input.
    fn identity(&mut self, node: &ProgramNode) -> Result<(), ModelError> {
        let source = match node.arguments.first() {
            Some(ProgramArgument::Use(name)) => Some(name.clone()),
            _ => None,
        };
        let output = node.outputs.first().cloned().flatten();
        let (Some(source), Some(output)) = (source, output) else {
            return Err(ModelError::malformed("graph", format!("node {} has no input", node.name)));
        };
        let value = self.value(&source)?;
        self.current.insert(output.clone(), value);
        if let Some(geometry) = self.geometry.get(&source).cloned() {
            self.place(&output, geometry);
        }
        self.parent.insert(output, (source, None));
        self.elided.push(ElidedNode {
            position: self.traced.len(),
            name: node.name.clone(),
            calls: node.calls.clone(),
            value,
        });
        Ok(())
    }

    fn pure(&mut self, node: &ProgramNode) -> Result<(), ModelError> {
        let arguments = self.bind(&node.arguments)?;
        let operation = match &node.operation {
            ProgramOperation::Aten(operator) => Operation::Aten(operator.clone()),
            ProgramOperation::Symbolic(symbolic) => Operation::Symbolic(*symbolic),
        };
        let outputs: Vec<Option<ValueId>> =
            node.outputs.iter().map(|name| name.as_ref().map(|n| self.fresh(n))).collect();
        self.push(&node.name, operation, arguments, outputs.clone(), node)?;
        for (result, (name, value)) in node.outputs.iter().zip(&outputs).enumerate() {
            let (Some(name), Some(value)) = (name, value) else { continue };
            self.current.insert(name.clone(), *value);
            // Does the result alias an argument?
            let Some(mine) = self.geometry.get(name).cloned() else { continue };
            let source = node.uses().find(|r| self.geometry.get(*r).is_some_and(|g| g.aliases(&mine)));
            if let (Some(source), ProgramOperation::Aten(operator)) = (source, &node.operation) {
                let same = self.geometry.get(source) == Some(&mine);
                let step = (!same).then(|| Step::new(operator, node.arguments.clone(), source, result));
                self.parent.insert(name.clone(), (source.to_owned(), step));
            }
        }
        Ok(())
    }
}
