//! Runs the checks on a model, until one of them cannot run.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::findings::Findings;
use crate::explain::{ExplainError, Explainer, Head, MapKind, MapSet, Method, Mode, Target, TargetMaps};
use crate::frame::{InputSize, Limits, Payload, Preparation, Prepared, decode};
use crate::model::description::Precision;
use crate::model::{Activation, LoadLimits, Metadata, Model, Scores, logits_in};
use crate::plan::{Never, Timing, computes_in};
use crate::render::npy;
use crate::schedule::ReducedPrecision;
use crate::torch::has_bfloat16;

/// Relative difference allowed between a row in a batch and the row alone: the order of additions may differ.
const ROWS_ALLOWED: f64 = 1e-4;
/// Relative difference allowed between folded and exact logits: folding and fusing change only the rounding.
const FOLDED_LOGITS_ALLOWED: f64 = 1e-4;
/// Relative difference allowed between folded and exact maps: rounding can flip ReLU gates, which changes more.
const FOLDED_MAPS_ALLOWED: f64 = 1e-2;
/// Relative difference allowed between exact mode and PyTorch: the operators are the same, but another machine may add
/// in another order.
const PYTORCH_ALLOWED: f64 = 1e-4;
/// Relative difference allowed in every comparison of a float16 or bfloat16 model: each layer's rounding is large, and
/// flips ReLU gates.
const NARROW_ALLOWED: f64 = 0.14;

const ALL_MAPS: MapSet = MapSet::of(&MapKind::ALL);
const GUIDED: MapSet = MapSet::of(&[MapKind::GuidedBackprop]);
const NO_MAPS: MapSet = MapSet::of(&[]);

/// Examines a model on a device: `path` is a version's folder `NAME/VERSION/` or a `.pt2` file. Problems are findings,
/// not errors. Choosing kernels by timing takes most of an examination, so it is done only if `runs` are timed.
pub fn examine(name: &str, version: i64, path: &Path, device: Device, runs: u32) -> Findings {
    let mut findings = Findings::new(format!("{name}@{version}"));
    let began = Instant::now();
    let model = match Model::load(name, version, path, &LoadLimits::default()) {
        Ok(model) => model,
        Err(error) => {
            findings.bad("load", error.to_string(), "");
            return findings;
        }
    };
    findings.good(
        "load",
        format!(
            "{:.1} s; the functional graph and the exported graph give equal outputs",
            began.elapsed().as_secs_f64()
        ),
    );
    let metadata = model.metadata.as_ref().clone();
    findings.describe(metadata.clone());
    check_metadata(&mut findings, &metadata);
    check_narrow_types(&mut findings, &metadata, device);
    let choice = if runs == 0 { Timing::Never } else { Timing::AtFirstRun };
    let explainer = Explainer::choosing(model, device, choice);
    let mut subject = Subject { explainer, device, maps: ALL_MAPS, metadata };
    if subject.metadata.default_target_layers.is_empty() {
        // Without a target layer, only guided backpropagation is possible.
        subject.maps = GUIDED;
    }
    if let Err(error) = subject.run_all(path, runs, &mut findings) {
        findings.bad("run", error.to_string(), "");
    }
    findings
}

