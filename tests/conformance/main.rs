//! Numerical conformance: every case of `tests/fixtures/conformance`, and of the directory in `CAMLENS_REFERENCES` (the
//! full-size models of `deploy/test --full`, whose references come from the same machine and must agree to 1e-6).

mod case;
mod heads;
#[path = "../npy/mod.rs"]
mod npy;
mod onnx;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use camlens::explain::{Convention, Explainer, MapKind, MapSet, Method, Mode, Target};
use camlens::frame::{InputSize, Limits, Payload, Preparation, decode};
use camlens::model::{LoadLimits, Model};
use camlens::plan::Never;
use camlens::torch::cuda;
use tch::{Device, Kind, Tensor};

use case::{Case, Layer, Reference, cosine, largest_relative_to_largest, relative_l2, spearman};

const ALL_MAPS: MapSet = MapSet::of(&MapKind::ALL);

type TargetMaps = camlens::explain::TargetMaps<Tensor>;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance")
}

fn full_size() -> Option<PathBuf> {
    std::env::var_os("CAMLENS_REFERENCES").map(PathBuf::from)
}

/// The device that the cases run on: the processor, or the CUDA device whose libraries lie in the folder that
/// `CAMLENS_TEST_CUDA` names.
fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| {
        let Some(folder) = std::env::var_os("CAMLENS_TEST_CUDA") else { return Device::Cpu };
        let cuda = cuda::load(&[PathBuf::from(folder)]).unwrap();
        cuda.configure(false, false).unwrap();
        cuda.prepare_kernels(&[0], None).unwrap();
        Device::Cuda(0)
    });
    *DEVICE
}

/// One thread for each test: tests run in parallel, and sums must not depend on the number of threads. CUDA is loaded
/// before a model is, whose load computes gradients.
fn settle() {
    device();
    tch::set_num_threads(1);
}

