//! Lowers a file's graph node by node.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::builder::{ADVICE, Builder, Origin};
use super::lower;
use super::message::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use super::names::Modules;
use super::numbers;
use super::operands::{Operands, ints};
use super::value::Val;
use crate::model::ModelError;

/// Deepest nesting of functions and branches.
const MAX_DEPTH: usize = 10;
/// Most unknown operators, and most nodes of each, that a message lists.
const MAX_LISTED: usize = 12;
const MAX_NODES: usize = 3;
/// Longest name.
const MAX_NAME_BYTES: usize = 4096;

/// Names and what they stand for.
type Scope = HashMap<String, Val>;

/// The nodes of a model, and what they are lowered into.
pub struct Lowering<'a> {
    pub builder: Builder,
    modules: Modules,
    functions: HashMap<(String, String), &'a FunctionProto>,
    /// Innermost last. A function sees its own alone.
    scopes: Vec<Scope>,
    version: i64,
    depth: usize,
    /// Nodes that were lowered, those of functions once for each call.
    lowered: u64,
    max_nodes: u64,
}

/// ONNX's own operators have either name for their domain.
fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The operator set of a model or a function.
fn version(imports: &[OperatorSetIdProto]) -> Option<i64> {
    imports.iter().filter(|import| is_onnx(import.domain())).map(|import| import.version()).max()
}

impl<'a> Lowering<'a> {
    pub fn new(
        model: &'a ModelProto,
        graph: &'a GraphProto,
        builder: Builder,
        max_nodes: u64,
    ) -> Result<Self, ModelError> {
        let functions = model
            .functions
            .iter()
            .map(|function| ((function.domain().to_owned(), function.name().to_owned()), function))
            .collect();
        let version = version(&model.opset_import).unwrap_or(1);
        let [oldest, newest] = lower::VERSIONS;
        if !(oldest..=newest).contains(&version) {
            return Err(ModelError::refused(
                format!("the model uses operator set {version} of ONNX, and {oldest} to {newest} are read"),
                "export it with opset_version=17, or convert it with onnx.version_converter",
            ));
        }
        let modules = Modules::new(graph.node.iter());
        let lowering = Lowering {
            builder,
            modules,
            functions,
            scopes: vec![Scope::new()],
            version,
            depth: 0,
            lowered: 0,
            max_nodes,
        };
        lowering.check_operators(model, graph)?;
        Ok(lowering)
    }

