//! Loads a model: imports its program, makes it functional, runs it once to check it, and folds its constants.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::assembly::Assembly;
use super::axes::Axes;
use super::description::ExplainDescription;
use super::dimension::Dimension;
use super::functional::{self, Functional, Probe};
use super::graph::{Graph, Input, Output};
use super::guard::Guard;
use super::import::{self, identity};
use super::interpret::{self, Trace};
use super::layers::Layers;
use super::loaded::Model;
use super::node::{Node, ValueId, ValueInfo};
use super::program::Program;
use super::repository::VersionFiles;
use super::stored::Stored;
use super::{LoadLimits, ModelError, dtype, rectifier};
use crate::torch::Value;

/// Largest constant that is folded at load, in bytes.
const MAX_FOLDED_BYTES: usize = 64 << 20;

/// Largest example input in double precision, in bytes.
const MAX_EXAMPLE_BYTES: i64 = 1 << 30;

impl Graph {
    /// Reads a model's file, makes its program functional, and checks that the functional form gives what the original
    /// gives.
    pub fn load(file: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        Self::from_program(&import::import(file, None, limits)?)
    }

    /// As [`Graph::load`], of a program that an importer has read.
    pub(super) fn from_program(program: &Program) -> Result<Self, ModelError> {
        let mut graph = Imported::run(program)?.graph;
        if let Ok(logits) = graph.score(None) {
            graph.find_layouts(&Axes::of(&graph), &ExplainDescription::default(), logits);
        }
        Ok(graph)
    }
}

/// A graph, and the results of its run at load.
struct Imported {
    graph: Graph,
    /// The input of the run.
    example: Tensor,
    /// The outputs of the run that are tensors.
    results: Vec<(ValueId, Tensor)>,
    limits: LoadLimits,
}

impl Imported {
    /// Runs the functional program once, and before that, if it writes into its tensors, the original program to
    /// compare with. Constants that have a source may leave memory afterwards.
    fn run(program: &Program) -> Result<Self, ModelError> {
        let (kind, shape) = image_input(program)?;
        let channels_last = program.inputs.iter().any(|input| input.channels_last);
        let example = functional::example(kind, &shape)?;
        let probe = if program.writes() { Some(Probe::run(program, &example)?) } else { None };
        let functional = functional::functionalise(program, probe.as_ref())?;
        let exported =
            probe.map(|probe| probe.into_values(program.outputs.iter().filter_map(|(_, name)| name.as_deref())));
        let output_values: Vec<ValueId> = functional.outputs.iter().filter_map(|(_, v)| *v).collect();
        let layers = Layers::new(&functional.traced, &functional.elided, &output_values, &program.paths);
        let Functional { traced, names, mut constants, originals, input, outputs, .. } = functional;
        let mut nodes: Vec<Node> = traced.into_iter().map(|traced_node| traced_node.node).collect();
        let guard = Guard::new(program.limits.max_value_bytes);
        let trace = Trace::run(&nodes, &constants, (input, &example), &output_values, names.len(), guard)?;
        check_outputs(program, &outputs, &trace, exported.as_ref())?;
        drop(exported);
        rectifier::mark(&mut nodes, &constants);
        let nodes = fold(nodes, &mut constants, &trace);
        let values = names
            .into_iter()
            .enumerate()
            .map(|(index, name)| {
                let id = ValueId(index as u32);
                ValueInfo {
                    name,
                    shape: trace.shape(id).map(<[i64]>::to_vec),
                    kind: trace.kind(id),
                    differentiable: trace.is_differentiable(id),
                }
            })
            .collect();
        let results = output_values.iter().filter_map(|&v| Some((v, trace.tensor(v)?.shallow_clone()))).collect();
        let constants = constants
            .into_iter()
            .map(|(id, tensor)| {
                let source = originals.get(&id).and_then(|name| program.weights.source(name));
                Ok((id, Arc::new(Stored::new(tensor, source)?)))
            })
            .collect::<Result<_, ModelError>>()?;
        let graph = Graph {
            values,
            nodes,
            constants,
            input: Input { value: input, kind, shape, channels_last },
            outputs: outputs.into_iter().map(|(name, value)| Output { name, value }).collect(),
            layers,
            layouts: Vec::new(),
        };
        Ok(Imported { graph, example, results, limits: program.limits.clone() })
    }