fn explainer(root: &Path, name: &str) -> Explainer {
    let model = Model::load(name, 1, &root.join(name).join("1"), &LoadLimits::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    Explainer::new(model, device())
}

fn method(layers: &[&str], convention: Convention, mode: Mode) -> Method {
    let target_layers = layers.iter().map(|l| (*l).to_owned()).collect();
    Method { target_layers, convention, maps: ALL_MAPS, mode, ..Method::default() }
}

/// Logits and, for each row, its first target's maps.
fn explain(explainer: &mut Explainer, method: &Method, input: &Tensor, targets: &[u32]) -> (Tensor, Vec<TargetMaps>) {
    let forward = explainer.forward(method, input, &Never).unwrap();
    let logits = forward.logits().shallow_clone();
    let classes: Vec<Vec<u32>> = targets.iter().map(|&class| vec![class]).collect();
    let rows = forward.reverse(&classes, &Never).unwrap().fuse().unwrap();
    (logits, rows.into_iter().map(|mut row| on_host(row.remove(0))).collect())
}

/// The maps in host memory.
fn on_host(maps: TargetMaps) -> TargetMaps {
    let copy = |map: &Tensor| map.f_to_device(Device::Cpu);
    let (layer_map, copies) = (maps.layer_map.as_ref().map(copy), maps.maps.try_map(copy));
    TargetMaps { layer_map: layer_map.transpose().unwrap(), maps: copies.unwrap(), ..maps }
}

/// One kind of map of every row, `[N, …]`.
fn stacked(rows: &[TargetMaps], which: impl Fn(&TargetMaps) -> Option<&Tensor>) -> Tensor {
    Tensor::stack(&rows.iter().map(|row| which(row).unwrap().shallow_clone()).collect::<Vec<_>>(), 0)
}

fn layer_map(row: &TargetMaps) -> Option<&Tensor> {
    row.layer_map.as_ref()
}
fn guided(row: &TargetMaps) -> Option<&Tensor> {
    row.maps.get(MapKind::GuidedBackprop)
}
fn fused(row: &TargetMaps) -> Option<&Tensor> {
    row.maps.get(MapKind::GuidedGradCam)
}
fn upsampled(row: &TargetMaps) -> Option<&Tensor> {
    row.maps.get(MapKind::GradCam)
}

/// The largest distance of a map from its reference.
struct Allowance {
    relative: f64,
    /// `max|Δ| / max|reference|`.
    largest: f64,
    cosine: f64,
}

const EXACT: Allowance = Allowance { relative: 1e-4, largest: 5e-4, cosine: 0.999_999 };
const SAME_MACHINE: Allowance = Allowance { relative: 1e-6, largest: 1e-5, cosine: 0.999_999 };
const DEFAULT: Allowance = Allowance { relative: 1e-3, largest: 5e-3, cosine: 0.999_99 };
/// How much further from float64 the default mode may be than exact float32 is.
const FURTHER: f64 = 3.0;
/// Effect of one flipped gate on the guided gradient of a full-size model with random weights (measured: up to 3.6e-3).
const ONE_GATE: f64 = 5e-3;
/// Rounding error of the comparison itself.
const ROUNDING: f64 = 1e-6;
/// float16 and bfloat16 models, against references computed in that type throughout.
const REDUCED: Allowance = Allowance { relative: 0.14, largest: 0.5, cosine: 0.99 };

fn assert_close(what: &str, got: &Tensor, want: &Tensor, allowed: &Allowance) {
    assert_eq!(got.size(), want.size(), "{what}: shapes");
    assert_eq!(i64::try_from(got.isfinite().all()).unwrap(), 1, "{what}: a value is not finite");
    let distance = relative_l2(got, want);
    assert!(distance <= allowed.relative, "{what}: relative L2 {distance:.2e}");
    let largest = largest_relative_to_largest(got, want);
    assert!(largest <= allowed.largest, "{what}: largest difference {largest:.2e} of the largest value");
    if want.abs().max().double_value(&[]) > 0.0 {
        let cosine = cosine(got, want);
        assert!(cosine >= allowed.cosine, "{what}: cosine {cosine}");
    }
}

/// Runs `check` on every reference of every case; collects failures, so that one does not hide the others.
fn for_each_reference(root: &Path, check: impl Fn(&Case, &Reference, &mut Explainer)) {
    settle();
    let mut failures = BTreeMap::new();
    let mut count = 0;
    for case in case::all(root) {
        if case.refused.is_some() {
            continue;
        }
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut explainer = explainer(root, &case.name);
            for reference in &case.references {
                check(&case, reference, &mut explainer);
            }
        }));
        count += 1;
        if let Err(panic) = ran {
            let message = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".into());
            failures.insert(case.name.clone(), message);
        }
    }
    assert!(count > 0, "no case under {}", root.display());
    assert!(failures.is_empty(), "{} of {count} cases fail:\n{failures:#?}", failures.len());
}

/// Logits, and the maps at one layer, for the definition's convention.
fn maps_at(
    case: &Case,
    reference: &Reference,
    explainer: &mut Explainer,
    layer: &str,
    mode: Mode,
) -> (Tensor, Vec<TargetMaps>) {
    let method = method(&[layer], Convention::Captum, mode);
    let (logits, rows) = explain(explainer, &method, &reference.array("input"), &case.targets);
    // F = R ⊙ U(L) holds exactly.
    let product = stacked(&rows, guided) * stacked(&rows, upsampled).unsqueeze(1);
    assert_eq!(product, stacked(&rows, fused), "{} {layer} {mode:?} F = R ⊙ U(L)", case.name);
    (logits, rows)
}

/// Logits and the layer's map.
fn check_forward(
    what: &str,
    reference: &Reference,
    layer: &Layer,
    (logits, rows): (&Tensor, &[TargetMaps]),
    allowed: &Allowance,
) {
    assert_close(&format!("{what} logits"), logits, &reference.array("logits"), allowed);
    let want_map = reference.array(&format!("{}/L", layer.directory)).squeeze_dim(1);
    assert_close(&format!("{what} L"), &stacked(rows, layer_map), &want_map, allowed);
}

fn check_guided(what: &str, reference: &Reference, layer: &Layer, rows: &[TargetMaps], allowed: &Allowance) {
    assert_close(&format!("{what} R"), &stacked(rows, guided), &reference.array("R"), allowed);
    if let Some(want) = reference.find(&format!("{}/F", layer.directory)) {
        assert_close(&format!("{what} F"), &stacked(rows, fused), &want, allowed);
    }
}

