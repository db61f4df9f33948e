//! Operators of ONNX, each against ONNX's own results: the tests that `tests/onnx/backend.py` writes into the folder
//! that `CAMLENS_ONNX_NODES` names. Without it, there is nothing to compare with, and the suite passes.

#[path = "../npy/mod.rs"]
mod npy;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use camlens::model::import::onnx;
use camlens::model::{Final, LoadLimits, Model};
use tch::{Kind, Tensor};

/// The bounds of ONNX's own tests.
const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-5;

fn tensor(path: &Path, name: &str) -> Option<Tensor> {
    let npy::Array { shape, values } = npy::find::<f64>(path, name)?;
    let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
    Some(Tensor::from_slice(&values).reshape(shape))
}

fn kind(path: &Path) -> Kind {
    let name = npy::find::<u8>(path, "kind").map(|array| array.values).unwrap_or_default();
    match name.as_slice() {
        b"float32" => Kind::Float,
        b"float64" => Kind::Double,
        b"float16" => Kind::Half,
        b"int64" => Kind::Int64,
        b"int32" => Kind::Int,
        b"int16" => Kind::Int16,
        b"int8" => Kind::Int8,
        b"uint8" => Kind::Uint8,
        b"bool" => Kind::Bool,
        other => panic!("{}: dtype {}", path.display(), String::from_utf8_lossy(other)),
    }
}

/// Compares every output with ONNX's.
fn check(folder: &Path) -> Result<(), String> {
    let arrays = folder.join("arrays.npz");
    let input = tensor(&arrays, "input").expect("an input").to_kind(kind(&arrays));
    let outputs = onnx::evaluate(&folder.join("model.onnx"), &input, &LoadLimits::default());
    let outputs = outputs.map_err(|error| error.to_string())?;
    for (index, got) in outputs.into_iter().enumerate() {
        let Some(want) = tensor(&arrays, &format!("output_{index}")) else { continue };
        let got = got.ok_or_else(|| format!("output {index} is no tensor"))?.to_kind(Kind::Double);
        if got.size() != want.size() {
            return Err(format!("output {index} is of size {:?}, not {:?}", got.size(), want.size()));
        }
        if !got.allclose(&want, RELATIVE, ABSOLUTE, true) {
            let distance = (&got - &want).abs().max().double_value(&[]);
            return Err(format!("output {index} is off by up to {distance:.2e}"));
        }
    }
    Ok(())
}

/// Tests that camlens fails, or refuses, with the reason.
fn known() -> BTreeMap<String, String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx/refused.txt")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
        .collect()
}

#[test]
fn operators_give_what_onnx_expects_or_say_why_not() {
    let Some(root) = std::env::var_os("CAMLENS_ONNX_NODES") else { return };
    tch::set_num_threads(1);
    let mut folders: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    assert!(!folders.is_empty());
    let mut failures = BTreeMap::new();
    for folder in &folders {
        if let Err(problem) = check(folder) {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            failures.insert(name, problem.replace('\n', " "));
        }
    }
    println!("{} tests, {} as ONNX expects", folders.len(), folders.len() - failures.len());
    for (name, problem) in &failures {
        println!("{name}: {problem}");
    }
    let (failed, known): (BTreeSet<_>, BTreeSet<_>) =
        (failures.keys().cloned().collect(), known().into_keys().collect());
    assert_eq!(failed, known, "tests/onnx/refused.txt lists what is refused");
}