/// The checks that need no run.
fn check_metadata(findings: &mut Findings, model: &Metadata) {
    match (model.class_count(), model.labels.len()) {
        (None, _) => {
            let fitting = model.outputs.iter().filter(|output| logits_in(&output.shape).is_some());
            let fitting: Vec<&str> = fitting.map(|output| output.name.as_str()).collect();
            let advice = if fitting.is_empty() {
                "no output of the model is: camlens explains classifiers, so export a model that ends in logits"
                    .to_owned()
            } else {
                format!("if another output holds the logits, name it as output.logits: {}", fitting.join(", "))
            };
            findings.bad("classes", format!("output {} is not [N, classes]", model.scores.output), advice);
        }
        (Some(classes), 0) => findings.note(
            "labels",
            format!("none for {classes} classes"),
            "set output.labels or output.labels_file in model.toml: answers then contain labels",
        ),
        (Some(classes), labels) if classes as usize != labels => findings.bad(
            "labels",
            format!("{labels} labels for {classes} classes"),
            "the labels in model.toml must be in class order, one for each class",
        ),
        (Some(classes), _) => findings.good("labels", format!("one for each of {classes} classes")),
    }
    match &model.default_target_problem {
        Some(problem) => {
            let layers = model.candidates();
            let advice = if layers.is_empty() {
                "no layer is proved to be a map of the picture: only the guided gradient is possible".to_owned()
            } else {
                format!("name one as explain.target_layers in model.toml, or in each request: {layers}")
            };
            findings.note("target layer", format!("fit only with a named layer: {problem}"), &advice)
        }
        None => findings.good("target layer", model.default_target_layers.join(", ")),
    }
    let Scores { activation, activation_is_known, .. } = model.scores;
    let name = match activation {
        Activation::Softmax => "softmax over all classes",
        Activation::Sigmoid => "sigmoid of each logit",
        Activation::None => "none",
    };
    if activation_is_known {
        findings.good("probabilities", name);
    } else if activation == Activation::None {
        let advice = "export the part of the model that ends in logits, or say output.activation = \"none\" in \
                      model.toml if its output is to be explained as it is";
        let seen = "none: the output is made of probabilities in a way that is not recognised, and the gradient begins \
                    there";
        findings.note("probabilities", seen, advice);
    } else {
        let advice = "set output.activation in model.toml if they are others: \"softmax\", \"sigmoid\" or \"none\"";
        findings.note(
            "probabilities",
            format!("{name}, assumed: the model ends in no activation that is recognised"),
            advice,
        );
    }
    if model.guided_operators() == 0 {
        let advice = if model.smooth_activations > 0 {
            "set explain.guide_smooth_activations = true in model.toml to guide its smooth activations"
        } else {
            ""
        };
        findings.note("rectifiers", "none: guided backpropagation is the plain gradient", advice);
    }
    if !model.unguided_gates.is_empty() {
        let seen = format!(
            "{} gate the gradient and are not guided: {}",
            model.unguided_gates.len(),
            model.unguided_gates.join(", ")
        );
        findings.note("gates", seen, "guided backpropagation takes their plain gradient; a rectifier stops at 0");
    }
    for notice in &model.notices {
        findings.note("file", notice.clone(), "compare its answers with those of the framework that it came from");
    }
    if model.max_rows == Some(1) {
        findings.note(
            "batch",
            "one row at a time: the batch size is fixed, or rows influence each other",
            "export it with a dynamic batch size (deploy/export does): frames can then share a batch",
        );
    }
}

/// Notes float16 and bfloat16 models on a device without instructions for the type.
fn check_narrow_types(findings: &mut Findings, model: &Metadata, device: Device) {
    for (kind, name) in [(Kind::Half, "float16"), (Kind::BFloat16, "bfloat16")] {
        if !model.narrow_kinds.contains(&kind) || computes_in(device, kind) {
            continue;
        }
        if model.precision == Precision::Exact {
            let advice = "set explain.precision = \"float32\" in model.toml, unless you compare it with PyTorch";
            findings.note(name, "this processor has no instructions for it: the model runs slowly", advice);
        } else {
            findings.note(name, "this processor has no instructions for it: the model runs in float32", "");
        }
    }
}

/// The model under examination.
struct Subject {
    explainer: Explainer,
    /// Where it runs. Inputs and results are in the host's memory.
    device: Device,
    maps: MapSet,
    metadata: Metadata,
}

impl Subject {
    fn run_all(&mut self, path: &Path, runs: u32, findings: &mut Findings) -> Result<(), ExplainError> {
        let one = self.example(0)?;
        let (logits, maps) = self.explain(Mode::Default, &one)?;
        self.check_finite(findings, &logits, &maps)?;

        let (exact_logits, exact_maps) = self.explain(Mode::Exact, &one)?;
        let advice = "please report it with the model; until then set explain.precision = \"exact\" in model.toml";
        findings.compare(
            "folded logits",
            relative(&logits, &exact_logits)?,
            self.allowed(FOLDED_LOGITS_ALLOWED),
            advice,
        );
        if let (Some(folded), Some(exact)) = (finest(&maps), finest(&exact_maps)) {
            findings.compare("folded maps", relative(folded, exact)?, self.allowed(FOLDED_MAPS_ALLOWED), advice);
        }
        self.check_bfloat16(findings, &one, &maps)?;
        if self.metadata.max_rows != Some(1) {
            self.check_rows(findings, &one, &logits)?;
        }
        if path.is_dir() {
            self.check_against_pytorch(findings, &path.join("check"))?;
        }
        if runs > 0 {
            self.measure_time(findings, &one, runs)?;
        }
        Ok(())
    }

