//! The graph of an exported program, as the file has it: names, in-place writes and all.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

use crate::torch::{Alias, Operator, Value};

use super::archive::Archive;
use super::graph::Dimension;
use super::operation::Symbolic;
use super::weights::Payload;
use super::{ModelError, dtype};

/// A use of a name, or what is known already.
#[derive(Debug, Clone)]
pub enum RawArgument {
    Literal(Value),
    Use(String),
    List(Vec<RawElement>),
}

#[derive(Debug, Clone)]
pub enum RawElement {
    Use(String),
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl RawArgument {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            RawArgument::Use(name) => (Some(name.as_str()), &[][..]),
            RawArgument::List(elements) => (None, elements.as_slice()),
            RawArgument::Literal(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().filter_map(|e| match e {
            RawElement::Use(name) => Some(name.as_str()),
            _ => None,
        }))
    }
}

#[derive(Debug)]
pub enum RawOperation {
    Aten(Operator),
    Symbolic(Symbolic),
}

/// One module call that a node is part of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Which call of the module it is; only equality matters.
    pub key: String,
    /// The module's path, `layer4.2.relu`.
    pub path: String,
}

#[derive(Debug)]
pub struct RawNode {
    pub name: String,
    pub operation: RawOperation,
    /// In the operation's order.
    pub arguments: Vec<RawArgument>,
    /// Flat: a list of tensors counts one an element.
    pub outputs: Vec<Option<String>>,
    /// Outermost first.
    pub calls: Vec<Call>,
    pub no_grad: bool,
}

impl RawNode {
    pub fn uses(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().flat_map(RawArgument::uses)
    }

    /// `relu_` of `aten::relu_`; empty for arithmetic on sizes.
    pub fn operator_name(&self) -> &str {
        match &self.operation {
            RawOperation::Aten(operator) => operator.name().trim_start_matches("aten::"),
            RawOperation::Symbolic(_) => "",
        }
    }

    /// The argument that the operator writes.
    pub fn written(&self) -> Option<usize> {
        match &self.operation {
            RawOperation::Aten(operator) => {
                operator.schema().arguments.iter().position(|argument| argument.alias == Alias::Written)
            }
            RawOperation::Symbolic(_) => None,
        }
    }
}

/// What the placeholder of a graph stands for.
#[derive(Debug, Clone)]
pub enum Constant {
    Weight(String),
    Constant(String),
}

/// A program as it was exported.
pub struct RawProgram {
    pub nodes: Vec<RawNode>,
    /// Placeholder → where its tensor is.
    pub constants: BTreeMap<String, Constant>,
    pub weights: Payload,
    pub tensors: Payload,
    /// The user's inputs: name, dtype, shape.
    pub inputs: Vec<RawInput>,
    /// Name in the result (`logits`, `nested.1.k`, `0`) and name in the graph; none for what is no tensor.
    pub outputs: Vec<(String, Option<String>)>,
    /// Every module path of the program.
    pub paths: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub struct RawInput {
    pub name: String,
    pub kind: Kind,
    pub shape: Vec<Dimension>,
}

impl RawProgram {
    /// The tensor behind a placeholder.
    pub fn constant(&self, constant: &Constant) -> Result<Tensor, ModelError> {
        match constant {
            Constant::Weight(name) => self.weights.tensor(name),
            Constant::Constant(name) => self.tensors.tensor(name),
        }
    }

