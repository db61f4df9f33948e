//! The nodes of a program: finds operators, orders arguments, inlines `torch.no_grad()` blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{ArgumentJson, GraphJson, InputJson, NodeJson, OutputJson};
use super::names::{Definitions, check_name};
use super::tagged::One;
use crate::model::allowed_operators;
use crate::model::program::{ModuleCall, ProgramArgument, ProgramElement, ProgramNode, ProgramOperation};
use crate::model::{ModelError, dtype};
use crate::torch::{Operator, Value};

/// Most module calls of a node, and the longest text that describes them; PyTorch writes less.
const MAX_CALLS: usize = 128;
const MAX_STACK_BYTES: usize = 64 << 10;
/// Most values per node of `LoadLimits::max_nodes`, and at least this many in all.
const VALUES_PER_NODE: u64 = 16;

fn bad(problem: impl Into<String>) -> ModelError {
    ModelError::malformed("graph", problem)
}

/// Inside a `with torch.no_grad():` block, names of the inner graph mean names of the outer one.
#[derive(Default, Clone)]
struct Renaming {
    known: BTreeMap<String, String>,
    prefix: String,
}

impl Renaming {
    fn apply(&self, name: &str) -> Result<String, ModelError> {
        check_name(name)?;
        Ok(self.known.get(name).cloned().unwrap_or_else(|| format!("{}{name}", self.prefix)))
    }
}

/// Reads the nodes in order.
pub struct Reader<'a> {
    pub paths: &'a BTreeSet<String>,
    pub definitions: Definitions,
    pub max_nodes: u64,
    pub nodes: Vec<ProgramNode>,
    /// Names of what is computed from the user's inputs, and of these.
    pub dependent: BTreeSet<String>,
}