    /// A synthetic input `[1, C, H, W]` in the range of normalised pixels, different for each `phase`.
    fn example(&self, phase: i64) -> Result<Tensor, ExplainError> {
        let [_, channels, height, width] = self.metadata.input.shape.map(|size| size.example());
        let axis = |count: i64, waves: f64| -> Result<Tensor, tch::TchError> {
            let steps = Tensor::f_arange(count, (Kind::Float, Device::Cpu))?;
            steps.f_mul_scalar(waves / count as f64)?.f_add_scalar(phase as f64 * 0.7)?.f_sin()
        };
        let rows = axis(height, 11.0)?.f_view([1, height, 1])?;
        let columns = axis(width, 17.0)?.f_view([1, 1, width])?;
        let shades = axis(channels, 3.0)?.f_view([channels, 1, 1])?;
        Ok(rows.f_add(&columns)?.f_add(&shades)?.f_unsqueeze(0)?.f_contiguous()?)
    }

    /// The allowed difference: `float32` for a float32 model, else [`NARROW_ALLOWED`].
    fn allowed(&self, float32: f64) -> f64 {
        if self.metadata.narrow_kinds.is_empty() { float32 } else { NARROW_ALLOWED }
    }

    fn method(&self, mode: Mode, maps: MapSet) -> Method {
        Method { maps, mode, ..Method::default() }
    }

    /// The logits `[N, classes]`, and the maps of each row's top class.
    fn explain(&mut self, mode: Mode, input: &Tensor) -> Result<(Tensor, Vec<TargetMaps<Tensor>>), ExplainError> {
        let method = self.method(mode, self.maps);
        let forward = self.explainer.forward(&method, &input.f_to_device(self.device)?, &Never)?;
        let logits = forward.logits().shallow_clone();
        let rows = vec![vec![Target::Top(1)]; logits.size()[0] as usize];
        let classes = forward.classes(&rows).into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut maps: Vec<TargetMaps<Tensor>> =
            forward.reverse(&classes, &Never)?.fuse()?.into_iter().flatten().collect();
        for map in &mut maps {
            map.maps = map.maps.try_map(|tensor| tensor.f_to_device(Device::Cpu))?;
        }
        Ok((logits, maps))
    }