/// A model of `tests/fixtures/onnx/edge`, which `tests/onnx/edge.py` writes, and its output there and here.
fn edge(name: &str) -> (Model, Tensor, Tensor) {
    tch::set_num_threads(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/edge");
    let file = folder.join(name).with_extension("onnx");
    let read = |array: &str| {
        let npy::Array { shape, values } = npy::find::<f32>(&file.with_extension("npz"), array).expect("an array");
        Tensor::from_slice(&values).reshape(shape.iter().map(|&size| size as i64).collect::<Vec<_>>())
    };
    let got = onnx::evaluate(&file, &read("input"), &LoadLimits::default()).unwrap().remove(0).unwrap();
    let model = Model::load(name, 1, &file, &LoadLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    (model, got, read("output"))
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    (got - want).norm().double_value(&[]) / want.norm().double_value(&[])
}

fn operators(model: &Model) -> Vec<&str> {
    model.graph.nodes.iter().map(|node| node.operator_name()).collect()
}

#[test]
fn a_model_of_tf2onnx_keeps_its_order_of_axes_and_is_explained_before_its_softmax() {
    let (model, got, want) = edge("channels_last");
    assert!(distance(&got, &want) < 1e-5);
    let about = &model.metadata;
    assert!(about.input.channels_last);
    assert_eq!(about.input.shape.map(|dimension| dimension.fixed()), [None, Some(3), Some(10), Some(10)]);
    assert_eq!((about.scores.class_count, about.scores.last), (Some(4), Final::Softmax));
    assert_eq!(about.max_rows, None, "the batch is free");
    assert_eq!(about.default_target_layers, ["the_r"]);
    assert!(operators(&model).contains(&"linear"), "the bias is the linear layer's: {:?}", operators(&model));
}

#[test]
fn a_model_of_paddle_takes_any_size_and_its_hardswish_is_no_rectifier() {
    let (model, got, want) = edge("free_sizes");
    assert!(distance(&got, &want) < 1e-5);
    let about = &model.metadata;
    assert_eq!(about.input.shape.map(|dimension| dimension.fixed()), [None, Some(3), None, None]);
    assert_eq!((about.scores.class_count, about.scores.last), (Some(4), Final::Softmax));
    assert_eq!((about.rectifiers, about.smooth_activations), (1, 1), "{:?}", operators(&model));
    let found = operators(&model);
    assert!(found.contains(&"hardswish") && found.contains(&"hardsigmoid") && !found.contains(&"hardtanh"));
    assert_eq!(found.iter().filter(|name| ["sym_size", "cat", "reshape"].contains(name)).count(), 0, "{found:?}");
}

#[test]
fn a_quantised_model_is_computed_in_floating_point_and_says_so() {
    let (model, got, want) = edge("quantised");
    assert!(distance(&got, &want) < 0.02, "{}", distance(&got, &want));
    assert!(model.metadata.notices.iter().any(|notice| notice.contains("quantised")));
    assert_eq!(model.metadata.rectifiers, 1, "the cut at 0 is a ReLU");
}

#[test]
fn functions_and_branches_are_taken_in_place() {
    let (model, got, want) = edge("functions");
    assert!(distance(&got, &want) < 1e-5);
    assert_eq!(model.metadata.rectifiers, 3);
    assert!(model.graph.layer("first").is_ok(), "the call is a layer");
}

#[test]
fn weights_beside_the_model_are_read_and_are_part_of_its_digest() {
    let (model, got, want) = edge("external");
    assert!(distance(&got, &want) < 1e-5);
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/edge");
    fs::copy(source.join("external.onnx"), folder.path().join("model.onnx")).unwrap();
    let mut weights = fs::read(source.join("external.data")).unwrap();
    weights[0] ^= 1;
    fs::write(folder.path().join("external.data"), weights).unwrap();
    let other = Model::load("m", 1, folder.path(), &LoadLimits::default()).unwrap();
    assert_ne!(other.metadata.digest, model.metadata.digest);
}

#[test]
fn attention_that_an_exporter_took_apart_is_one_operator() {
    let (model, got, want) = edge("attention");
    assert!(distance(&got, &want) < 1e-5);
    let found = operators(&model);
    let count = |operator| found.iter().filter(|name| **name == operator).count();
    assert_eq!(count("scaled_dot_product_attention"), 2, "{found:?}");
    assert_eq!(count("softmax"), 1, "a mask that depends on the picture: {found:?}");
}

#[test]
fn a_default_layer_that_is_in_no_module_has_the_name_of_its_node() {
    let (model, got, want) = edge("functional");
    assert!(distance(&got, &want) < 1e-5);
    assert_eq!(model.metadata.default_target_layers, ["/Relu"]);
    assert!(model.graph.layer("/Relu").is_ok());
}