    /// Most rows in a batch: one when the batch is fixed, or when a row's result depends on the others; else as many as
    /// the program's own constraint allows. The run at load had several rows; its first row is run alone and
    /// compared.
    fn max_rows(&self) -> Result<Option<u32>, ModelError> {
        let Graph { input, nodes, constants, values, .. } = &self.graph;
        let [batch, ..] = input.shape;
        let rows = batch.example();
        if batch == Dimension::Fixed(1) || rows == 1 {
            return Ok(Some(1));
        }
        let first_row = self.example.f_narrow(0, 0, 1)?;
        let wanted: Vec<ValueId> = self.results.iter().map(|(value, _)| *value).collect();
        let guard = Guard::new(self.limits.max_value_bytes);
        let constants =
            constants.iter().map(|(id, stored)| Ok((*id, stored.tensor()?))).collect::<Result<_, ModelError>>()?;
        let alone = interpret::outputs(nodes, &constants, (input.value, &first_row), &wanted, values.len(), guard)
            .map_err(|error| {
                ModelError::refused(
                    format!("the model does not run with one row: {error}"),
                    "export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim.AUTO},)",
                )
            })?;
        for ((_, all), one) in self.results.iter().zip(&alone) {
            let Some(one) = one else { continue };
            let (all_size, one_size) = (all.size(), one.size());
            if all_size.first() != Some(&rows) || one_size.first() != Some(&1) || all_size[1..] != one_size[1..] {
                return Ok(Some(1));
            }
            let (a, b) = (all.f_narrow(0, 0, 1)?.f_to_kind(Kind::Double)?, one.f_to_kind(Kind::Double)?);
            let difference = a.f_sub(&b)?.f_norm()?.f_double_value(&[])?;
            let size = b.f_norm()?.f_double_value(&[])?;
            let tolerance = if input.kind == Kind::Float || input.kind == Kind::Double { 1e-3 } else { 0.1 };
            if difference > tolerance * size.max(1e-6) {
                return Ok(Some(1));
            }
        }
        Ok(batch.largest().map(|largest| u32::try_from(largest).unwrap_or(u32::MAX)))
    }
}

impl Model {
    /// Loads the file and `model.toml` of a version's directory, a bare model file with the defaults, or the built-in
    /// model at [`identity::PLACE`].
    ///
    /// # Errors
    /// What is wrong with the file or its description, in words for the person who has it.
    pub fn load(name: &str, version: i64, path: &Path, limits: &LoadLimits) -> Result<Self, ModelError> {
        let (program, digest, files) = if identity::is_builtin(path) {
            identity::place(path)?;
            (identity::program(limits)?, identity::digest(), VersionFiles::described(identity::description()))
        } else {
            let files = VersionFiles::find(path)?;
            let program = import::import(&files.model, files.picture, limits)?;
            let digest = digest(&files.model, &program.files)?;
            (program, digest, files)
        };
        let imported = Imported::run(&program)?;
        let VersionFiles { loaded, mut notices, .. } = files;
        notices.extend(program.notices.iter().cloned());
        drop(program);
        let max_rows = imported.max_rows()?;
        Assembly { name, version, digest, max_rows, notices, graph: imported.graph, loaded }.finish()
    }
}

/// The one image that a model must take.
fn image_input(program: &Program) -> Result<(Kind, [Dimension; 4]), ModelError> {
    let [input] = program.inputs.as_slice() else {
        return Err(ModelError::refused(
            format!("the model takes {} tensors, and camlens gives it one image", program.inputs.len()),
            "export a wrapper whose forward takes the image alone",
        ));
    };
    if !dtype::is_floating_point(input.kind) {
        return Err(ModelError::refused(
            format!("the model takes {:?} pixels, and a gradient needs floating-point ones", input.kind),
            "export the model without its conversion from integers; model.toml describes preprocessing instead",
        ));
    }
    let shape: [Dimension; 4] = input.shape.as_slice().try_into().map_err(|_| {
        ModelError::refused(
            format!("the model takes {} axes, and camlens gives it images, [N, C, H, W]", input.shape.len()),
            "export a model that takes a batch of images",
        )
    })?;
    if let Dimension::Fixed(batch) = shape[0]
        && batch != 1
    {
        return Err(ModelError::refused(
            format!("the batch was fixed to {batch} at export"),
            "export with an example batch of 2 and dynamic_shapes=({0: torch.export.Dim.AUTO},)",
        ));
    }
    if let Dimension::Dynamic { .. } = shape[1] {
        return Err(ModelError::refused(
            "the number of channels is dynamic",
            "export with a fixed number of channels: only axes 0, 2 and 3 may be dynamic",
        ));
    }
    let sizes = shape.map(Dimension::example);
    let bytes = sizes.iter().try_fold(8i64, |bytes, &size| bytes.checked_mul(size));
    if sizes.iter().any(|&size| size < 1) || bytes.is_none_or(|bytes| bytes > MAX_EXAMPLE_BYTES) {
        return Err(ModelError::refused(
            format!("the model was exported with an image of {sizes:?}"),
            "export it with an image, [N, C, H, W], of the size that it is used with",
        ));
    }
    Ok((input.kind, shape))
}