    fn check_finite(
        &self,
        findings: &mut Findings,
        logits: &Tensor,
        maps: &[TargetMaps<Tensor>],
    ) -> Result<(), ExplainError> {
        let finite = |tensor: &Tensor| -> Result<bool, ExplainError> {
            Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1)
        };
        if finite(logits)? {
            findings.good("forward", format!("logits {:?}, all finite", logits.size()));
        } else {
            findings.bad(
                "forward",
                "logits are not all finite",
                "check the weights: run the model in PyTorch on an image",
            );
        }
        for map in maps {
            for (name, kind) in [("Grad-CAM", MapKind::GradCam), ("guided gradient", MapKind::GuidedBackprop)] {
                let Some(tensor) = map.maps.get(kind) else { continue };
                let largest = tensor.f_abs()?.f_max()?.f_double_value(&[])?;
                if !finite(tensor)? {
                    findings.bad(
                        "reverse",
                        format!("{name} is not finite"),
                        "check for an operator that divides by a value near zero",
                    );
                } else if largest == 0.0 {
                    let seen = format!("{name} is zero everywhere for a synthetic image");
                    findings.note("reverse", seen, "try a real image: camlens explain");
                } else {
                    findings.good("reverse", format!("{name} {:?}, at most {largest:.2e}", tensor.size()));
                }
            }
        }
        Ok(())
    }

    /// Compares the map in bfloat16 with float32's, if the processor has bfloat16 instructions.
    fn check_bfloat16(
        &mut self,
        findings: &mut Findings,
        one: &Tensor,
        full: &[TargetMaps<Tensor>],
    ) -> Result<(), ExplainError> {
        const NAME: &str = "bfloat16";
        if self.metadata.input.kind != Kind::Float {
            return Ok(());
        }
        if self.device == Device::Cpu && !has_bfloat16() {
            if self.metadata.precision == Precision::Bfloat16 {
                findings.note(NAME, "this processor has no instructions for it: the model runs in float32", "");
            }
            return Ok(());
        }
        let reduced = match self.explain(Mode::Bfloat16, one) {
            Ok((_, maps)) => maps,
            Err(error) if self.metadata.precision == Precision::Bfloat16 => {
                findings.bad(NAME, error.to_string(), "set explain.precision = \"float32\" in model.toml");
                return Ok(());
            }
            Err(error) => {
                findings.note(NAME, format!("the model cannot run in bfloat16: {error}"), "");
                return Ok(());
            }
        };
        let advice = "keep explain.precision = \"float32\" in model.toml, or compare maps of your own images in both";
        let (Some(full), Some(reduced)) = (full.first(), reduced.first()) else { return Ok(()) };
        if full.class_index != reduced.class_index {
            findings.note(NAME, "the top class of a synthetic image differs from float32's", advice);
        } else if let (Some(a), Some(b)) = (finest_of(full), finest_of(reduced)) {
            let cosine = cosine(a, b)?;
            let seen = format!("the map of a synthetic image has a cosine of {cosine:.4} to float32's");
            if cosine >= ReducedPrecision::COSINE_EXPECTED {
                findings.good(NAME, seen)
            } else {
                findings.note(NAME, seen, advice)
            }
        }
        Ok(())
    }

    /// Compares the logits of two rows in one batch with those of each row alone.
    fn check_rows(&mut self, findings: &mut Findings, one: &Tensor, logits: &Tensor) -> Result<(), ExplainError> {
        let other = self.example(1)?;
        let (together, _) = self.explain(Mode::Default, &Tensor::f_cat(&[one, &other], 0)?)?;
        let (other_logits, _) = self.explain(Mode::Default, &other)?;
        let apart = Tensor::f_cat(&[logits, &other_logits], 0)?;
        let advice =
            "rows influence each other: export the model in eval mode, or set limits.max_batch = 1 in model.toml";
        findings.compare("rows in a batch", relative(&together, &apart)?, self.allowed(ROWS_ALLOWED), advice);
        Ok(())
    }

    /// Compares the logits in exact mode with those that PyTorch wrote when the model was exported.
    fn check_against_pytorch(&mut self, findings: &mut Findings, folder: &Path) -> Result<(), ExplainError> {
        let expected = folder.join("logits.npy");
        let inputs = ["input.npy", "frame.jpg", "frame.png", "frame.webp"].map(|name| folder.join(name));
        let Some(input) = inputs.into_iter().find(|path| path.is_file() && expected.is_file()) else {
            findings.note(
                "PyTorch's logits",
                "there is no check/input.npy (or a picture, check/frame.jpg) with check/logits.npy to compare with",
                "deploy/export writes them",
            );
            return Ok(());
        };
        let is_tensor = input.extension().is_some_and(|extension| extension == "npy");
        let read = if is_tensor { read_tensor(&input)? } else { self.prepared(&input)? };
        let (input, expected) = match (read, read_tensor(&expected)?) {
            (Ok(input), Ok(expected)) => (input, expected),
            (Err(problem), _) | (_, Err(problem)) => {
                findings.bad("PyTorch's logits", problem, "export the model again");
                return Ok(());
            }
        };
        let input = if is_tensor && self.metadata.input.channels_last && input.dim() == 4 {
            input.f_permute([0, 3, 1, 2])?
        } else {
            input
        };
        let method = self.method(Mode::Exact, NO_MAPS);
        let input = input.f_to_device(self.device)?;
        let logits = self.explainer.forward(&method, &input, &Never)?.logits().shallow_clone();
        let explained = self.metadata.outputs.iter().find(|output| output.name == self.metadata.scores.output);
        // The example input may have another number of frames.
        let mut shape = explained.map(|output| output.shape.clone()).unwrap_or_default();
        if let Some(frames) = shape.first_mut() {
            *frames = logits.size()[0];
        }
        if shape != expected.size() {
            let seen = format!("{shape:?} here, {:?} in check/logits.npy", expected.size());
            findings.bad("PyTorch's logits", seen, "export the model again");
            return Ok(());
        }
        // PyTorch wrote what the model gives, which may be probabilities.
        let values = shape[1..].iter().product();
        let actual = Head::of(&self.metadata).output(&logits, values)?;
        let expected = expected.f_view(actual.size().as_slice())?;
        let advice = "the logits differ from PyTorch's: export the model again, and report it if that does not help";
        findings.compare("PyTorch's logits", relative(&actual, &expected)?, self.allowed(PYTORCH_ALLOWED), advice);
        Ok(())
    }

    /// A picture prepared as frames are, `[1, C, H, W]`; or what is wrong with it.
    fn prepared(&self, path: &Path) -> Result<Result<Tensor, String>, ExplainError> {
        let [_, channels, height, width] = self.metadata.input.shape;
        let size = InputSize { channels: u32::try_from(channels.example()).unwrap_or(0), height, width };
        let prepared = || -> Result<(Vec<f32>, [u32; 2]), String> {
            let limits = Limits::default();
            let data = fs::read(path).map_err(|error| error.to_string())?;
            let preparation = Preparation::new(&self.metadata.preprocessing, size, &limits);
            let picture = decode(&Payload::encoded(data), &limits, None).map_err(|error| error.to_string())?;
            let mut values = Vec::new();
            let prepared = preparation.map_err(|error| error.to_string())?.prepare(&picture, &mut values);
            let Prepared { height, width, .. } = prepared.map_err(|error| error.to_string())?;
            Ok((values, [height, width]))
        };
        match prepared() {
            Ok((values, size)) => {
                let [height, width] = size.map(i64::from);
                Ok(Ok(Tensor::f_from_slice(&values)?.f_view([1, channels.example(), height, width])?))
            }
            Err(problem) => Ok(Err(format!("{}: {problem}", path.display()))),
        }
    }

    /// Times the forward run alone and with all maps.
    fn measure_time(&mut self, findings: &mut Findings, input: &Tensor, runs: u32) -> Result<(), ExplainError> {
        let method = self.method(Mode::Default, NO_MAPS);
        let (mut forward, mut explained) = (Vec::new(), Vec::new());
        // The first round is the warm-up. The two measurements alternate, so that other load affects both.
        for round in 0..=runs {
            let began = Instant::now();
            self.explainer.forward(&method, &input.f_to_device(self.device)?, &Never)?;
            let between = Instant::now();
            let explanation = self.explain(Mode::Default, input)?;
            let ended = Instant::now();
            drop(explanation);
            if round > 0 {
                forward.push(between.duration_since(began).as_secs_f64() * 1e3);
                explained.push(ended.duration_since(between).as_secs_f64() * 1e3);
            }
        }
        findings.time(median(&mut forward), median(&mut explained));
        Ok(())
    }
}