    /// Reads the program that an archive holds.
    pub fn read(archive: &mut Archive) -> Result<Self, ModelError> {
        let document = archive.graph()?;
        check_version(&document)?;
        let module = field(&document, "graph_module")?;
        let graph = field(module, "graph")?;
        let paths: BTreeSet<String> = list(module, "module_call_graph")?
            .iter()
            .filter_map(|entry| Some(entry.get("fqn")?.as_str()?.to_owned()))
            .collect();
        let weights = Payload::read(archive, "weights")?;
        let tensors = Payload::read(archive, "constants")?;
        let signature = field(module, "signature")?;
        let (constants, inputs) = inputs(signature, graph)?;
        let mut reader = Reader { paths: &paths, nodes: Vec::new(), max_nodes: archive.max_nodes() };
        reader.graph(graph, false, &Renaming::default())?;
        let nodes = reader.nodes;
        let outputs = output_names(signature, module)?;
        Ok(RawProgram { nodes, constants, weights, tensors, inputs, outputs, paths })
    }
}

fn bad(problem: impl Into<String>) -> ModelError {
    ModelError::malformed("graph", problem)
}

fn field<'a>(json: &'a Json, key: &str) -> Result<&'a Json, ModelError> {
    json.get(key).ok_or_else(|| bad(format!("no `{key}`")))
}

fn list<'a>(json: &'a Json, key: &str) -> Result<&'a Vec<Json>, ModelError> {
    field(json, key)?.as_array().ok_or_else(|| bad(format!("`{key}` is no list")))
}

fn text<'a>(json: &'a Json, key: &str) -> Result<&'a str, ModelError> {
    field(json, key)?.as_str().ok_or_else(|| bad(format!("`{key}` is no text")))
}

/// The only key of an object, with its value.
fn only(json: &Json) -> Result<(&str, &Json), ModelError> {
    let object = json.as_object().ok_or_else(|| bad("an object was expected"))?;
    let mut entries = object.iter();
    match (entries.next(), entries.next()) {
        (Some((key, value)), None) => Ok((key, value)),
        _ => Err(bad("an object with one key was expected")),
    }
}

fn check_version(document: &Json) -> Result<(), ModelError> {
    let version = field(document, "schema_version")?;
    let number = |key| version.get(key).and_then(Json::as_i64).unwrap_or(-1);
    if number("major") != 8 {
        return Err(ModelError::Format {
            what: format!("the file has schema {}.{}, and camlens reads schema 8", number("major"), number("minor")),
            advice: "export the model again with PyTorch 2.9 to 2.15".into(),
        });
    }
    let verifiers: Vec<&str> = list(document, "verifiers")?.iter().filter_map(Json::as_str).collect();
    if verifiers != ["TRAINING"] {
        return Err(ModelError::refused(
            format!("the graph was decomposed (dialect {}), which dissolves rectifiers", verifiers.join(", ")),
            "save the program that torch.export.export returned, without run_decompositions()",
        ));
    }
    Ok(())
}

/// Constants and the user's inputs.
type Inputs = (BTreeMap<String, Constant>, Vec<RawInput>);

fn inputs(signature: &Json, graph: &Json) -> Result<Inputs, ModelError> {
    let metas = field(graph, "tensor_values")?;
    let mut constants = BTreeMap::new();
    let mut inputs = Vec::new();
    for spec in list(signature, "input_specs")? {
        let (kind, spec) = only(spec)?;
        let placeholder = || Ok::<String, ModelError>(text(field(spec, "arg")?, "name")?.to_owned());
        match kind {
            "parameter" => {
                constants.insert(placeholder()?, Constant::Weight(text(spec, "parameter_name")?.to_owned()));
            }
            "buffer" => {
                let name = text(spec, "buffer_name")?.to_owned();
                // Buffers that are no part of a state_dict are kept with the constants.
                let persistent = spec.get("persistent").and_then(Json::as_bool).unwrap_or(true);
                let constant = if persistent { Constant::Weight(name) } else { Constant::Constant(name) };
                constants.insert(placeholder()?, constant);
            }
            "tensor_constant" => {
                constants.insert(placeholder()?, Constant::Constant(text(spec, "tensor_constant_name")?.to_owned()));
            }
            "user_input" => {
                let (kind, argument) = only(field(spec, "arg")?)?;
                if kind != "as_tensor" {
                    return Err(ModelError::refused(
                        "the model takes an input that is no tensor",
                        "export a wrapper whose forward takes the image alone",
                    ));
                }
                let name = text(argument, "name")?.to_owned();
                let meta = metas.get(&name).ok_or_else(|| bad(format!("no shape for input {name}")))?;
                let shape = list(meta, "sizes")?.iter().map(dimension).collect::<Result<_, _>>()?;
                let number = field(meta, "dtype")?.as_i64().ok_or_else(|| bad("dtype is no number"))?;
                inputs.push(RawInput { name, kind: dtype::kind(number)?, shape });
            }
            "constant_input" => {}
            other => {
                return Err(ModelError::refused(
                    format!("the model takes an input of kind {other}"),
                    "export a wrapper whose forward takes the image alone",
                ));
            }
        }
    }
    Ok((constants, inputs))
}