/// Checks that every output was computed and, for a program that writes into tensors, that its functional form gives
/// the same outputs bit for bit.
fn check_outputs(
    program: &Program,
    outputs: &[(String, Option<ValueId>)],
    trace: &Trace,
    exported: Option<&BTreeMap<String, Value>>,
) -> Result<(), ModelError> {
    let missing = |key: &str| ModelError::malformed("graph", format!("output {key} is not computed"));
    for ((key, value), (_, name)) in outputs.iter().zip(&program.outputs) {
        let (Some(value), Some(name)) = (value, name) else { continue };
        let got = trace.tensor(*value).ok_or_else(|| missing(key))?;
        let Some(exported) = exported else { continue };
        let want = exported.get(name).and_then(Value::tensor).ok_or_else(|| missing(key))?;
        let same = got.size() == want.size()
            && (got.f_equal(want)? || got.f_ne_tensor(got)?.f_any()?.f_int64_value(&[])? != 0);
        if !same {
            return Err(ModelError::refused(
                format!(
                    "camlens could not follow an in-place write: output {key} of its functional form differs from \
                     the exported program's"
                ),
                "clone tensors before writing into them, and please report the model",
            ));
        }
    }
    Ok(())
}

/// Turns the results of nodes that do not depend on the input into constants.
fn fold(nodes: Vec<Node>, constants: &mut BTreeMap<ValueId, Tensor>, trace: &Trace) -> Vec<Node> {
    nodes
        .into_iter()
        .filter(|node| {
            if !interpret::is_fixed(node, |value| constants.contains_key(&value)) {
                return true;
            }
            let results: Option<Vec<(ValueId, Tensor)>> =
                node.defines().map(|value| Some((value, trace.tensor(value)?.shallow_clone()))).collect();
            match results {
                Some(results) if results.iter().all(|(_, t)| bytes(t) <= MAX_FOLDED_BYTES) => {
                    constants.extend(results);
                    false
                }
                _ => true,
            }
        })
        .collect()
}

pub(super) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.f_kind().map_or(8, Kind::elt_size_in_bytes)
}