/// Exact mode, at every layer.
fn check_exact(case: &Case, reference: &Reference, explainer: &mut Explainer, allowed: &Allowance) {
    let allowed = if case.is_reduced() { &REDUCED } else { allowed };
    for layer in &case.layers {
        let (logits, rows) = maps_at(case, reference, explainer, &layer.name, Mode::Exact);
        let what = format!("{} {} exact", case.name, layer.name);
        check_forward(&what, reference, layer, (&logits, &rows), allowed);
        check_guided(&what, reference, layer, &rows, allowed);
    }
}

/// Default mode: close to the float32 reference at the last spatial layer; at every layer at most [`FURTHER`] times as
/// far from float64 as exact float32 is. (Plain gradients at an early layer jump when a gate flips, in exact float32
/// too.)
///
/// `chosen`: the input was chosen so that no gate is near a flip, and the guided gradient is comparable with float32
/// too.
fn check_default(case: &Case, reference: &Reference, explainer: &mut Explainer, chosen: bool) {
    let allowed = if case.is_reduced() { &REDUCED } else { &DEFAULT };
    for (index, layer) in case.layers.iter().enumerate() {
        let (logits, rows) = maps_at(case, reference, explainer, &layer.name, Mode::Default);
        let what = format!("{} {} default", case.name, layer.name);
        let wide = reference.find("R64");
        if wide.is_none() || layer.reverses == 1 || index == 0 {
            check_forward(&what, reference, layer, (&logits, &rows), allowed);
            if chosen {
                check_guided(&what, reference, layer, &rows, allowed);
            }
        }
        let Some(wide_guided) = wide else { continue };
        let map = |name: &str| reference.array(&format!("{}/{name}", layer.directory)).squeeze_dim(1);
        let (wide_map, exact_map, exact_guided) = (map("L64"), map("L"), reference.array("R"));
        let mut throws = None;
        for (name, got, exact, wide, which) in [
            ("L", stacked(&rows, layer_map), exact_map, wide_map, layer_map as Which),
            ("R", stacked(&rows, guided), exact_guided, wide_guided, guided as Which),
        ] {
            let (distance, of_exact) = (relative_l2(&got, &wide), relative_l2(&exact, &wide));
            if distance <= FURTHER * of_exact + ROUNDING && (distance == 0.0 || cosine(&got, &wide) >= 0.9999) {
                continue;
            }
            assert!(!chosen, "{what} {name}: {distance:.2e} from float64, where exact float32 is {of_exact:.2e}");
            // A gate whose input is zero up to rounding flips at random, in exact float32 too. Both modes run on inputs
            // that differ in their last bits: their nearest runs are compared, and the furthest may be off by one gate.
            let (here, there) = throws.get_or_insert_with(|| {
                [Mode::Default, Mode::Exact]
                    .map(|mode| runs_of_noisy_inputs(case, reference, explainer, &layer.name, mode))
                    .into()
            });
            let distances = |runs: &[Vec<TargetMaps>], first: f64| -> (f64, f64) {
                let each = runs.iter().map(|rows| relative_l2(&stacked(rows, which), &wide));
                each.fold((first, first), |(least, most), d| (least.min(d), most.max(d)))
            };
            let ((least, most), (least_exact, most_exact)) = (distances(here, distance), distances(there, of_exact));
            println!(
                "{what} {name}: {least:.1e} to {most:.1e} from float64; \
                 exact float32 {least_exact:.1e} to {most_exact:.1e}"
            );
            assert!(least <= FURTHER * least_exact + ROUNDING, "{what} {name}: not near float64");
            assert!(most <= (FURTHER * most_exact).max(ONE_GATE), "{what} {name}: far from float64");
        }
    }
}

type Which = fn(&TargetMaps) -> Option<&Tensor>;

/// Runs on inputs that differ from the reference's in their last bits.
fn runs_of_noisy_inputs(
    case: &Case,
    reference: &Reference,
    explainer: &mut Explainer,
    layer: &str,
    mode: Mode,
) -> Vec<Vec<TargetMaps>> {
    let input = reference.array("input");
    let method = method(&[layer], Convention::Captum, mode);
    (0..8)
        .map(|seed| {
            tch::manual_seed(seed);
            let noisy = &input * (Tensor::randn_like(&input) * f64::from(f32::EPSILON) + 1.0);
            explain(explainer, &method, &noisy, &case.targets).1
        })
        .collect()
}

