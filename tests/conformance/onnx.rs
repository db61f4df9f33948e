//! The networks of the conformance cases, exported to ONNX: the same references, the same names of layers, the same
//! plans. `CAMLENS_ONNX_TWINS` names a folder of many, which `tests/onnx/twins.py` writes.

use std::fs;
use std::path::{Path, PathBuf};

use camlens::explain::Explainer;
use camlens::model::{LoadLimits, Model};
use camlens::plan::{Mode, Plan, PlanSpec};
use tch::Device;

use super::case::Case;
use super::{EXACT, check_default, check_exact, committed, for_each_reference, settle};

/// `older` and `newer`, the exporters of PyTorch, each with a folder for each case.
fn exporters(root: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    folders
}

/// The committed files, each beside its case's references.
fn small() -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/twins");
    for exporter in exporters(&root) {
        for file in fs::read_dir(&exporter).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let folder = out.path().join(exporter.file_name().unwrap()).join(name);
            fs::create_dir_all(folder.join("1")).unwrap();
            fs::copy(&file, folder.join("1/model.onnx")).unwrap();
            let case = committed().join(name);
            fs::copy(case.join("1/model.toml"), folder.join("1/model.toml")).unwrap();
            for entry in fs::read_dir(&case).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with("reference") {
                    std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
                }
            }
        }
    }
    out
}

/// A case without the layers that an exporter has folded away: a convolution before a batch normalisation, whose layer
/// then is the normalisation's.
fn left(case: &Case, explainer: &Explainer) -> Case {
    let mut case = case.clone();
    let names = &explainer.metadata().layer_values;
    case.layers.retain(|layer| names.get(&layer.name).is_some_and(Result::is_ok));
    assert!(!case.layers.is_empty(), "no layer of the case is left");
    case
}

fn check(root: &Path) {
    let mut failures = Vec::new();
    for exporter in exporters(root) {
        let ran = std::panic::catch_unwind(|| {
            for_each_reference(&exporter, |case, reference, explainer| {
                let case = left(case, explainer);
                check_exact(&case, reference, explainer, &EXACT);
                check_default(&case, reference, explainer, true);
            });
        });
        if let Err(panic) = ran {
            let message = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".into());
            failures.push(format!("{}: {message}", exporter.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_model_of_onnx_gives_the_maps_of_its_twin() {
    check(small().path());
}

#[test]
fn every_case_that_an_exporter_takes_gives_the_maps_of_its_twin() {
    if let Some(root) = std::env::var_os("CAMLENS_ONNX_TWINS") {
        check(Path::new(&root));
    }
}

/// The number of steps of the plan for all maps.
fn steps(folder: &Path) -> usize {
    let model = Model::load("m", 1, &folder.join("1"), &LoadLimits::default()).unwrap();
    let layer = model.metadata.default_target_layers.first();
    let spec = PlanSpec {
        score: model.metadata.scores.logits,
        targets: layer.iter().map(|layer| model.graph.layer(layer).unwrap()).collect(),
        mode: Mode::Default,
        input_gradient: true,
        target_gradients: true,
        guide_smooth: false,
        input_size: [2, 3].map(|axis: usize| model.metadata.input.shape[axis].example()),
        device: Device::Cpu,
    };
    Plan::compile(&model.graph, &spec).unwrap().step_count()
}

#[test]
fn a_model_of_onnx_is_compiled_to_as_many_steps_as_its_twin() {
    settle();
    let small = small();
    for exporter in exporters(small.path()) {
        // The newer exporter moves each head's keys in several steps.
        for folder in exporters(&exporter).into_iter().filter(|folder| !folder.ends_with("vit")) {
            let twin = committed().join(folder.file_name().unwrap());
            let (own, twins) = (steps(&folder), steps(&twin));
            assert!(own <= twins, "{}: {own} steps, and {twins} from the .pt2", folder.display());
        }
    }
}