/// The SHA-256 of a model's file, and of those beside it that it reads.
fn digest(file: &Path, others: &[(PathBuf, PathBuf)]) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    for file in [file].into_iter().chain(others.iter().map(|(_, path)| path.as_path())) {
        let read = |source| ModelError::Read { path: file.to_owned(), source };
        let mut reader = File::open(file).map_err(read)?;
        loop {
            let count = reader.read(&mut buffer).map_err(read)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::relative_error;

    fn fixture(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pt2").join(path)
    }

    fn program(path: &str) -> Result<Program, ModelError> {
        import::import(&fixture(path), None, &LoadLimits::default())
    }

    /// Runs a program as it was exported.
    fn first_output(path: &str, input: &Tensor) -> Tensor {
        let program = program(path).unwrap();
        let probe = Probe::run(&program, input).unwrap();
        let name = program.outputs.iter().find_map(|(_, name)| name.clone()).unwrap();
        probe.into_values([name.as_str()]).remove(&name).unwrap().tensor().unwrap().shallow_clone()
    }

    #[test]
    fn files_of_every_supported_pytorch_load_and_give_the_stored_outputs() {
        for version in ["2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"] {
            for (name, outputs) in [("A", &["logits"][..]), ("B", &["logits", "features"]), ("C", &["logits"])] {
                let at = |suffix: &str| fixture(&format!("{version}/{name}.{suffix}"));
                let graph = Graph::load(&at("pt2"), &LoadLimits::default())
                    .unwrap_or_else(|error| panic!("{version}/{name}: {error}"));
                let input = Tensor::read_npy(fixture("input.npy")).unwrap();
                let guard = Guard::new(1 << 30);
                let from = (graph.input.value, &input);
                let heads: Vec<ValueId> = graph.outputs.iter().filter_map(|output| output.value).collect();
                let constants = graph.constants.iter().map(|(id, stored)| (*id, stored.tensor().unwrap())).collect();
                let trace = Trace::run(&graph.nodes, &constants, from, &heads, graph.values.len(), guard).unwrap();
                for output in outputs {
                    let head = (outputs.len() > 1).then_some(*output);
                    let got = trace.tensor(graph.score(head).unwrap()).unwrap();
                    let want = Tensor::read_npy(fixture(&format!("{name}.{output}.npy"))).unwrap();
                    let error = relative_error(got, &want);
                    assert!(error < 1e-6, "{version}/{name}.{output}: {error}");
                }
            }
        }
    }

    #[test]
    fn files_of_older_pytorch_are_refused_with_the_line_that_saves_them_again() {
        let mut files = vec![fixture("edge/2.6.0_C.decomp_bare_Infinity.pt2")];
        for folder in ["2.6.0", "2.7.1", "2.8.0", "edge/2.7.1", "edge/2.8.0"] {
            files.extend(std::fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().path()));
        }
        assert!(files.len() > 30, "the fixtures are incomplete");
        for file in files {
            let error = program(&file.to_string_lossy()).err().unwrap_or_else(|| panic!("{} loads", file.display()));
            let error = error.to_string();
            assert!(error.contains("torch.export.save(torch.export.load("), "{}: {error}", file.display());
        }
    }

    #[test]
    fn unusual_files_load_or_say_what_is_wrong() {
        let mut unexpected = Vec::new();
        for (name, words) in [
            ("A.bytesio", None),
            ("A.extra", None),
            ("x_f8", Some("2 axes")),
            ("y_kw", Some("4 tensors")),
            ("y_tiedT", Some("2 axes")),
            ("y_views2", Some("2 axes")),
            ("z_const_in", Some("2 axes")),
            ("z_fake", Some("a storage that has 0")),
            ("z_guard", Some("1 axes")),
            ("z_mut", Some("training mode")),
            ("z_mut_decomp", Some("run_decompositions")),
            ("z_nan", Some("2 axes")),
            ("z_nograd", Some("2 axes")),
        ] {
            let file = fixture(&format!("edge/2.11.0/{name}.pt2"));
            let error = Graph::load(&file, &LoadLimits::default()).err().map(|error| error.to_string());
            let as_expected = match (&error, words) {
                (None, None) => true,
                (Some(error), Some(words)) => error.contains(words),
                _ => false,
            };
            if !as_expected {
                unexpected.push(format!("{name}: {error:?}"));
            }
        }
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }

    #[test]
    fn storages_that_are_tied_sliced_transposed_or_expanded_are_read_right() {
        for name in ["tied", "views", "noncontig", "chlast", "dtypes", "zero", "const"] {
            let input = if name == "chlast" { "edge/x_chlast.in.npy" } else { "edge/input.npy" };
            let input = Tensor::read_npy(fixture(input)).unwrap();
            let want = Tensor::read_npy(fixture(&format!("edge/x_{name}.out.npy"))).unwrap();
            let got = first_output(&format!("edge/2.11.0/x_{name}.pt2"), &input);
            let error = relative_error(&got, &want);
            assert!(error < 1e-6, "{name}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_explained_is_refused_with_what_would_help() {
        for (path, words) in [
            ("edge/2.11.0/A.decomp.pt2", "run_decompositions"),
            ("edge/2.11.0/z_cond.pt2", "graph within the graph"),
            ("edge/2.9.1_failed_save_no_model_json.pt2", "did not finish"),
            ("edge/2.11.0/z_multi.pt2", "programs"),
        ] {
            let error = Graph::load(&fixture(path), &LoadLimits::default()).err().map(|e| e.to_string());
            assert!(error.as_ref().is_some_and(|e| e.contains(words)), "{path}: {error:?}");
        }
    }

    #[test]
    fn a_half_precision_model_keeps_its_dtype() {
        let graph = Graph::load(&fixture("edge/2.11.0/A.half.pt2"), &LoadLimits::default()).unwrap();
        assert_eq!(graph.input.kind, Kind::Half);
    }

    #[test]
    fn layers_have_the_names_that_users_know() {
        let graph = Graph::load(&fixture("2.11.0/A.pt2"), &LoadLimits::default()).unwrap();
        let score = graph.score(None).unwrap();
        assert_eq!(graph.default_target(&Axes::of(&graph), score).unwrap(), graph.layer("act").unwrap());
        assert_ne!(
            graph.layer("bn1").unwrap(),
            graph.layer("relu").unwrap(),
            "the value before an in-place change is kept"
        );
        let error = graph.layer("cnov1").unwrap_err().to_string();
        assert!(error.contains("did you mean conv1?") && error.contains("relu"), "{error}");
        assert_eq!(graph.nodes.iter().filter(|n| n.rectifier.is_some()).count(), 2);
    }
}
