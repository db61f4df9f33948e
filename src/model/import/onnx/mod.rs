//! The importer of ONNX: reads a graph, and lowers its operators to those of ATen.
//!
//! `outline` reads the messages without the weights' data, and `tensors` the weights. `graph` walks the nodes; `lower`
//! has the table of operators. Each is run with example inputs as it is lowered (`builder`), so that constants are
//! folded and sizes known; `numbers` follows what is computed from sizes. `patterns` puts together what exporters took
//! apart, and `names` finds modules.

mod attention;
mod builder;
mod graph;
mod lower;
pub(in crate::model) mod message;
mod names;
mod numbers;
mod operands;
mod outline;
mod patterns;
mod program;
#[cfg(test)]
mod supported;
mod tensors;
mod value;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{Importer, PictureSize};
use crate::model::dimension::{Dimension, Sizes};
use crate::model::functional;
use crate::model::guard::Guard;
use crate::model::interpret;
use crate::model::program::{Program, ProgramInput, WeightSource};
use crate::model::{LoadLimits, ModelError, dtype};
use builder::Builder;
use graph::Lowering;
use message::{GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto};
use outline::Outline;
use tensors::Files;
use value::Val;

/// Models of ONNX, `.onnx`.
pub struct Onnx;

/// The side of the example picture of a model that takes pictures of any size.
const SIDE: i64 = 224;
/// Rows of the first example input; the second one has one.
const ROWS: i64 = 2;

impl Importer for Onnx {
    fn file_name(&self) -> &'static str {
        "model.onnx"
    }

    fn import(&self, file: &Path, picture: PictureSize, limits: &LoadLimits) -> Result<Program, ModelError> {
        let (files, model, weights) = read(file, limits)?;
        let graph = model.graph.as_ref().ok_or_else(|| unlike("it holds no graph"))?;
        let input = input(graph, picture, &weights)?;
        let mut result = None;
        for shape in attempts(&input.shape) {
            let attempt = ProgramInput { name: input.name.clone(), shape, ..input };
            match lowered(&model, graph, &weights, attempt, limits) {
                Ok(mut program) => {
                    program.files = files.others();
                    return Ok(program);
                }
                Err(error) => result = Some(error),
            }
        }
        Err(result.unwrap_or_else(|| unlike("it has no input")))
    }
}

fn unlike(problem: &str) -> ModelError {
    ModelError::Format {
        what: format!("the file is no model of ONNX: {problem}"),
        advice: "save it with onnx.save, or export it again".to_owned(),
    }
}

/// Runs a model on one tensor, of any size and dtype, and gives its outputs; none for one that is no tensor. So
/// operators are compared with another implementation.
///
/// # Errors
/// Those of an import, and of operators on this tensor.
pub fn evaluate(file: &Path, tensor: &Tensor, limits: &LoadLimits) -> Result<Vec<Option<Tensor>>, ModelError> {
    let (_, model, weights) = read(file, limits)?;
    let graph = model.graph.as_ref().ok_or_else(|| unlike("it holds no graph"))?;
    let name = graph.input.iter().map(ValueInfoProto::name).find(|name| !weights.contains_key(*name));
    let shape = tensor.size().into_iter().map(Dimension::Fixed).collect();
    let name = name.unwrap_or_default().to_owned();
    let input = ProgramInput { name, kind: tensor.f_kind()?, shape, channels_last: false };
    // Another example: what is computed for it must not show in the results.
    let example = match tensor.f_kind()? {
        kind if dtype::is_floating_point(kind) => tensor.f_add_scalar(0.25)?.f_to_kind(kind)?,
        _ => tensor.shallow_clone(),
    };
    let program = lowered_with(&model, graph, &weights, input, vec![example], limits)?;
    let functional = functional::functionalise(&program, None)?;
    let values: Vec<_> = functional.outputs.iter().filter_map(|(_, value)| *value).collect();
    let nodes: Vec<_> = functional.traced.into_iter().map(|traced| traced.node).collect();
    let (guard, count) = (Guard::new(limits.max_value_bytes), functional.names.len());
    let input = (functional.input, tensor);
    let mut found = interpret::outputs(&nodes, &functional.constants, input, &values, count, guard)?.into_iter();
    Ok(functional.outputs.iter().map(|(_, value)| value.and_then(|_| found.next().flatten())).collect())
}

/// What a file says of itself besides its graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// For people; empty if there is none.
    pub documentation: String,
    /// What exporters write, by key.
    pub entries: BTreeMap<String, String>,
}