#[test]
fn exact_mode_gives_the_definition() {
    for_each_reference(&committed(), |case, reference, explainer| {
        check_exact(case, reference, explainer, &EXACT);
    });
}

#[test]
fn default_mode_stays_close_to_the_definition() {
    for_each_reference(&committed(), |case, reference, explainer| check_default(case, reference, explainer, true));
}

#[test]
fn full_size_models_agree_with_pytorch_on_this_machine() {
    let Some(root) = full_size() else { return };
    for_each_reference(&root, |case, reference, explainer| {
        check_exact(case, reference, explainer, &SAME_MACHINE);
        check_default(case, reference, explainer, false);
        check_peers(case, reference, explainer, &SAME_MACHINE);
        println!("{}: agrees", case.name);
    });
}

/// Captum's and pytorch-grad-cam's own results, where they follow the definition.
fn check_peers(case: &Case, reference: &Reference, explainer: &mut Explainer, allowed: &Allowance) {
    let input = reference.array("input");
    for layer in &case.layers {
        let at = |file: &str| format!("{}/{file}", layer.directory);
        if let Some(captum) = reference.find(&at("captum_own_F")) {
            let method = method(&[&layer.name], Convention::Captum, Mode::Exact);
            let (_, rows) = explain(explainer, &method, &input, &case.targets);
            assert_close(&format!("{} {} Captum's F", case.name, layer.name), &stacked(&rows, fused), &captum, allowed);
        }
        let method = method(&[&layer.name], Convention::PytorchGradCam, Mode::Exact);
        if let Some(own) = reference.find(&at("pytorch_grad_cam_own_L")) {
            let (_, rows) = explain(explainer, &method, &input, &case.targets);
            let what = format!("{} {} pytorch-grad-cam's map", case.name, layer.name);
            assert_close(
                &what,
                &stacked(&rows, upsampled),
                &own.squeeze_dim(1),
                &Allowance { relative: allowed.relative.max(1e-5), ..EXACT },
            );
        }
        if let Some(own) = reference.find(&at("pytorch_grad_cam_own_F")) {
            let (_, rows) = explain(explainer, &method, &input, &case.targets);
            let what = format!("{} {} pytorch-grad-cam's fused", case.name, layer.name);
            let got = stacked(&rows[..1], fused);
            assert_close(&what, &got, &own, &Allowance { relative: allowed.relative.max(1e-5), ..EXACT });
        }
    }
}

#[test]
fn captum_and_pytorch_grad_cam_agree_where_they_are_right() {
    for_each_reference(&committed(), |case, reference, explainer| check_peers(case, reference, explainer, &EXACT));
}

#[test]
fn the_convention_of_pytorch_grad_cam_is_followed_for_one_layer_and_for_several() {
    for_each_reference(&committed(), |case, reference, explainer| {
        if case.is_reduced() {
            return;
        }
        let input = reference.array("input");
        let mut check = |layers: &[&str], want: Tensor| {
            let method = method(layers, Convention::PytorchGradCam, Mode::Exact);
            let (_, rows) = explain(explainer, &method, &input, &case.targets);
            assert_close(
                &format!("{} {layers:?}", case.name),
                &stacked(&rows, upsampled),
                &want.squeeze_dim(1),
                &EXACT,
            );
            let product = reference.array("R") * want;
            assert_close(&format!("{} {layers:?} fused", case.name), &stacked(&rows, fused), &product, &EXACT);
        };
        for layer in &case.layers {
            if let Some(want) = reference.find(&format!("{}/pytorch_grad_cam_L", layer.directory)) {
                check(&[&layer.name], want);
            }
        }
        if let Some(want) = reference.find("pytorch_grad_cam_all_L") {
            let names: Vec<&str> = case.layers.iter().map(|layer| layer.name.as_str()).collect();
            check(&names, want);
        }
    });
}