fn dimension(size: &Json) -> Result<Dimension, ModelError> {
    if let Some(fixed) = size.get("as_int").and_then(Json::as_i64) {
        return Ok(Dimension::Fixed(fixed));
    }
    let hint = size.pointer("/as_expr/hint/as_int").and_then(Json::as_i64);
    Ok(Dimension::Dynamic { example: hint.ok_or_else(|| bad("a dynamic size has no example"))? })
}

/// Inside a `with torch.no_grad():` block, names of the inner graph mean names of the outer one.
#[derive(Default, Clone)]
struct Renaming {
    known: BTreeMap<String, String>,
    prefix: String,
}

impl Renaming {
    fn apply(&self, name: &str) -> String {
        self.known.get(name).cloned().unwrap_or_else(|| format!("{}{name}", self.prefix))
    }
}

/// Checks of sizes and dtypes that PyTorch made at export; they compute nothing.
const IGNORED: [&str; 5] = [
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
];

const NO_GRADIENT_ADVICE: &str = "export with gradients enabled, not under torch.no_grad()";

/// Operators that reach files, storages or other memory, or that change what a tensor is.
const FORBIDDEN: [&str; 14] = [
    "from_file",
    "set_",
    "set",
    "set_data",
    "resize_",
    "resize",
    "resize_as_",
    "resize_as",
    "resize_as_sparse_",
    "_resize_output_",
    "data",
    "record_stream",
    "retain_grad",
    "_backward",
];

const RANDOM: [&str; 14] = [
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "randint",
    "randint_like",
    "bernoulli",
    "bernoulli_",
    "normal",
    "normal_",
    "uniform_",
    "multinomial",
    "randperm",
    "rrelu_with_noise",
];

const DROPOUT: [&str; 8] = [
    "dropout",
    "dropout_",
    "feature_dropout",
    "feature_dropout_",
    "alpha_dropout",
    "alpha_dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
];

/// A dropout in evaluation mode: its result is its input.
pub fn is_dropout(name: &str) -> bool {
    DROPOUT.contains(&name)
}

struct Reader<'a> {
    paths: &'a BTreeSet<String>,
    nodes: Vec<RawNode>,
    max_nodes: u64,
}