/// Reads what a file says of itself.
///
/// # Errors
/// As [`Importer::import`].
pub fn file_facts(file: &Path, limits: &LoadLimits) -> Result<FileFacts, ModelError> {
    let Outline { model, .. } = outline::read(file, Files::open(file, limits)?.own(), limits)?;
    let entry = |entry: &message::StringStringEntryProto| (entry.key().to_owned(), entry.value().to_owned());
    Ok(FileFacts {
        documentation: model.doc_string().to_owned(),
        entries: model.metadata_props.iter().map(entry).collect(),
    })
}

/// Reads a file and all weights.
fn read(file: &Path, limits: &LoadLimits) -> Result<(Files, ModelProto, Initializers), ModelError> {
    let mut files = Files::open(file, limits)?;
    let Outline { model, data } = outline::read(file, files.own(), limits)?;
    let mut weights = BTreeMap::new();
    if let Some(graph) = &model.graph {
        if !graph.sparse_initializer.is_empty() {
            return Err(ModelError::refused("the model has sparse weights", "save it with dense ones"));
        }
        for (tensor, place) in graph.initializer.iter().zip(data) {
            let read = files.initializer(tensor, place)?;
            if weights.insert(tensor.name().to_owned(), read).is_some() {
                return Err(ModelError::malformed("graph", format!("weight {} is there twice", tensor.name())));
            }
        }
    }
    Ok((files, model, weights))
}

/// Weights by name, with where each can be read again.
type Initializers = BTreeMap<String, (Tensor, Option<Arc<dyn WeightSource>>)>;

/// The one picture that the model takes. Old files list their weights as inputs, too.
fn input(graph: &GraphProto, picture: PictureSize, weights: &Initializers) -> Result<ProgramInput, ModelError> {
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|input| !weights.contains_key(input.name())).collect();
    let [input] = inputs.as_slice() else {
        let names = inputs.iter().take(16).map(|input| input.name()).collect::<Vec<_>>().join(", ");
        return Err(ModelError::refused(
            format!("the model takes {} inputs ({names}), and camlens gives it one image", inputs.len()),
            "cut the model so that its only input is the image, with onnx.utils.extract_model",
        ));
    };
    let name = input.name();
    let tensor = match &input.r#type {
        Some(TypeProto { tensor_type: Some(tensor) }) => tensor,
        _ => return Err(ModelError::refused(format!("input {name} is no tensor"), builder::ADVICE)),
    };
    let kind = tensors::dtype(tensor.elem_type())?.kind;
    let Some(shape) = &tensor.shape else {
        return Err(ModelError::refused(
            format!("input {name} has no shape"),
            "give it one before saving: onnx.tools.update_model_dims.update_inputs_outputs_dims",
        ));
    };
    let mut fixed: Vec<Option<i64>> = shape.dim.iter().map(|dim| dim.dim_value.filter(|&size| size > 0)).collect();
    let is_channels = |size: Option<i64>| matches!(size, Some(1 | 3 | 4));
    let is_channels_last = fixed.len() == 4 && is_channels(fixed[3]) && !is_channels(fixed[1]);
    if fixed.len() == 4 && !is_channels_last && fixed[1].is_none() {
        fixed[1] = channels_of(graph, name, weights);
    }
    let [height, width] = picture.map_or([SIDE, SIDE], |sides| sides.map(i64::from));
    let (height_axis, width_axis) = if is_channels_last { (1, 2) } else { (2, 3) };
    let mut variables: Vec<String> = Vec::new();
    let dimension = |(axis, dim): (usize, &message::tensor_shape_proto::Dimension)| {
        if let Some(size) = fixed[axis] {
            return Dimension::Fixed(size);
        }
        let example = match axis {
            0 => ROWS,
            _ if axis == height_axis => height,
            _ if axis == width_axis => width,
            _ => SIDE,
        };
        // Axes of the same name vary together.
        let named = Some(dim.dim_param()).filter(|name| !name.is_empty() && *name != "?" && axis != 0);
        let variable = match named.and_then(|name| variables.iter().position(|known| known == name)) {
            Some(variable) => variable,
            None => {
                variables.push(named.unwrap_or_default().to_owned());
                variables.len() - 1
            }
        };
        Dimension::Dynamic { example, sizes: Sizes::any(variable as u32) }
    };
    let shape = shape.dim.iter().enumerate().map(dimension).collect();
    Ok(ProgramInput { name: name.to_owned(), kind, shape, channels_last: false })
}

/// The number of channels that the first convolution takes.
fn channels_of(graph: &GraphProto, input: &str, weights: &Initializers) -> Option<i64> {
    let reads = |node: &&NodeProto| node.op_type() == "Conv" && node.input.first().is_some_and(|name| name == input);
    let node = graph.node.iter().find(reads)?;
    let groups = node.attribute.iter().find(|attribute| attribute.name() == "group").map_or(1, |group| group.i());
    weights.get(node.input.get(1)?)?.0.size().get(1)?.checked_mul(groups)
}