/// The map of the first target that depends on the most of the computation: Guided Grad-CAM, if there is one.
fn finest(maps: &[TargetMaps<Tensor>]) -> Option<&Tensor> {
    maps.first().and_then(finest_of)
}

fn finest_of(map: &TargetMaps<Tensor>) -> Option<&Tensor> {
    map.maps.get(MapKind::GuidedGradCam).or_else(|| map.maps.get(MapKind::GuidedBackprop))
}

/// Cosine similarity; 1 for two maps of zeros.
fn cosine(a: &Tensor, b: &Tensor) -> Result<f64, ExplainError> {
    let (a, b) = (a.f_to_kind(Kind::Double)?.f_flatten(0, -1)?, b.f_to_kind(Kind::Double)?.f_flatten(0, -1)?);
    let lengths = (a.f_norm()?.f_double_value(&[])?, b.f_norm()?.f_double_value(&[])?);
    let dot = a.f_dot(&b)?.f_double_value(&[])?;
    Ok(if lengths == (0.0, 0.0) { 1.0 } else { dot / (lengths.0 * lengths.1).max(f64::MIN_POSITIVE) })
}

/// `‖a − b‖ / ‖b‖`; 0 when both are zero.
fn relative(a: &Tensor, b: &Tensor) -> Result<f64, ExplainError> {
    let (a, b) = (a.f_to_kind(Kind::Double)?, b.f_to_kind(Kind::Double)?);
    let difference = a.f_sub(&b)?.f_norm()?.f_double_value(&[])?;
    let size = b.f_norm()?.f_double_value(&[])?;
    Ok(if difference == 0.0 { 0.0 } else { difference / size })
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Reads a `.npy` file of float32. The inner error is a finding: the file is not readable or not valid.
fn read_tensor(path: &Path) -> Result<Result<Tensor, String>, ExplainError> {
    let array = File::open(path).map_err(npy::NpyError::from).and_then(|file| npy::read(BufReader::new(file)));
    match array {
        Ok(array) => {
            let shape: Vec<i64> = array.shape.iter().map(|&size| size as i64).collect();
            Ok(Ok(Tensor::f_from_slice(&array.data)?.f_view(shape.as_slice())?))
        }
        Err(error) => Ok(Err(format!("{}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_differences_are_relative_to_the_second_tensor() {
        let tensor = |values: &[f32]| Tensor::from_slice(values);
        let of = |a: &[f32], b: &[f32]| relative(&tensor(a), &tensor(b)).expect("equal shapes");
        assert_eq!(of(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((of(&[3.0, 0.0], &[2.0, 0.0]) - 0.5).abs() < 1e-12);
        assert!(of(&[1.0], &[0.0]).is_infinite());
    }

    #[test]
    fn an_invalid_model_file_is_a_finding() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("model.pt2");
        std::fs::write(&path, b"not a zip").expect("a small file");
        let findings = examine("net", 1, &path, Device::Cpu, 1);
        assert!(!findings.fit());
        let json = findings.json(false);
        assert_eq!((&json["checks"][0]["check"], &json["model"]), (&"load".into(), &serde_json::Value::Null));
    }

    #[test]
    fn a_model_in_half_precision_is_fit_with_a_note_where_it_runs_in_float32() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance");
        for (fixture, kind, name) in [("half", Kind::Half, "float16"), ("bfloat16", Kind::BFloat16, "bfloat16")] {
            let findings = examine(fixture, 1, &fixtures.join(fixture).join("1"), Device::Cpu, 1);
            assert!(findings.fit(), "{}", findings.json(false));
            let json = findings.json(false);
            let notes = json["checks"].as_array().expect("a list").iter();
            let count = notes.filter(|note| note["check"] == name && note["verdict"] == "note").count();
            assert_eq!(count, usize::from(!computes_in(Device::Cpu, kind)), "{json}");
        }
    }

    #[test]
    fn an_output_made_of_probabilities_is_named() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heads/one_sigmoid/1");
        let mut model =
            Model::load("net", 1, &folder, &LoadLimits::default()).expect("a model").metadata.as_ref().clone();
        for (activation, is_known, seen) in [
            (Activation::Sigmoid, true, "sigmoid of each logit"),
            (Activation::Softmax, false, "softmax over all classes, assumed"),
            (Activation::None, true, "none"),
            (Activation::None, false, "none: the output is made of probabilities in a way that is not recognised"),
        ] {
            (model.scores.activation, model.scores.activation_is_known) = (activation, is_known);
            let mut findings = Findings::new("net@1".to_owned());
            check_metadata(&mut findings, &model);
            let json = findings.json(false);
            let check =
                json["checks"].as_array().and_then(|list| list.iter().find(|one| one["check"] == "probabilities"));
            let check = check.expect("it is checked");
            assert!(check["seen"].as_str().is_some_and(|text| text.starts_with(seen)), "{check}");
            assert_eq!(check["verdict"] == "note", !is_known, "{check}");
        }
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    }
}