/// Smallest cosines between bfloat16 and float32: of logits, Grad-CAM, guided gradient and their product.
struct Near {
    logits: f64,
    layer_map: f64,
    guided: f64,
    fused: f64,
}

/// For small models with random weights, where many rectifier inputs are near zero.
const NEAR_AT_RANDOM: Near = Near { logits: 0.999, layer_map: 0.98, guided: 0.97, fused: 0.95 };
/// For EfficientNet-Lite0 with trained weights.
const NEAR_WHEN_TRAINED: Near = Near { logits: 0.995, layer_map: 0.995, guided: 0.99, fused: 0.99 };

fn check_bfloat16(
    what: &str,
    (wide_logits, wide): (&Tensor, &[TargetMaps]),
    (logits, rows): (&Tensor, &[TargetMaps]),
    least: &Near,
) {
    let maps = |which: Which| (stacked(rows, which), stacked(wide, which));
    let (layer_maps, guided, fused) = (maps(layer_map), maps(guided), maps(fused));
    for (name, got, want, least) in [
        ("logits", logits, wide_logits, least.logits),
        ("L", &layer_maps.0, &layer_maps.1, least.layer_map),
        ("R", &guided.0, &guided.1, least.guided),
        ("F", &fused.0, &fused.1, least.fused),
    ] {
        let cosine = if want.abs().max().double_value(&[]) > 0.0 { cosine(got, want) } else { 1.0 };
        println!("{what} {name}: cosine {cosine:.5}");
        assert!(cosine >= least, "{what} {name}: cosine {cosine}, and {least} is asked");
    }
}

#[test]
fn bfloat16_is_near_float32() {
    for_each_reference(&committed(), |case, reference, explainer| {
        if case.is_reduced() {
            return;
        }
        let layer = &case.layers[0].name;
        let method = |mode| method(&[layer], Convention::Captum, mode);
        let input = reference.array("input");
        if case.name == "multi_out" {
            let error = explainer.forward(&method(Mode::Bfloat16), &input, &Never).err().unwrap().to_string();
            assert!(error.contains("fft_rfft2") && error.contains("BFloat16"), "{error}");
            return;
        }
        let (wide_logits, wide) = explain(explainer, &method(Mode::Default), &input, &case.targets);
        let (logits, rows) = explain(explainer, &method(Mode::Bfloat16), &input, &case.targets);
        let what = format!("{} {layer}", case.name);
        check_bfloat16(&what, (&wide_logits, &wide), (&logits, &rows), &NEAR_AT_RANDOM);
    });
}

#[test]
fn bfloat16_is_near_float32_for_trained_weights_and_photographs() {
    settle();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let model = Model::load("lite0", 1, &root.join("models/efficientnet-lite0/1"), &LoadLimits::default()).unwrap();
    let size = InputSize::new(3, Some(224), Some(224));
    let preparation = Preparation::new(&model.description.input, size, &Limits::default()).unwrap();
    let mut explainer = Explainer::new(model, device());
    let mut count = 0;
    for entry in std::fs::read_dir(root.join("demo-assets/photographs")).unwrap() {
        let path = entry.unwrap().path();
        let payload = Payload::encoded(std::fs::read(&path).unwrap());
        let mut values: Vec<f32> = Vec::new();
        preparation.prepare(&decode(&payload, &Limits::default(), None).unwrap(), &mut values).unwrap();
        let input = Tensor::from_slice(&values).view([1, 3, 224, 224]);
        let method = |mode| method(&[], Convention::Captum, mode);
        let class = explainer.forward(&method(Mode::Default), &input, &Never).unwrap().logits().argmax(1, false);
        let class = class.int64_value(&[0]) as u32;
        let (wide_logits, wide) = explain(&mut explainer, &method(Mode::Default), &input, &[class]);
        let (logits, rows) = explain(&mut explainer, &method(Mode::Bfloat16), &input, &[class]);
        let what = path.file_name().unwrap().to_string_lossy().into_owned();
        check_bfloat16(&what, (&wide_logits, &wide), (&logits, &rows), &NEAR_WHEN_TRAINED);
        count += 1;
    }
    assert!(count > 3, "the photographs are not there");
}