    /// Refuses all operators that are not read, at once.
    fn check_operators(&self, model: &ModelProto, graph: &GraphProto) -> Result<(), ModelError> {
        let mut unknown: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let all = graph.node.iter().chain(model.functions.iter().flat_map(|function| &function.node));
        for (index, node) in all.enumerate() {
            if !self.is_known(node) {
                let domain = if is_onnx(node.domain()) { String::new() } else { format!("{}.", node.domain()) };
                unknown.entry(format!("{domain}{}", node.op_type())).or_default().push(name_of(node, index));
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = unknown
            .iter()
            .take(MAX_LISTED)
            .map(|(operator, nodes)| {
                let shown = nodes.iter().take(MAX_NODES).map(|name| short(name)).collect::<Vec<_>>().join(", ");
                let more = nodes.len().saturating_sub(MAX_NODES);
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                format!("{} (node {shown}{more})", short(operator))
            })
            .collect();
        let more = unknown.len().saturating_sub(MAX_LISTED);
        let more = if more == 0 { String::new() } else { format!(", and {more} other operators") };
        let advice = advice(unknown.keys());
        Err(ModelError::Refused {
            what: format!("the model uses operators that are not read: {}{more}", list.join("; ")),
            advice: advice.to_owned(),
        })
    }

    fn is_known(&self, node: &NodeProto) -> bool {
        let is_function = self.functions.contains_key(&(node.domain().to_owned(), node.op_type().to_owned()));
        is_function || (is_onnx(node.domain()) && (node.op_type() == "If" || lower::find(node.op_type()).is_some()))
    }

    /// Gives a name to a value of the outermost scope.
    pub fn define(&mut self, name: &str, value: Val) -> Result<(), ModelError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(malformed(format!("a value has a name of {} bytes", name.len())));
        }
        if self.find(name).is_some() {
            return Err(malformed(format!("{} is defined twice", short(name))));
        }
        let label = match &value {
            Val::Tensor(known) => Some(known.name.clone()),
            _ => None,
        };
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), value);
        }
        if let Some(program_name) = label
            && self.depth == 0
        {
            self.builder.labels.entry(program_name).or_insert_with(|| name.to_owned());
        }
        Ok(())
    }

    pub fn find(&self, name: &str) -> Option<&Val> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn read(&self, name: &str, node: &str) -> Result<Val, ModelError> {
        self.find(name).cloned().ok_or_else(|| {
            malformed(format!(
                "node {} reads {}, which nothing defines before it: nodes form a circle, or are out of order",
                short(node),
                short(name)
            ))
        })
    }

    /// Lowers the nodes of a graph, and forgets each value after its last use.
    pub fn nodes(&mut self, nodes: &[NodeProto], outputs: &HashSet<&str>) -> Result<(), ModelError> {
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            mark_uses(node, index, &mut last, 0);
        }
        let mut by_last: HashMap<usize, Vec<&str>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for name in &node.output {
                last.entry(name).or_insert(index);
            }
        }
        for (name, index) in last.into_iter().filter(|(name, _)| !outputs.contains(name)) {
            by_last.entry(index).or_default().push(name);
        }
        let mut defined: HashSet<&str> = HashSet::new();
        for (index, node) in nodes.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                if !defined.insert(name) {
                    return Err(malformed(format!("{} is defined twice", short(name))));
                }
            }
            self.node(node, index)?;
            let forgotten = by_last.remove(&index).unwrap_or_default();
            if let Some(scope) = self.scopes.last_mut() {
                forgotten.into_iter().for_each(|name| drop(scope.remove(name)));
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &NodeProto, index: usize) -> Result<(), ModelError> {
        self.lowered += 1;
        if self.lowered > self.max_nodes {
            let (what, got, limit) = ("the graph with its functions".into(), self.lowered, self.max_nodes);
            return Err(ModelError::Limit { what, got, limit, option: "max_nodes" });
        }
        let name = name_of(node, index);
        let calls = match self.depth {
            0 => self.modules.of(node, &name),
            _ => self.builder.origin().calls,
        };
        let outer = self.builder.origin();
        let shown = if self.depth == 0 { name.clone() } else { format!("{}/{name}", outer.name) };
        let operator = node.op_type().to_owned();
        let mut inputs = Vec::new();
        for input in &node.input {
            inputs.push(if input.is_empty() { Val::Absent } else { self.read(input, &name)? });
        }
        while matches!(inputs.last(), Some(Val::Absent)) {
            inputs.pop();
        }
        self.builder.origins.push(Origin { name: shown, operator: operator.clone(), calls });
        let results = self.results(node, inputs)?;
        let wanted = node.output.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        if results.len() < wanted {
            return Err(self.builder.refused(format!("output {} is not computed", wanted - 1)));
        }
        for (name, result) in node.output.iter().zip(results) {
            if !name.is_empty() {
                self.define(name, result)?;
            }
        }
        if self.depth > 0 {
            self.builder.origins.push(outer);
        }
        Ok(())
    }

    fn results(&mut self, node: &NodeProto, inputs: Vec<Val>) -> Result<Vec<Val>, ModelError> {
        let operator = node.op_type();
        let key = (node.domain().to_owned(), operator.to_owned());
        if let Some(function) = self.functions.get(&key).copied() {
            return self.function(function, node, inputs);
        }
        if !is_onnx(node.domain()) {
            return Err(self.builder.refused(format!("the operators of {} are not read", short(node.domain()))));
        }
        if operator == "If" {
            return self.branch(node, inputs);
        }
        let Some((since, until, lower)) = lower::find(operator) else {
            return Err(self.builder.refused("the operator is not read"));
        };
        if self.version < since || self.version > until {
            let version = self.version;
            return Err(self.builder.refused(format!("the operator is not in operator set {version} of ONNX")));
        }
        if let Some(attribute) = node.attribute.iter().find(|attribute| !attribute.ref_attr_name().is_empty()) {
            let name = short(attribute.name());
            return Err(self
                .builder
                .refused(format!("attribute {name} is a parameter of a function that is not given")));
        }
        let outputs = node.output.iter().map(|name| !name.is_empty()).collect();
        let attributes = node.attribute.iter().cloned();
        let mut operands = Operands::new(operator, self.version, inputs, outputs, attributes);
        let has_numbers = operands.inputs.iter().any(|input| matches!(input, Val::Numbers(_)));
        let lowered = if has_numbers { numbers::lower(&mut self.builder, &mut operands)? } else { None };
        let results = match lowered {
            Some(results) => results,
            None => lower(&mut self.builder, &mut operands)?,
        };
        if let [name, ..] = operands.left().as_slice() {
            return Err(self.builder.refused(format!("attribute {} is not read", short(name))));
        }
        Ok(results)
    }

    /// The branch that a constant condition chooses.
    fn branch(&mut self, node: &NodeProto, inputs: Vec<Val>) -> Result<Vec<Val>, ModelError> {
        let condition = match inputs.first() {
            Some(Val::Tensor(known)) if known.is_constant => ints(&known.runs[0]).filter(|all| all.len() == 1),
            _ => None,
        };
        let Some(condition) = condition else {
            return Err(self.builder.refused("which branch is taken depends on the picture or on its size"));
        };
        let wanted = if condition[0] != 0 { "then_branch" } else { "else_branch" };
        let graph = node.attribute.iter().find(|attribute| attribute.name() == wanted).and_then(|a| a.g.as_ref());
        let Some(graph) = graph else { return Err(self.builder.refused(format!("it has no {wanted}"))) };
        self.deeper()?;
        self.scopes.push(Scope::new());
        for tensor in &graph.initializer {
            let constant = self.builder.constant(super::tensors::inline(tensor)?, None);
            self.define(tensor.name(), Val::Tensor(constant))?;
        }
        let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
        self.nodes(&graph.node, &outputs)?;
        let results = graph.output.iter().map(|output| self.read(output.name(), "If")).collect();
        self.scopes.pop();
        self.depth -= 1;
        results
    }

    /// A function of the file, in place of its call.
    fn function(
        &mut self,
        function: &FunctionProto,
        node: &NodeProto,
        inputs: Vec<Val>,
    ) -> Result<Vec<Val>, ModelError> {
        self.deeper()?;
        let mut scope = Scope::new();
        for (index, name) in function.input.iter().enumerate() {
            scope.insert(name.clone(), inputs.get(index).cloned().unwrap_or(Val::Absent));
        }
        let outer = std::mem::replace(&mut self.scopes, vec![scope]);
        let outer_version = self.version;
        self.version = version(&function.opset_import).unwrap_or(outer_version);
        let nodes = with_attributes(function, node);
        let outputs: HashSet<&str> = function.output.iter().map(String::as_str).collect();
        self.nodes(&nodes, &outputs)?;
        let results = function.output.iter().map(|name| self.read(name, function.name())).collect();
        self.scopes = outer;
        self.version = outer_version;
        self.depth -= 1;
        results
    }

    fn deeper(&mut self) -> Result<(), ModelError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.builder.refused(format!("functions or branches are nested more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }
}

fn malformed(problem: String) -> ModelError {
    ModelError::malformed("graph", problem)
}

/// A node's name, or one made of its first output, or of its place.
fn name_of(node: &NodeProto, index: usize) -> String {
    let output = node.output.iter().find(|name| !name.is_empty());
    match (node.name(), output) {
        ("", Some(output)) => output.clone(),
        ("", None) => format!("number {index}"),
        (name, _) => name.to_owned(),
    }
}

/// A name of any length, for a message.
fn short(name: &str) -> String {
    const MOST: usize = 80;
    if name.chars().count() <= MOST {
        name.to_owned()
    } else {
        format!("{}…", name.chars().take(MOST).collect::<String>())
    }
}

/// Notes for each name that a node reads, those of its branches included, that it is read here.
fn mark_uses<'n>(node: &'n NodeProto, index: usize, last: &mut HashMap<&'n str, usize>, depth: usize) {
    last.extend(node.input.iter().map(|name| (name.as_str(), index)));
    if depth > MAX_DEPTH {
        return;
    }
    for graph in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
        last.extend(graph.output.iter().map(|output| (output.name(), index)));
        graph.node.iter().for_each(|inner| mark_uses(inner, index, last, depth + 1));
    }
}