impl Reader<'_> {
    /// Reads the program's own graph.
    pub fn program(&mut self, graph: GraphJson) -> Result<(), ModelError> {
        self.graph(graph.nodes, false, &Renaming::default())
    }

    fn graph(&mut self, nodes: Vec<NodeJson>, no_grad: bool, renaming: &Renaming) -> Result<(), ModelError> {
        for node in nodes {
            self.node(node, no_grad, renaming)?;
        }
        Ok(())
    }

    /// Adds a node, once what it reads is defined and what it defines is new.
    fn push(&mut self, node: ProgramNode) -> Result<(), ModelError> {
        let limit = |what: &str, got, limit| ModelError::Limit { what: what.into(), got, limit, option: "max_nodes" };
        let by = format!("node {}", node.name);
        node.uses().try_for_each(|name| self.definitions.require(name, &by))?;
        node.outputs.iter().flatten().try_for_each(|name| self.definitions.define(name, &by))?;
        if node.uses().any(|name| self.dependent.contains(name)) {
            self.dependent.extend(node.outputs.iter().flatten().cloned());
        }
        self.nodes.push(node);
        if self.nodes.len() as u64 > self.max_nodes {
            return Err(limit("the graph", self.nodes.len() as u64, self.max_nodes));
        }
        let values = self.max_nodes.saturating_mul(VALUES_PER_NODE);
        if self.definitions.count() as u64 > values {
            return Err(limit("the number of the graph's values", self.definitions.count() as u64, values));
        }
        Ok(())
    }

    fn node(&mut self, node: NodeJson, no_grad: bool, renaming: &Renaming) -> Result<(), ModelError> {
        let NodeJson { target, name, inputs, outputs: handed_out, metadata } = node;
        let short = target.strip_prefix("torch.ops.").unwrap_or(&target);
        if allowed_operators::is_ignored(short) {
            return Ok(());
        }
        let name = match name {
            Some(name) => renaming.apply(&name)?,
            None => format!("node_{}", self.nodes.len()),
        };
        let calls = self.calls(metadata.nn_module_stack.as_deref().unwrap_or(""));
        if let Some(higher) = short.strip_prefix("higher_order.") {
            let outputs = outputs(handed_out, renaming, &name)?;
            let mut given = inputs.into_iter().map(|input| input.arg);
            let runs_without_gradient = match higher {
                "wrap_with_set_grad_enabled" => !flag(given.next(), &name)?,
                "wrap_with_autocast" => {
                    refuse_autocast(&mut given, &name)?;
                    false
                }
                _ => {
                    return Err(ModelError::refused(
                        format!("{higher} (node {name}) holds a graph within the graph"),
                        "export one branch of a torch.cond, and without scan or checkpointing inside forward",
                    ));
                }
            };
            let block = Block { name, given: given.collect(), outputs, calls };
            return self.inline(block, no_grad || runs_without_gradient, renaming);
        }
        let operation = allowed_operators::find(short, &name)?;
        let arguments = match &operation {
            ProgramOperation::Symbolic(_) => {
                inputs.into_iter().map(|input| argument(input.arg, renaming, &name)).collect::<Result<Vec<_>, _>>()?
            }
            ProgramOperation::Aten(operator) => arrange(operator, inputs, renaming, &name)?,
        };
        let outputs = outputs(handed_out, renaming, &name)?;
        let node = ProgramNode { name, operation, arguments, outputs, calls, no_grad };
        if !self.standardises_weights(&node) {
            allowed_operators::refuse_training(&node)?;
        }
        self.push(node)
    }

    /// Whether a node normalises weights by their own statistics: a batch normalisation of constants, which is in
    /// training mode whatever the model is in.
    fn standardises_weights(&self, node: &ProgramNode) -> bool {
        let ProgramOperation::Aten(operator) = &node.operation else { return false };
        let running_mean = operator.schema().position("running_mean").and_then(|index| node.arguments.get(index));
        node.operator_name() == "batch_norm"
            && matches!(running_mean, Some(ProgramArgument::Literal(Value::None)))
            && !node.uses().any(|name| self.dependent.contains(name))
    }

    /// The inner graph of a `with torch.no_grad():` or `with torch.autocast(…):` inside forward is inlined.
    fn inline(&mut self, block: Block, no_grad: bool, renaming: &Renaming) -> Result<(), ModelError> {
        let Block { name, given, outputs, calls } = block;
        let mut given = given.into_iter();
        let Some(ArgumentJson::Graph(inner)) = given.next() else {
            return Err(bad(format!("block {name} has no graph")));
        };
        let mut inside = Renaming { known: BTreeMap::new(), prefix: format!("{name}/") };
        for (placeholder, outer) in inner.inputs.into_iter().zip(given) {
            let (ArgumentJson::Raw(ProgramArgument::Use(placeholder)), ProgramArgument::Use(outer)) =
                (placeholder, argument(outer, renaming, &name)?)
            else {
                return Err(bad(format!("block {name} is given something that is no tensor")));
            };
            inside.known.insert(placeholder, outer);
        }
        self.graph(inner.nodes, no_grad, &inside)?;
        if inner.outputs.len() != outputs.len() {
            return Err(bad(format!(
                "block {name} hands out {} values under {} names",
                inner.outputs.len(),
                outputs.len()
            )));
        }
        for (index, (output, result)) in outputs.into_iter().zip(inner.outputs).enumerate() {
            let result @ ProgramArgument::Use(_) = argument(result, &inside, &name)? else {
                return Err(bad(format!("block {name} hands out something that is no tensor")));
            };
            self.push(ProgramNode {
                name: format!("{name}/{index}"),
                operation: ProgramOperation::Aten(Operator::find("aten::alias", "")?),
                arguments: vec![result],
                outputs: vec![output],
                calls: calls.clone(),
                no_grad,
            })?;
        }
        Ok(())
    }

    /// `nn_module_stack`: entries `key,path,type` joined by `;`, outermost first. A type holds no comma, a path may.
    fn calls(&self, stack: &str) -> Vec<ModuleCall> {
        if stack.len() > MAX_STACK_BYTES {
            return Vec::new();
        }
        stack
            .split(';')
            .take(MAX_CALLS)
            .filter_map(|entry| {
                let (head, _type) = entry.rsplit_once(',')?;
                let cut =
                    head.match_indices(',').map(|(at, _)| at).find(|&cut| self.paths.contains(&head[cut + 1..]))?;
                Some(ModuleCall { key: head[..cut].to_owned(), path: head[cut + 1..].to_owned() })
            })
            .collect()
    }
}

/// A block whose graph is inlined.
struct Block {
    name: String,
    /// The graph, then what its inputs are.
    given: Vec<ArgumentJson>,
    outputs: Vec<Option<String>>,
    calls: Vec<ModuleCall>,
}

/// A block's argument that is a boolean.
fn flag(argument: Option<ArgumentJson>, block: &str) -> Result<bool, ModelError> {
    match argument {
        Some(ArgumentJson::Raw(ProgramArgument::Literal(Value::Bool(flag)))) => Ok(flag),
        _ => Err(bad(format!("block {block} does not say its mode"))),
    }
}