#[test]
fn a_batch_with_different_targets_equals_its_rows_one_by_one() {
    for_each_reference(&committed(), |case, reference, explainer| {
        let input = reference.array("input");
        let allowed = if case.is_reduced() { REDUCED } else { EXACT };
        for mode in [Mode::Exact, Mode::Default] {
            let method = method(&[&case.layers[0].name], Convention::Captum, mode);
            let (_, together) = explain(explainer, &method, &input, &case.targets);
            for (row, &target) in case.targets.iter().enumerate() {
                let (_, alone) = explain(explainer, &method, &input.narrow(0, row as i64, 1), &[target]);
                let what = format!("{} {mode:?} row {row}", case.name);
                assert_close(&what, &stacked(&together[row..=row], fused), &stacked(&alone, fused), &allowed);
            }
        }
    });
}

#[test]
fn several_targets_of_a_frame_equal_separate_requests_bit_for_bit() {
    for_each_reference(&committed(), |case, reference, explainer| {
        let input = reference.array("input").narrow(0, 0, 1);
        let method = method(&[&case.layers[0].name], Convention::Captum, Mode::Exact);
        let classes: Vec<u32> = (0..case.classes.min(3)).rev().collect();
        let forward = explainer.forward(&method, &input, &Never).unwrap();
        let mut rows = forward.reverse(std::slice::from_ref(&classes), &Never).unwrap().fuse().unwrap();
        for (together, &class) in rows.remove(0).into_iter().map(on_host).zip(&classes) {
            assert_eq!(together.class_index, class);
            let (_, alone) = explain(explainer, &method, &input, &[class]);
            for (a, b) in [(fused(&together), fused(&alone[0])), (layer_map(&together), layer_map(&alone[0]))] {
                assert_eq!(a, b, "{} class {class}", case.name);
            }
        }
    });
}

#[test]
fn a_class_without_positive_evidence_gets_exactly_nothing() {
    let mut rows_seen = 0;
    settle();
    for case in case::all(&committed()).into_iter().filter(|case| case.no_positive_evidence.is_some()) {
        let mut explainer = explainer(&committed(), &case.name);
        for convention in [Convention::Captum, Convention::PytorchGradCam] {
            for mode in [Mode::Exact, Mode::Default] {
                let method = method(&[&case.layers[0].name], convention, mode);
                let (_, rows) = explain(&mut explainer, &method, &case.references[0].array("input"), &case.targets);
                for (row, nothing) in rows.iter().zip(case.no_positive_evidence.as_ref().unwrap()) {
                    assert_eq!(row.no_positive_evidence, *nothing, "{} {convention:?} {mode:?}", case.name);
                    let all_zero = |map: Option<&Tensor>| map.unwrap().count_nonzero(None::<i64>).int64_value(&[]) == 0;
                    assert_eq!(
                        all_zero(upsampled(row)) && all_zero(fused(row)),
                        *nothing,
                        "{} {convention:?}",
                        case.name
                    );
                    rows_seen += usize::from(*nothing);
                }
            }
        }
    }
    assert!(rows_seen > 0, "no case has a row without evidence");
}

#[test]
fn another_last_layer_gives_another_map() {
    let mut pairs = 0;
    settle();
    let cases = case::all(&committed());
    for case in &cases {
        let Some(other) = &case.randomised else { continue };
        let original = cases.iter().find(|c| c.name == other.model).unwrap();
        for layer in &case.layers {
            let map = |case: &Case| {
                let method = method(&[&layer.name], Convention::Captum, Mode::Default);
                let input = case.references[0].array("input");
                stacked(&explain(&mut explainer(&committed(), &case.name), &method, &input, &case.targets).1, layer_map)
            };
            let (a, b) = (map(case), map(original));
            for row in 0..a.size()[0] {
                let rank = spearman(&a.get(row), &b.get(row));
                assert!(rank < 0.5, "{} {} row {row}: rank correlation {rank}", case.name, layer.name);
                pairs += 1;
            }
        }
    }
    assert!(pairs > 0, "no case has a randomised twin");
}

