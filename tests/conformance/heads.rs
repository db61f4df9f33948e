//! `tests/fixtures/heads`: small classifiers whose target layer, score or probability is easily got wrong. What is
//! right was computed by autograd alone (`tests/reference/heads.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use camlens::explain::{ExplainError, Explainer, Head, MapKind, MapSet, Method, Mode, Target};
use camlens::model::{LoadLimits, Model};
use camlens::plan::Never;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

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

fn each(check: impl Fn(&str, &Wanted, Model)) {
    super::settle();
    let text = std::fs::read_to_string(folder().join("wanted.json")).unwrap();
    let wanted: BTreeMap<String, Wanted> = serde_json::from_str(&text).unwrap();
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