/// Takes the arguments of `torch.autocast` before its graph: device, dtype, enabled, cache. Disabled, or for another
/// device than the one that the model was exported on, it changes nothing.
fn refuse_autocast(given: &mut impl Iterator<Item = ArgumentJson>, block: &str) -> Result<(), ModelError> {
    let Some(ArgumentJson::Raw(ProgramArgument::Literal(Value::String(device)))) = given.next() else {
        return Err(bad(format!("block {block} does not say the device of its autocast")));
    };
    let _dtype = given.next();
    let enabled = flag(given.next(), block)?;
    let _cache = given.next();
    if enabled && device == "cpu" {
        return Err(ModelError::refused(
            format!("autocast on the CPU (node {block}) chooses dtypes operator by operator while it runs"),
            "export the model without torch.autocast(\"cpu\") in forward; a model in bfloat16 can be exported as such",
        ));
    }
    Ok(())
}

/// Arguments by name → by position, with the schema's defaults.
fn arrange(
    operator: &Operator,
    given: Vec<InputJson>,
    renaming: &Renaming,
    node: &str,
) -> Result<Vec<ProgramArgument>, ModelError> {
    let schema = operator.schema();
    let mut slots: Vec<Option<ProgramArgument>> = vec![None; schema.arguments.len()];
    for (index, input) in given.into_iter().enumerate() {
        let name = input.name.unwrap_or_default();
        let position = if name.is_empty() { Some(index) } else { schema.position(&name) };
        let slot = position.and_then(|p| slots.get_mut(p)).ok_or_else(|| {
            let name = if name.is_empty() { format!("number {index}") } else { name.clone() };
            bad(format!("node {node}: {operator} has no argument {name}"))
        })?;
        if slot.is_some() {
            return Err(bad(format!("node {node}: argument {name} of {operator} is given twice")));
        }
        *slot = Some(argument(input.arg, renaming, node)?);
    }
    slots
        .into_iter()
        .zip(&schema.arguments)
        .map(|(slot, a)| {
            slot.or_else(|| a.default.clone().map(ProgramArgument::Literal))
                .ok_or_else(|| bad(format!("node {node}: argument {} of {operator} is missing", a.name)))
        })
        .collect()
}

/// One argument, with inner names replaced by outer ones.
fn argument(json: ArgumentJson, renaming: &Renaming, node: &str) -> Result<ProgramArgument, ModelError> {
    let number = |v: i64| Ok(ProgramArgument::Literal(Value::Int(v)));
    let unknown = |kind: &str| {
        Err(ModelError::refused(
            format!("node {node} has an argument of kind {kind}"),
            "camlens does not know it; export a model without it",
        ))
    };
    let at_node = |error: ModelError| match error {
        ModelError::Refused { what, advice } => ModelError::refused(format!("node {node}: {what}"), advice),
        ModelError::Malformed { place, problem } => ModelError::malformed(place, format!("node {node}: {problem}")),
        other => other,
    };
    match json {
        ArgumentJson::Raw(ProgramArgument::Use(name)) => Ok(ProgramArgument::Use(renaming.apply(&name)?)),
        ArgumentJson::Raw(ProgramArgument::List(elements)) => elements
            .into_iter()
            .map(|element| match element {
                ProgramElement::Use(name) => Ok(ProgramElement::Use(renaming.apply(&name)?)),
                known => Ok(known),
            })
            .collect::<Result<_, _>>()
            .map(ProgramArgument::List),
        ArgumentJson::Raw(literal) => Ok(literal),
        ArgumentJson::ScalarType(v) => number(dtype::scalar_type(dtype::kind(v).map_err(at_node)?)),
        ArgumentJson::MemoryFormat(v) => number(dtype::memory_format(v).map_err(at_node)?),
        ArgumentJson::Layout(v) => number(dtype::layout(v).map_err(at_node)?),
        ArgumentJson::Graph(_) => unknown("as_graph"),
        ArgumentJson::Unknown(kind) => unknown(&kind),
    }
}

fn outputs(json: Vec<One<OutputJson>>, renaming: &Renaming, node: &str) -> Result<Vec<Option<String>>, ModelError> {
    let mut flat = Vec::new();
    for One(output) in json {
        match output {
            OutputJson::Names(names) => {
                for name in names {
                    flat.push(name.map(|name| renaming.apply(&name)).transpose()?);
                }
            }
            OutputJson::Unknown(kind) => {
                return Err(ModelError::refused(
                    format!("node {node} has an output of kind {kind}"),
                    "camlens does not know it; export a model without it",
                ));
            }
        }
    }
    Ok(flat)
}