#[test]
fn scaled_logits_scale_the_maps() {
    let mut pairs = 0;
    settle();
    let cases = case::all(&committed());
    for case in &cases {
        let Some(scaled) = &case.scaled else { continue };
        let original = cases.iter().find(|c| c.name == scaled.model).unwrap();
        for layer in &case.layers {
            let run = |case: &Case| {
                let method = method(&[&layer.name], Convention::Captum, Mode::Exact);
                let input = case.references[0].array("input");
                explain(&mut explainer(&committed(), &case.name), &method, &input, &case.targets)
            };
            let ((y, a), (z, b)) = (run(case), run(original));
            for which in [layer_map, guided] {
                assert_close(&case.name, &stacked(&a, which), &(stacked(&b, which) * scaled.factor), &EXACT);
            }
            assert_eq!(y.argmax(1, false), z.argmax(1, false));
            assert_eq!(stacked(&a, guided).sign(), stacked(&b, guided).sign());
            pairs += 1;
        }
    }
    assert!(pairs > 0, "no case is scaled");
}

#[test]
fn metadata_says_what_the_model_is() {
    settle();
    for case in case::all(&committed()).into_iter().filter(|case| case.refused.is_none()) {
        let path = committed().join(&case.name).join("1");
        let model = Model::load(&case.name, 1, &path, &LoadLimits::default()).unwrap();
        assert_eq!(model.metadata.rectifiers, case.rectifiers, "{}: rectifiers", case.name);
        assert_eq!(model.metadata.class_count(), Some(case.classes), "{}: classes", case.name);
        if let Some(expected) = &case.default_target {
            let [found] = model.metadata.default_target_layers.as_slice() else { panic!("one default layer") };
            let found = model.graph.layer(found).unwrap();
            assert_eq!(found, model.graph.layer(expected).unwrap(), "{}: default target", case.name);
        }
        for name in &case.ambiguous_layers {
            let error = model.graph.layer(name).unwrap_err().to_string();
            assert!(error.contains("several values"), "{}: {error}", case.name);
        }
        for layer in &case.layers {
            assert!(model.graph.layer(&layer.name).is_ok(), "{}: {}", case.name, layer.name);
        }
    }
}

#[test]
fn what_cannot_be_explained_is_refused_when_it_is_loaded() {
    let mut refused = 0;
    for case in case::all(&committed()) {
        let Some(word) = &case.refused else { continue };
        let path = committed().join(&case.name).join("1");
        let error = Model::load(&case.name, 1, &path, &LoadLimits::default()).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains(word.as_str())), "{}: {error:?}", case.name);
        refused += 1;
    }
    assert!(refused > 0);
}

#[test]
fn a_layer_that_is_not_spatial_is_refused_with_those_that_are() {
    settle();
    let mut explainer = explainer(&committed(), "vgg");
    let input = Tensor::zeros([1, 3, 33, 33], (Kind::Float, Device::Cpu));
    let name = explainer.metadata().layers.iter().rev().find(|l| !l.spatial).unwrap().names[0].clone();
    let method = method(&[&name], Convention::Captum, Mode::Default);
    let error = explainer.forward(&method, &input, &Never).err().unwrap().to_string();
    assert!(error.contains(&name) && error.contains("layers that are spatial"), "{error}");
    let unknown = camlens::explain::check_method(
        explainer.metadata(),
        &Method { target_layers: vec!["no.such.layer".into()], maps: ALL_MAPS, ..Method::default() },
    );
    assert!(unknown.unwrap_err().to_string().contains("layers that are spatial"));
}

#[test]
fn targets_are_the_highest_classes_or_named_ones() {
    settle();
    let case = case::all(&committed()).into_iter().find(|case| case.name == "resnet_basic").unwrap();
    let mut explainer = explainer(&committed(), &case.name);
    let input = case.references[0].array("input");
    let method = method(&[], Convention::Captum, Mode::Default);
    let forward = explainer.forward(&method, &input, &Never).unwrap();
    let top = forward.logits().topk(2, 1, true, true).1;
    let chosen = forward.classes(&[vec![Target::Top(2)], vec![Target::Class(99)]]);
    let expected: Vec<u32> = (0..2).map(|i| top.int64_value(&[0, i]) as u32).collect();
    assert_eq!(chosen[0].as_ref().unwrap(), &expected);
    assert!(chosen[1].as_ref().unwrap_err().to_string().contains("10 classes"), "a bad row fails alone");
}