/// A function's nodes, with the attributes that its call gives.
fn with_attributes(function: &FunctionProto, call: &NodeProto) -> Vec<NodeProto> {
    let mut nodes = function.node.clone();
    nodes.iter_mut().for_each(|node| give_attributes(node, function, call, 0));
    nodes
}

fn give_attributes(node: &mut NodeProto, function: &FunctionProto, call: &NodeProto, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    node.attribute = std::mem::take(&mut node.attribute)
        .into_iter()
        .filter_map(|mut attribute| {
            if let Some(graph) = &mut attribute.g {
                graph.node.iter_mut().for_each(|inner| give_attributes(inner, function, call, depth + 1));
            }
            if attribute.ref_attr_name().is_empty() {
                return Some(attribute);
            }
            let wanted = attribute.ref_attr_name();
            let given = call.attribute.iter().chain(&function.attribute_proto).find(|given| given.name() == wanted)?;
            let mut given = given.clone();
            given.name = attribute.name;
            Some(given)
        })
        .collect();
}

/// What helps against operators that are not read.
fn advice<'n>(mut operators: impl Iterator<Item = &'n String>) -> &'static str {
    let is_quantised =
        |name: &String| name.contains("QLinear") || name.contains("Integer") || name.contains("Quantize");
    let is_fused = |name: &String| name.starts_with("com.microsoft.") || name.starts_with("ai.onnx.contrib.");
    let is_final = |name: &String| matches!(name.as_str(), "NonMaxSuppression" | "TopK" | "NonZero" | "RoiAlign");
    let is_loop = |name: &String| matches!(name.as_str(), "Loop" | "Scan") || name.contains("Sequence");
    match operators.find(|name| is_quantised(name) || is_fused(name) || is_final(name) || is_loop(name)) {
        Some(name) if is_quantised(name) => {
            "use the model as it was before it was quantised, or one with QuantizeLinear and DequantizeLinear"
        }
        Some(name) if is_fused(name) => "use the model as it was before ONNX Runtime optimised it for one device",
        Some(name) if is_final(name) => {
            "cut the model before it chooses among its results, with onnx.utils.extract_model"
        }
        Some(_) => "export the model without loops in forward(), or run onnxsim on it",
        None => ADVICE,
    }
}