/// The shapes to try: as the file has it; with fixed sides; with a fixed number of rows, too. A file may call an axis
/// free, and have its size fixed in a Reshape.
fn attempts(shape: &[Dimension]) -> Vec<Vec<Dimension>> {
    let fixed = |from: usize| -> Vec<Dimension> {
        let fix = |(axis, dimension): (usize, &Dimension)| match dimension {
            Dimension::Dynamic { example, .. } if axis >= from => {
                Dimension::Fixed(if axis == 0 { 1 } else { *example })
            }
            other => *other,
        };
        shape.iter().enumerate().map(fix).collect()
    };
    let mut attempts = vec![shape.to_vec(), fixed(1), fixed(0)];
    attempts.dedup();
    attempts
}

/// A second example input, all of whose free axes have other sizes.
fn other_example(kind: Kind, shape: &[Dimension]) -> Result<Option<Tensor>, ModelError> {
    let is_free = |dimension: &Dimension| dimension.fixed().is_none();
    if !shape.iter().any(is_free) {
        return Ok(None);
    }
    let size: Vec<i64> = shape
        .iter()
        .enumerate()
        .map(|(axis, dimension)| match dimension {
            Dimension::Fixed(size) => *size,
            Dimension::Dynamic { .. } if axis == 0 => 1,
            // Twice: no stride of a network hides that.
            Dimension::Dynamic { example, .. } => example.saturating_mul(2),
        })
        .collect();
    Ok(Some(Tensor::f_randn(&size, (Kind::Float, Device::Cpu))?.f_to_kind(kind)?))
}

/// Largest example input, in elements.
const MAX_EXAMPLE: i64 = 1 << 26;

fn lowered(
    model: &ModelProto,
    graph: &GraphProto,
    weights: &Initializers,
    input: ProgramInput,
    limits: &LoadLimits,
) -> Result<Program, ModelError> {
    let elements = input.shape.iter().try_fold(4i64, |count, dimension| count.checked_mul(dimension.example()));
    if elements.is_none_or(|elements| elements > MAX_EXAMPLE) || !dtype::is_floating_point(input.kind) {
        return Err(ModelError::refused(
            format!("input {} is {:?} of {}", input.name, input.kind, sizes(&input.shape)),
            "camlens gives a model images of floating-point numbers, [N, C, H, W] or [N, H, W, C]",
        ));
    }
    let mut runs = vec![functional::example(input.kind, &input.shape)?];
    runs.extend(other_example(input.kind, &input.shape)?);
    lowered_with(model, graph, weights, input, runs, limits)
}

/// As [`lowered`], with these example inputs.
fn lowered_with(
    model: &ModelProto,
    graph: &GraphProto,
    weights: &Initializers,
    input: ProgramInput,
    runs: Vec<Tensor>,
    limits: &LoadLimits,
) -> Result<Program, ModelError> {
    let builder = Builder::new(runs.len(), limits);
    let mut lowering = Lowering::new(model, graph, builder, limits.max_nodes)?;
    for (name, (tensor, source)) in weights {
        let constant = lowering.builder.constant(tensor.shallow_clone(), source.clone());
        lowering.define(name, Val::Tensor(constant))?;
    }
    let known = lowering.builder.input(&input.name, runs);
    lowering.define(&input.name, Val::Tensor(known))?;
    let outputs: HashSet<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
    tch::no_grad(|| lowering.nodes(&graph.node, &outputs))?;
    let mut named = Vec::new();
    for name in graph.output.iter().map(ValueInfoProto::name) {
        let value = lowering
            .find(name)
            .cloned()
            .ok_or_else(|| ModelError::malformed("graph", format!("nothing defines the output {name}")))?;
        let value = match value {
            Val::Quantized(_) | Val::Absent => None,
            value => Some(lowering.builder.tensor(&value)?.name.clone()),
        };
        named.push((name.to_owned(), value));
    }
    Ok(program::program(lowering.builder, input, named, limits))
}

fn sizes(shape: &[Dimension]) -> String {
    let size = |dimension: &Dimension| dimension.fixed().map_or_else(|| "?".to_owned(), |size| size.to_string());
    format!("[{}]", shape.iter().map(size).collect::<Vec<_>>().join(", "))
}

/// The operators of ONNX that are read, in the order of their names; `If` and functions besides.
pub fn operators() -> BTreeSet<&'static str> {
    lower::OPERATORS.iter().map(|(name, ..)| *name).chain(["If"]).collect()
}