impl Reader<'_> {
    fn graph(&mut self, graph: &Json, no_grad: bool, renaming: &Renaming) -> Result<(), ModelError> {
        for node in list(graph, "nodes")? {
            self.node(node, no_grad, renaming)?;
            if self.nodes.len() as u64 > self.max_nodes {
                return Err(ModelError::Limit {
                    what: "the graph".into(),
                    got: self.nodes.len() as u64,
                    limit: self.max_nodes,
                    option: "max_nodes",
                });
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Json, no_grad: bool, renaming: &Renaming) -> Result<(), ModelError> {
        let target = text(node, "target")?;
        let short = target.strip_prefix("torch.ops.").unwrap_or(target);
        if IGNORED.contains(&short) {
            return Ok(());
        }
        let name = match node.get("name").and_then(Json::as_str) {
            Some(name) => renaming.apply(name),
            None => format!("node_{}", self.nodes.len()),
        };
        let calls = self.calls(node.pointer("/metadata/nn_module_stack").and_then(Json::as_str).unwrap_or(""));
        if short == "higher_order.wrap_with_set_grad_enabled" {
            return self.no_grad_block(node, &name, calls, no_grad, renaming);
        }
        if let Some(higher) = short.strip_prefix("higher_order.") {
            return Err(ModelError::refused(
                format!("{higher} (node {name}) holds a graph within the graph"),
                "export one branch of a torch.cond, and without autocast, scan or checkpointing inside forward",
            ));
        }
        let operation = find(short, &name)?;
        let given = list(node, "inputs")?;
        let arguments = match &operation {
            RawOperation::Symbolic(_) => {
                given.iter().map(|input| argument(field(input, "arg")?, renaming)).collect::<Result<Vec<_>, _>>()?
            }
            RawOperation::Aten(operator) => arrange(operator, given, renaming, &name)?,
        };
        let outputs = outputs(list(node, "outputs")?, renaming)?;
        let node = RawNode { name, operation, arguments, outputs, calls, no_grad };
        refuse_training(&node)?;
        self.nodes.push(node);
        Ok(())
    }

    /// `with torch.no_grad():` inside forward: the inner graph is laid in place.
    fn no_grad_block(
        &mut self,
        node: &Json,
        name: &str,
        calls: Vec<Call>,
        no_grad: bool,
        renaming: &Renaming,
    ) -> Result<(), ModelError> {
        let given = list(node, "inputs")?;
        let argument_of =
            |index: usize| field(given.get(index).ok_or_else(|| bad("a block has too few inputs"))?, "arg");
        let enabled = argument_of(0)?
            .get("as_bool")
            .and_then(Json::as_bool)
            .ok_or_else(|| bad("a block does not say its mode"))?;
        let inner = argument_of(1)?.pointer("/as_graph/graph").ok_or_else(|| bad("a block has no graph"))?;
        let mut inside = Renaming { known: BTreeMap::new(), prefix: format!("{name}/") };
        for (placeholder, input) in list(inner, "inputs")?.iter().zip(&given[2..]) {
            let placeholder = text(only(placeholder)?.1, "name")?;
            match argument(field(input, "arg")?, renaming)? {
                RawArgument::Use(outer) => inside.known.insert(placeholder.to_owned(), outer),
                _ => return Err(bad("a block is given something that is no tensor")),
            };
        }
        self.graph(inner, no_grad || !enabled, &inside)?;
        let results = list(inner, "outputs")?
            .iter()
            .map(|output| match argument(output, &inside)? {
                RawArgument::Use(name) => Ok(name),
                _ => Err(bad("a block hands out something that is no tensor")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = outputs(list(node, "outputs")?, renaming)?;
        for (index, (output, result)) in outputs.into_iter().zip(results).enumerate() {
            self.nodes.push(RawNode {
                name: format!("{name}/{index}"),
                operation: RawOperation::Aten(Operator::find("aten::alias", "")?),
                arguments: vec![RawArgument::Use(result)],
                outputs: vec![output],
                calls: calls.clone(),
                no_grad: no_grad || !enabled,
            });
        }
        Ok(())
    }

    /// `nn_module_stack`: entries `key,path,type` joined by `;`, outermost first. A type holds no comma, a path may.
    fn calls(&self, stack: &str) -> Vec<Call> {
        stack
            .split(';')
            .filter_map(|entry| {
                let (head, _type) = entry.rsplit_once(',')?;
                let cuts: Vec<usize> = head.match_indices(',').map(|(at, _)| at).collect();
                let cut = cuts.iter().find(|&&cut| self.paths.contains(&head[cut + 1..])).or(cuts.first())?;
                let path = &head[cut + 1..];
                self.paths.contains(path).then(|| Call { key: head[..*cut].to_owned(), path: path.to_owned() })
            })
            .collect()
    }
}

/// The operator of a node: only ATen's, and none that reaches beyond its arguments.
fn find(target: &str, node: &str) -> Result<RawOperation, ModelError> {
    let unknown = |why: &str| {
        ModelError::refused(
            format!("operator {target} (node {node}) {why}"),
            "camlens runs operators of ATen; replace custom operators before exporting",
        )
    };
    let mut parts = target.split('.');
    let (Some(space), Some(name)) = (parts.next(), parts.next()) else { return Err(unknown("is not known")) };
    if matches!(space, "_operator" | "math" | "torch") {
        return Symbolic::find(name).map(RawOperation::Symbolic).ok_or_else(|| unknown("is not known"));
    }
    if space != "aten" {
        return Err(unknown("is not one of ATen's"));
    }
    if FORBIDDEN.contains(&name) {
        return Err(unknown("reaches beyond its tensors and is never run"));
    }
    if RANDOM.contains(&name) {
        return Err(ModelError::refused(
            format!("{target} (node {node}) is random"),
            "explanations need a deterministic model: model.eval()",
        ));
    }
    if matches!(name, "_native_multi_head_attention" | "_transformer_encoder_layer_fwd") {
        return Err(ModelError::refused(format!("{target} (node {node}) has no derivative"), NO_GRADIENT_ADVICE));
    }
    let overload = parts.next().unwrap_or("default");
    let overload = if overload == "default" { "" } else { overload };
    let operator =
        Operator::find(&format!("aten::{name}"), overload).map_err(|_| unknown("is not in this libtorch (2.11)"))?;
    let written = operator.schema().arguments.iter().filter(|a| a.alias == Alias::Written).count();
    if written > 1 || name.ends_with("_out") || overload.contains("out") {
        return Err(unknown("writes into tensors that it is given"));
    }
    Ok(RawOperation::Aten(operator))
}

/// Arguments by name → by position, with the schema's defaults.
fn arrange(
    operator: &Operator,
    given: &[Json],
    renaming: &Renaming,
    node: &str,
) -> Result<Vec<RawArgument>, ModelError> {
    let schema = operator.schema();
    let mut slots: Vec<Option<RawArgument>> =
        schema.arguments.iter().map(|a| a.default.clone().map(RawArgument::Literal)).collect();
    for (index, input) in given.iter().enumerate() {
        let name = input.get("name").and_then(Json::as_str).unwrap_or("");
        let position = if name.is_empty() { Some(index) } else { schema.position(name) };
        let slot = position.and_then(|p| slots.get_mut(p));
        let slot = slot.ok_or_else(|| bad(format!("node {node}: {operator} has no argument {name}")))?;
        *slot = Some(argument(field(input, "arg")?, renaming)?);
    }
    slots
        .into_iter()
        .zip(&schema.arguments)
        .map(|(slot, a)| slot.ok_or_else(|| bad(format!("node {node}: argument {} of {operator} is missing", a.name))))
        .collect()
}

/// Evaluation mode is what is explained.
fn refuse_training(node: &RawNode) -> Result<(), ModelError> {
    let RawOperation::Aten(operator) = &node.operation else { return Ok(()) };
    let flag = if is_dropout(node.operator_name()) { "train" } else { "training" };
    let on = operator
        .schema()
        .position(flag)
        .and_then(|i| node.arguments.get(i))
        .is_some_and(|a| matches!(a, RawArgument::Literal(Value::Bool(true))));
    if on {
        return Err(ModelError::refused(
            format!("node {} ({operator}) is in training mode", node.name),
            "call model.eval() before torch.export.export",
        ));
    }
    Ok(())
}

/// One argument of the JSON, an object with one key.
fn argument(json: &Json, renaming: &Renaming) -> Result<RawArgument, ModelError> {
    let (kind, value) = only(json)?;
    let name = |v: &Json| Ok::<String, ModelError>(renaming.apply(text(v, "name")?));
    let items = || value.as_array().ok_or_else(|| bad(format!("{kind} is no list")));
    let integer = |v: &Json| v.as_i64().ok_or_else(|| bad(format!("{kind} is no integer")));
    let literal = |v: Value| Ok(RawArgument::Literal(v));
    match kind {
        "as_none" => literal(Value::None),
        "as_tensor" => Ok(RawArgument::Use(name(value)?)),
        "as_tensors" => Ok(RawArgument::List(
            items()?.iter().map(|v| Ok(RawElement::Use(name(v)?))).collect::<Result<_, ModelError>>()?,
        )),
        "as_optional_tensor" => match value.get("as_tensor") {
            Some(tensor) => Ok(RawArgument::Use(name(tensor)?)),
            None => literal(Value::None),
        },
        "as_optional_tensors" => Ok(RawArgument::List(
            items()?
                .iter()
                .map(|v| match v.get("as_tensor") {
                    Some(tensor) => Ok(RawElement::Use(name(tensor)?)),
                    None => Ok(RawElement::None),
                })
                .collect::<Result<_, ModelError>>()?,
        )),
        "as_int" => literal(Value::Int(integer(value)?)),
        "as_ints" => literal(Value::Ints(items()?.iter().map(integer).collect::<Result<_, _>>()?)),
        "as_float" => literal(Value::Float(float(value)?)),
        "as_floats" => literal(Value::Floats(items()?.iter().map(float).collect::<Result<_, _>>()?)),
        "as_bool" => literal(Value::Bool(value.as_bool().ok_or_else(|| bad("as_bool is no boolean"))?)),
        "as_bools" => literal(Value::Bools(
            items()?
                .iter()
                .map(|v| v.as_bool().ok_or_else(|| bad("as_bools holds no boolean")))
                .collect::<Result<_, _>>()?,
        )),
        "as_string" => literal(Value::String(value.as_str().ok_or_else(|| bad("as_string is no text"))?.to_owned())),
        "as_sym_int" | "as_sym_float" | "as_sym_bool" => Ok(match symbol(value, renaming)? {
            RawElement::Use(name) => RawArgument::Use(name),
            RawElement::Int(v) => RawArgument::Literal(Value::Int(v)),
            RawElement::Float(v) => RawArgument::Literal(Value::Float(v)),
            RawElement::Bool(v) => RawArgument::Literal(Value::Bool(v)),
            RawElement::None => RawArgument::Literal(Value::None),
        }),
        "as_sym_ints" | "as_sym_floats" | "as_sym_bools" => {
            let elements = items()?.iter().map(|v| symbol(v, renaming)).collect::<Result<Vec<_>, _>>()?;
            Ok(RawArgument::List(elements))
        }
        "as_scalar_type" => literal(Value::Int(dtype::scalar_type(dtype::kind(integer(value)?)?))),
        "as_memory_format" => literal(Value::Int(dtype::memory_format(integer(value)?)?)),
        "as_layout" => literal(Value::Int(dtype::layout(integer(value)?)?)),
        // The device is ours to choose, never the file's.
        "as_device" => literal(Value::Device(Device::Cpu)),
        other => Err(ModelError::refused(
            format!("the graph holds an argument of kind {other}"),
            "camlens does not know it; export a model without it",
        )),
    }
}

/// `{"as_name": …}`, or a number under `as_int`, `as_float` or `as_bool`.
fn symbol(json: &Json, renaming: &Renaming) -> Result<RawElement, ModelError> {
    let (kind, value) = only(json)?;
    match kind {
        "as_name" => Ok(RawElement::Use(renaming.apply(value.as_str().ok_or_else(|| bad("as_name is no text"))?))),
        "as_int" => value.as_i64().map(RawElement::Int).ok_or_else(|| bad("as_int is no integer")),
        "as_float" => Ok(RawElement::Float(float(value)?)),
        "as_bool" => value.as_bool().map(RawElement::Bool).ok_or_else(|| bad("as_bool is no boolean")),
        other => Err(bad(format!("a size of kind {other}"))),
    }
}

/// A float, which may be written as a text.
fn float(json: &Json) -> Result<f64, ModelError> {
    match json {
        Json::Number(number) => number.as_f64().ok_or_else(|| bad("a float is out of range")),
        Json::String(text) => match text.as_str() {
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            "NaN" => Ok(f64::NAN),
            other => Err(bad(format!("{other} is no float"))),
        },
        _ => Err(bad("a float was expected")),
    }
}

fn outputs(json: &[Json], renaming: &Renaming) -> Result<Vec<Option<String>>, ModelError> {
    let mut flat = Vec::new();
    for output in json {
        let (kind, value) = only(output)?;
        let name = |v: &Json| Ok::<String, ModelError>(renaming.apply(text(v, "name")?));
        match kind {
            "as_tensor" => flat.push(Some(name(value)?)),
            "as_tensors" => {
                for tensor in value.as_array().ok_or_else(|| bad("as_tensors is no list"))? {
                    flat.push(Some(name(tensor)?));
                }
            }
            "as_sym_int" | "as_sym_float" | "as_sym_bool" => flat.push(Some(renaming.apply(text(value, "as_name")?))),
            "as_none" => flat.push(None),
            "as_optional_tensor" => flat.push(value.get("as_tensor").map(name).transpose()?),
            other => {
                return Err(ModelError::refused(
                    format!("the graph holds an output of kind {other}"),
                    "camlens does not know it; export a model without it",
                ));
            }
        }
    }
    Ok(flat)
}

/// The outputs in order, with the names that the model's own result gives them.
fn output_names(signature: &Json, module: &Json) -> Result<Vec<(String, Option<String>)>, ModelError> {
    let mut values = Vec::new();
    for spec in list(signature, "output_specs")? {
        let (kind, spec) = only(spec)?;
        match kind {
            "user_output" => {
                let (kind, argument) = only(field(spec, "arg")?)?;
                values.push(if kind == "as_tensor" { Some(text(argument, "name")?.to_owned()) } else { None });
            }
            "buffer_mutation" | "user_input_mutation" | "token" => {}
            other => {
                return Err(ModelError::refused(
                    format!("the model has an output of kind {other}"),
                    "export it without it",
                ));
            }
        }
    }
    let spec = module
        .get("module_call_graph")
        .and_then(Json::as_array)
        .and_then(|calls| calls.iter().find(|c| c.get("fqn").and_then(Json::as_str) == Some("")))
        .and_then(|root| root.pointer("/signature/out_spec"))
        .and_then(Json::as_str)
        .and_then(|text| serde_json::from_str::<Json>(text).ok());
    let mut names = Vec::new();
    if let Some(tree) = spec.as_ref().and_then(|spec| spec.get(1)) {
        leaf_names(tree, &mut Vec::new(), &mut names);
    }
    if names.len() != values.len() {
        names = (0..values.len()).map(|i| i.to_string()).collect();
    }
    Ok(names
        .into_iter()
        .zip(values)
        .map(|(name, value)| (if name.is_empty() { "0".into() } else { name }, value))
        .collect())
}

/// The paths of a result's leaves: keys of dictionaries, positions in lists and tuples.
fn leaf_names(tree: &Json, at: &mut Vec<String>, names: &mut Vec<String>) {
    let Some(kind) = tree.get("type").and_then(Json::as_str) else {
        names.push(at.join("."));
        return;
    };
    let children = tree.get("children_spec").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let mut keys: Vec<String> = (0..children.len()).map(|i| i.to_string()).collect();
    if kind.to_lowercase().ends_with("dict") {
        let context = match tree.get("context") {
            Some(Json::String(text)) => serde_json::from_str(text).unwrap_or(Json::Null),
            Some(other) => other.clone(),
            None => Json::Null,
        };
        // A defaultdict's context is [factory, keys], the others' the keys.
        let list = if kind.ends_with("defaultdict") { context.get(1).cloned().unwrap_or(Json::Null) } else { context };
        let named = list.as_array().map(|keys| {
            keys.iter().map(|k| k.as_str().map_or_else(|| k.to_string(), str::to_owned)).collect::<Vec<_>>()
        });
        if let Some(named) = named.filter(|n| n.len() == children.len()) {
            keys = named;
        }
    }
    for (key, child) in keys.into_iter().zip(children) {
        at.push(key);
        leaf_names(child, at, names);
        at.pop();
    }
}
