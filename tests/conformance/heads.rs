//! `tests/fixtures/heads`: small classifiers whose target layer, score or probability is easily got wrong. What is
//! right was computed by autograd alone (`tests/reference/heads.py`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use camlens::explain::{ExplainError, Explainer, Head, MapKind, MapSet, Method, Mode, Target};
use camlens::model::{Activation, Final, LoadLimits, Model};
use camlens::plan::Never;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{ZipArchive, ZipWriter};

/// What a net gives for [`picture`].
#[derive(Deserialize)]
struct Wanted {
    /// None: the model has no default layer, and the error says why.
    layer: Option<String>,
    /// Of each class.
    probabilities: Vec<f32>,
    #[serde(default)]
    class_index: u32,
    /// Row by row, at the layer's resolution.
    #[serde(default)]
    grad_cam: Vec<f32>,
    /// Operators that gate the gradient and are not guided, in order.
    gates: Vec<String>,
    #[serde(default)]
    rectifiers: u32,
    /// The guided gradient, summed over the channels, row by row.
    #[serde(default)]
    guided_gradient: Vec<f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heads")
}

fn all() -> BTreeMap<String, Wanted> {
    let text = std::fs::read_to_string(folder().join("wanted.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn each(check: impl Fn(&str, &Wanted, Model)) {
    super::settle();
    let wanted = all();
    assert!(wanted.len() > 20, "the list is not empty");
    for (name, wanted) in &wanted {
        let model = Model::load(name, 1, &folder().join(name).join("1"), &LoadLimits::default());
        check(name, wanted, model.unwrap_or_else(|error| panic!("{name}: {error}")));
    }
}

/// As in `tests/reference/heads.py`.
fn picture() -> Tensor {
    let values: Vec<f32> = (0..3 * 32 * 32).map(|step| (f64::from(step) * 0.37).sin() as f32).collect();
    Tensor::from_slice(&values).view([1, 3, 32, 32])
}

fn distance(found: &Tensor, wanted: &Tensor) -> f64 {
    let (found, wanted) = (found.to_kind(Kind::Double), wanted.to_kind(Kind::Double));
    (found - &wanted).norm().double_value(&[]) / wanted.norm().double_value(&[])
}

#[test]
fn the_default_layer_is_the_map_that_the_classifier_reads_or_there_is_a_sentence() {
    each(|name, wanted, model| {
        let layers = &model.metadata.default_target_layers;
        match &wanted.layer {
            Some(layer) => {
                assert_eq!(
                    layers.as_slice(),
                    std::slice::from_ref(layer),
                    "{name}: {:?}",
                    model.metadata.default_target_problem
                );
            }
            None => {
                assert!(layers.is_empty(), "{name}: {layers:?}");
                let model_layers: Vec<String> =
                    model.metadata.spatial_layers().into_iter().map(str::to_owned).collect();
                let mut explainer = Explainer::new(model, Device::Cpu);
                let method = Method { maps: MapSet::of(&[MapKind::GradCam]), ..Method::default() };
                let Err(ExplainError::Layer(error)) = explainer.forward(&method, &picture(), &Never) else {
                    panic!("{name}: a default request is refused");
                };
                let message = error.to_string();
                if model_layers.is_empty() {
                    assert!(message.contains("only the guided gradient is possible"), "{name}: {message}");
                } else {
                    let last = model_layers.last().unwrap();
                    let listed = format!(
                        "explain.target_layers in model.toml, or in the request; layers that are spatial: {last}"
                    );
                    assert!(message.contains(&listed), "{name}: {message}");
                }
            }
        }
    });
}

#[test]
fn grad_cam_is_that_of_the_definition() {
    each(|name, wanted, model| {
        if wanted.layer.is_none() {
            return;
        }
        let mut explainer = Explainer::new(model, Device::Cpu);
        for (mode, allowed) in [(Mode::Exact, 1e-5), (Mode::Default, 1e-4)] {
            let method = Method { maps: MapSet::of(&[MapKind::GradCam]), mode, ..Method::default() };
            // A second row: batches are read as single frames are.
            let input = Tensor::cat(&[picture(), picture().flip([3i64])], 0);
            let forward = explainer.forward(&method, &input, &Never).unwrap();
            let chosen = forward.classes(&[vec![Target::Class(wanted.class_index)], vec![Target::Top(1)]]);
            let chosen: Vec<_> = chosen.into_iter().map(Result::unwrap).collect();
            let rows = forward.reverse(&chosen, &Never).unwrap().fuse().unwrap();
            let found = rows[0][0].layer_map.as_ref().unwrap();
            let side = if name == "rearranged" { 4 } else { 8 };
            assert_eq!(found.size(), [side, side], "{name}");
            let error = distance(&found.view(-1), &Tensor::from_slice(&wanted.grad_cam));
            assert!(error < allowed, "{name}, {mode:?}: {error}");
        }
    });
}

#[test]
fn rectifiers_that_are_written_in_other_ways_are_guided() {
    let guided = std::cell::Cell::new(0);
    each(|name, wanted, model| {
        if wanted.guided_gradient.is_empty() {
            return;
        }
        guided.set(guided.get() + 1);
        assert_eq!(model.metadata.rectifiers, wanted.rectifiers, "{name}");
        let mut explainer = Explainer::new(model, Device::Cpu);
        for (mode, allowed) in [(Mode::Exact, 1e-5), (Mode::Default, 1e-4)] {
            let method = Method { maps: MapSet::of(&[MapKind::GuidedBackprop]), mode, ..Method::default() };
            let forward = explainer.forward(&method, &picture(), &Never).unwrap();
            let rows = forward.reverse(&[vec![wanted.class_index]], &Never).unwrap().fuse().unwrap();
            let found = rows[0][0].maps.get(MapKind::GuidedBackprop).unwrap();
            let found = found.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).view(-1);
            let error = distance(&found, &Tensor::from_slice(&wanted.guided_gradient));
            assert!(error < allowed, "{name}, {mode:?}: {error}");
        }
    });
    assert_eq!(guided.get(), 7);
}

#[test]
fn gates_that_are_not_guided_are_named() {
    each(|name, wanted, model| {
        let operators: Vec<&str> = model
            .metadata
            .unguided_gates
            .iter()
            .map(|gate| gate.split_once(" (").expect("a node and its operator").1.trim_end_matches(')'))
            .collect();
        assert_eq!(operators, wanted.gates, "{name}");
    });
}

#[test]
fn probabilities_are_the_models_own() {
    each(|name, wanted, model| {
        let head = Head::of(&model.metadata);
        assert_eq!(model.metadata.class_count(), Some(wanted.probabilities.len() as u32), "{name}");
        let mut explainer = Explainer::new(model, Device::Cpu);
        let method = Method { maps: MapSet::of(&[]), mode: Mode::Exact, ..Method::default() };
        let forward = explainer.forward(&method, &picture(), &Never).unwrap();
        let predictions = head.predictions(&forward.row(0).unwrap(), wanted.probabilities.len());
        assert_eq!(predictions.len(), wanted.probabilities.len(), "{name}");
        for prediction in predictions {
            let right = wanted.probabilities[prediction.class_index as usize];
            let difference = (prediction.probability - right).abs();
            assert!(difference < 1e-5 * right.max(0.01), "{name}: {prediction:?}, and {right} is right");
        }
    });
}

/// A node as `torch.export` writes it: its result, its operator, its arguments.
fn node(result: &str, target: &str, arguments: &[(&str, Json)]) -> Json {
    let inputs: Vec<Json> =
        arguments.iter().map(|(name, argument)| json!({"name": name, "arg": argument, "kind": 1})).collect();
    json!({
        "target": format!("torch.ops.aten.{target}"),
        "name": result,
        "inputs": inputs,
        "outputs": [{"as_tensor": {"name": result}}],
        "metadata": {},
    })
}

fn tensor(name: &str) -> Json {
    json!({"as_tensor": {"name": name}})
}

fn int(number: i64) -> Json {
    json!({"as_int": number})
}

/// A node that puts values side by side: `cat` or `stack`.
fn joined(target: &str, values: &[&str], dim: i64) -> Json {
    let names: Vec<Json> = values.iter().map(|name| json!({"name": name})).collect();
    node("out", target, &[("tensors", json!({"as_tensors": names})), ("dim", int(dim))])
}

/// The net `one_sigmoid`, whose last nodes are `linear`, its logit, and `sigmoid`, with more nodes behind them, whose
/// output is `out`.
fn continued(nodes: &[Json]) -> Model {
    let mut archive = ZipArchive::new(File::open(folder().join("one_sigmoid/1/model.pt2")).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut changed = ZipWriter::new(File::create(directory.path().join("model.pt2")).unwrap());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if entry.name().unwrap().ends_with("models/model.json") {
            let mut program: Json = serde_json::from_slice(&bytes).unwrap();
            let module = &mut program["graph_module"];
            module["graph"]["nodes"].as_array_mut().unwrap().extend_from_slice(nodes);
            module["graph"]["outputs"] = json!([tensor("out")]);
            module["signature"]["output_specs"] = json!([{"user_output": {"arg": tensor("out")}}]);
            bytes = serde_json::to_vec(&program).unwrap();
        }
        changed.start_file(entry.name().unwrap(), SimpleFileOptions::default()).unwrap();
        changed.write_all(&bytes).unwrap();
    }
    changed.finish().unwrap();
    Model::load("continued", 1, directory.path(), &LoadLimits::default()).unwrap()
}

/// The logits and the model's predictions for [`picture`], class by class.
fn predicted(explainer: &mut Explainer, head: &Head) -> Vec<(f32, f32)> {
    let method = Method { maps: MapSet::of(&[]), mode: Mode::Exact, ..Method::default() };
    let logits = explainer.forward(&method, &picture(), &Never).unwrap().row(0).unwrap();
    let mut predictions = head.predictions(&logits, logits.len());
    predictions.sort_by_key(|prediction| prediction.class_index);
    predictions.into_iter().map(|prediction| (prediction.logit, prediction.probability)).collect()
}

#[test]
fn both_probabilities_of_one_logit_are_two_classes_with_opposite_scores() {
    super::settle();
    let wanted = &all()["one_sigmoid"];
    let rest = node("rest", "rsub.Scalar", &[("self", tensor("sigmoid")), ("other", int(1))]);
    let minus = |of: &str| node("minus", "neg.default", &[("self", tensor(of))]);
    let squeezed = node("flat", "squeeze.dim", &[("self", tensor("sigmoid")), ("dim", int(1))]);
    let flat_rest = node("rest", "rsub.Scalar", &[("self", tensor("flat")), ("other", int(1))]);
    let minus_plus_one = node("rest", "add.Tensor", &[("self", tensor("minus")), ("other", int(1))]);
    let of_minus = node("rest", "sigmoid.default", &[("self", tensor("minus"))]);
    for (positive, nodes) in [
        (1, vec![rest.clone(), joined("cat.default", &["rest", "sigmoid"], 1)]),
        (0, vec![rest, joined("cat.default", &["sigmoid", "rest"], -1)]),
        (1, vec![squeezed, flat_rest, joined("stack.default", &["rest", "flat"], 1)]),
        (1, vec![minus("sigmoid"), minus_plus_one, joined("cat.default", &["rest", "sigmoid"], 1)]),
        (1, vec![minus("linear"), of_minus, joined("concat.default", &["rest", "sigmoid"], 1)]),
    ] {
        let model = continued(&nodes);
        let written = nodes.iter().map(|node| node["target"].to_string()).collect::<Vec<_>>().join(", ");
        let scores = &model.metadata.scores;
        assert_eq!(scores.last, Final::SigmoidAndRest { class: positive }, "{written}");
        assert_eq!((scores.activation, scores.activation_is_known), (Activation::Sigmoid, true), "{written}");
        assert_eq!(model.metadata.class_count(), Some(2));
        let head = Head::of(&model.metadata);
        let mut explainer = Explainer::new(model, Device::Cpu);
        let predicted = predicted(&mut explainer, &head);
        let negative = 1 - positive;
        for (class, right) in [(positive, wanted.probabilities[0]), (negative, wanted.probabilities[1])] {
            let (logit, probability) = predicted[class as usize];
            assert!((probability - right).abs() < 1e-5, "{written}: {probability}, and {right} is right");
            assert!((f64::from(logit) - f64::from(right / (1.0 - right)).ln()).abs() < 1e-4, "{written}: {logit}");
        }
        // The fixture's map is that of the class that the logit speaks against.
        assert_eq!(wanted.class_index, 1);
        let method = Method { maps: MapSet::of(&[MapKind::GradCam]), mode: Mode::Exact, ..Method::default() };
        let forward = explainer.forward(&method, &picture(), &Never).unwrap();
        let rows = forward.reverse(&[vec![negative]], &Never).unwrap().fuse().unwrap();
        let found = rows[0][0].layer_map.as_ref().unwrap().view(-1);
        let error = distance(&found, &Tensor::from_slice(&wanted.grad_cam));
        assert!(error < 1e-5, "{written}: {error}");
    }
}

#[test]
fn no_softmax_is_taken_of_what_is_made_of_probabilities() {
    super::settle();
    let probability = all()["one_sigmoid"].probabilities[0];
    let half = node("half", "mul.Tensor", &[("self", tensor("sigmoid")), ("other", json!({"as_float": 0.5}))]);
    let rest = node("rest", "rsub.Scalar", &[("self", tensor("half")), ("other", int(1))]);
    let three = ["half", "sigmoid", "rest"];
    let model = continued(&[half, rest, joined("cat.default", &three, 1)]);
    let scores = &model.metadata.scores;
    assert_eq!((scores.last, scores.activation, scores.activation_is_known), (Final::Logits, Activation::None, false));
    let head = Head::of(&model.metadata);
    let predicted = predicted(&mut Explainer::new(model, Device::Cpu), &head);
    for ((value, own), right) in predicted.into_iter().zip([probability / 2.0, probability, 1.0 - probability / 2.0]) {
        assert!((value - right).abs() < 1e-6 && own == 0.0, "{value} with the probability {own}, and {right} is right");
    }
}

#[test]
fn one_logit_is_a_yes_or_no_though_its_description_says_softmax() {
    super::settle();
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(folder().join("one_logit/1/model.pt2"), directory.path().join("model.pt2")).unwrap();
    std::fs::write(directory.path().join("model.toml"), "[output]\nactivation = \"softmax\"\n").unwrap();
    let model = Model::load("one_logit", 1, directory.path(), &LoadLimits::default()).unwrap();
    assert_eq!(model.metadata.scores.activation, Activation::Sigmoid);
    let head = Head::of(&model.metadata);
    let found = predicted(&mut Explainer::new(model, Device::Cpu), &head);
    for ((_, probability), right) in found.into_iter().zip(&all()["one_logit"].probabilities) {
        assert!((probability - right).abs() < 1e-5, "{probability}, and {right} is right");
    }
}
