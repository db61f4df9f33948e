//! A first frame for each model, before any client's. It proves that the model can be explained, compiles its plan on
//! the worker that runs it (other workers warm themselves), and measures bfloat16 against float32 where a model runs in
//! bfloat16.

use std::sync::{Arc, mpsc};

use super::admission::Admission;
use super::engine::Engine;
use super::error::JobError;
use super::job::{Answer, Job, Outcome, Reply};
use super::outputs::{Outputs, Resolution, TensorOutput};
use super::served::{ReducedPrecision, Served};
use crate::explain::{MapKind, Method, Mode, Target};
use crate::frame::{Payload, PixelFormat};
use crate::model::Metadata;
use crate::render::ElementType;
use crate::telemetry::Progress;

/// A model that cannot explain a frame.
#[derive(Debug, thiserror::Error)]
#[error("model {name} version {version} cannot explain a first frame: {cause}")]
pub struct WarmUpError {
    pub name: String,
    pub version: i64,
    pub cause: Box<WarmUpCause>,
}

/// Why a first frame was not explained.
#[derive(Debug, thiserror::Error)]
pub enum WarmUpCause {
    #[error(transparent)]
    Job(JobError),
    /// The same frame in float32 was explained.
    #[error("in bfloat16: {0}; if the model cannot run in it, set explain.precision = \"float32\" in model.toml")]
    Reduced(Box<WarmUpCause>),
    /// The weights are not finite, or the model takes its input in another range.
    #[error("{what} holds a value that is not finite; are weights and preprocessing in order?")]
    NotFinite { what: &'static str },
}

/// Loads a model into a running engine and explains one frame with it, through the stages of a client's frame; blocks
/// until then. New streams get it once it has explained the frame. It then replaces a model of the same name and
/// version, if there is one.
///
/// The request has the defaults: the top class, Guided Grad-CAM at the default target layer. For a model without a
/// default target layer, which each request has to name, only the guided gradient is computed.
///
/// # Errors
/// When the model cannot be loaded or explained. Its name is then known as one that cannot run, unless a model of the
/// same name and version runs: that one goes on.
pub fn add_model(engine: &Engine, model: &Arc<Served>) -> Result<(), WarmUpError> {
    let loaded = engine.load(model).map_err(|error| failed(model, WarmUpCause::Job(error)));
    let proved = loaded.and_then(|()| prove(engine, model));
    match &proved {
        Ok(()) => engine.publish(model),
        Err(error) => engine.fail(model, error.to_string()),
    }
    proved
}

/// Explains a first frame.
fn prove(engine: &Engine, model: &Arc<Served>) -> Result<(), WarmUpError> {
    let Metadata { name, version, .. } = &*model.metadata;
    let began = engine.clock().now();
    explain_first(engine, model).map_err(|cause| failed(model, cause))?;
    let took = engine.clock().now().saturating_duration_since(began);
    tracing::info!(name, version, ms = took.as_millis() as u64, "explained a first frame");
    if let Some(problem) = &model.metadata.default_target_problem {
        let candidates = model.metadata.candidates();
        tracing::warn!(name, version, problem, candidates, "fit only with a named layer: each request must name one");
    }
    Ok(())
}

fn failed(model: &Served, cause: WarmUpCause) -> WarmUpError {
    let Metadata { name, version, .. } = &*model.metadata;
    WarmUpError { name: name.clone(), version: *version, cause: Box::new(cause) }
}

/// The number of float32's highest logits that are compared with those of bfloat16.
const LOGITS_COMPARED: usize = 5;

fn explain_first(engine: &Engine, model: &Arc<Served>) -> Result<(), WarmUpCause> {
    let full_mode = if model.mode == Mode::Bfloat16 { Mode::Default } else { model.mode };
    let full = explain(engine, model, full_mode, Target::Top(1), LOGITS_COMPARED)?;
    check_finite(&full)?;
    let Some(class) = full.targets.first().map(|target| target.class_index).filter(|_| full_mode != model.mode) else {
        return Ok(());
    };
    // All classes are asked for: one that is high in float32 need not be high in bfloat16.
    let reduced = explain(engine, model, model.mode, Target::Class(class), usize::MAX);
    let reduced = reduced.and_then(|answer| check_finite(&answer).map(|()| answer));
    let reduced = reduced.map_err(|cause| WarmUpCause::Reduced(Box::new(cause)))?;
    let Metadata { name, version, .. } = &*model.metadata;
    let found = distance(&full, &reduced);
    let ReducedPrecision { map_cosine, logit_difference } = found;
    if map_cosine < ReducedPrecision::COSINE_EXPECTED {
        tracing::warn!(name, version, map_cosine, logit_difference, "bfloat16 is far from float32 for a first frame");
    } else {
        tracing::info!(name, version, map_cosine, logit_difference, "bfloat16 beside float32 for a first frame");
    }
    // It is set already only if the same model is added twice.
    let _ = model.reduced.set(found);
    Ok(())
}

fn distance(full: &Answer, reduced: &Answer) -> ReducedPrecision {
    let numbers = |answer: &Answer| -> Vec<f64> { maps(answer).flatten().map(f64::from).collect() };
    let (a, b) = (numbers(full), numbers(reduced));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = (dot(&a, &a) * dot(&b, &b)).sqrt();
    let logit = |class: u32| reduced.predictions.iter().find(|p| p.class_index == class).map(|p| p.logit);
    let differences = full.predictions.iter().filter_map(|p| Some(f64::from((p.logit - logit(p.class_index)?).abs())));
    ReducedPrecision {
        // Equal maps, two of zeros included.
        map_cosine: if a == b { 1.0 } else { dot(&a, &b) / lengths.max(f64::MIN_POSITIVE) },
        logit_difference: differences.fold(0.0, f64::max),
    }
}

/// The values of each map.
fn maps(answer: &Answer) -> impl Iterator<Item = impl Iterator<Item = f32>> {
    answer.targets.iter().flat_map(|target| &target.tensors).map(|(_, _, tensor)| {
        tensor.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    })
}

fn explain(
    engine: &Engine,
    model: &Arc<Served>,
    mode: Mode,
    target: Target,
    top_predictions: usize,
) -> Result<Answer, WarmUpCause> {
    let map =
        if model.metadata.default_target_layers.is_empty() { MapKind::GuidedBackprop } else { MapKind::GuidedGradCam };
    let tensor = TensorOutput { map, element_type: ElementType::F32, resolution: Resolution::Model };
    let outputs = Outputs { tensors: vec![tensor], top_predictions, ..Outputs::default() };
    let payload = first_frame(model);
    model.check_header(&payload, &outputs).map_err(WarmUpCause::Job)?;
    let lane = engine.lane(model);
    let (told, outcome) = mpsc::channel::<Outcome>();
    engine.submit(Job {
        lane,
        priority: 0,
        expires_at: None,
        method: Method { maps: outputs.maps(), mode, ..Method::default() },
        targets: vec![target],
        outputs,
        payload,
        progress: Progress::start(engine.clock().now()),
        admission: Admission::uncounted(),
        onlooker: None,
        // The receiver waits below.
        reply: Reply::new(move |outcome| drop(told.send(outcome))),
    });
    outcome.recv().unwrap_or(Err(JobError::Stopped)).map_err(WarmUpCause::Job)
}

/// A picture of the input's own size where the model takes pictures, so that preprocessing is proved as well; else a
/// tensor.
fn first_frame(model: &Served) -> Payload {
    let [_, channels, height, width] =
        model.metadata.input.shape.map(|dimension| u32::try_from(dimension.example()).unwrap_or(0));
    // A ramp in every direction and colour: constant planes have no variance, which some models divide by.
    let value = |channel: u32, y: u32, x: u32| (x * 5 + y * 3 + channel * 85) % 256;
    if model.takes_pictures() {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        let data: Vec<u8> = pixels.flat_map(|(y, x)| [0, 1, 2].map(|channel| value(channel, y, x) as u8)).collect();
        return Payload::Raw { data: data.into(), width, height, pixel_format: PixelFormat::Rgb8, stride_bytes: None };
    }
    let elements = (0..channels).flat_map(|c| (0..height).flat_map(move |y| (0..width).map(move |x| (c, y, x))));
    let data: Vec<u8> = elements.flat_map(|(c, y, x)| (value(c % 3, y, x) as f32 / 255.0).to_le_bytes()).collect();
    Payload::Tensor { data: data.into(), shape: vec![channels, height, width] }
}

fn check_finite(answer: &Answer) -> Result<(), WarmUpCause> {
    let of = |what, finite: bool| if finite { Ok(()) } else { Err(WarmUpCause::NotFinite { what }) };
    of("a logit", answer.predictions.iter().all(|prediction| prediction.logit.is_finite()))?;
    maps(answer).try_for_each(|mut numbers| of("the explanation", numbers.all(f32::is_finite)))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Bench, served};
    use super::super::job::TargetAnswer;
    use super::*;
    use crate::explain::{ExplainError, Prediction};
    use crate::frame::AffineTransform;
    use crate::render::WireTensor;
    use crate::telemetry::Timings;

    #[test]
    fn a_model_that_cannot_explain_a_frame_is_named_with_the_cause_and_does_not_take_over() {
        let batches = std::sync::atomic::AtomicU32::new(0);
        let bench = Bench::new(
            &[],
            Box::new(move |_, _| match batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(ExplainError::NotFinite),
            }),
        );
        let add = |name: &str| {
            let model = served(name, 4);
            std::thread::scope(|scope| {
                let adding = scope.spawn(|| add_model(&bench.engine, &model));
                bench.began();
                bench.go();
                adding.join().expect("no panic")
            })
        };
        add("sound").expect("it can run");
        let error = add("broken").expect_err("it is broken");
        assert_eq!((error.name.as_str(), error.version), ("broken", 1));
        assert!(error.to_string().contains("cannot explain a first frame: the model gave a logit"), "{error}");
        let models = bench.engine.models();
        assert_eq!((models.can_run("sound"), models.can_run("broken")), (Some(true), Some(false)));
        assert_eq!(models.problems[&("broken".to_owned(), Some(1))], error.to_string());
    }

    #[test]
    fn a_model_is_proved_although_frames_hold_all_budgets() {
        let model = served("m", 1);
        let bench = Bench::new(std::slice::from_ref(&model), Box::new(|_, _| Ok(())));
        let lane = bench.engine.lane(&model);
        let held: Vec<_> = std::iter::from_fn(|| lane.try_admit(1).ok()).collect();
        assert!(!held.is_empty() && lane.try_admit(1).is_err());
        let new = served("m", 1);
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| add_model(&bench.engine, &new));
            bench.began();
            bench.go();
            adding.join().expect("no panic").expect("it can run");
        });
        assert_eq!(bench.engine.served()[0].key(), new.key());
    }

    fn answer(values: [f32; 2], logits: &[(u32, f32)]) -> Answer {
        let prediction = |&(class_index, logit): &(u32, f32)| Prediction { class_index, logit, probability: 0.0 };
        Answer {
            agreement: None,
            sight: None,
            predictions: logits.iter().map(prediction).collect(),
            targets: vec![TargetAnswer {
                class_index: 0,
                score: 1.0,
                target_layer: String::new(),
                no_positive_evidence: false,
                tensors: vec![(
                    MapKind::GuidedBackprop,
                    Resolution::Model,
                    WireTensor::encode(&values, &[1, 2], ElementType::F32).expect("two numbers"),
                )],
                pictures: Vec::new(),
            }],
            model_to_frame: AffineTransform::IDENTITY,
            flaw: None,
            batch_size: 1,
            timings: Timings::start(std::time::Instant::now()),
        }
    }

    #[test]
    fn what_is_not_finite_is_no_proof() {
        assert!(check_finite(&answer([0.5, 1.0], &[(0, 2.0)])).is_ok());
        for value in [f32::NAN, f32::INFINITY] {
            let cause = check_finite(&answer([0.5, value], &[])).expect_err("not a number");
            assert!(cause.to_string().starts_with("the explanation holds a value that is not finite"), "{cause}");
        }
        assert!(check_finite(&answer([0.5, 1.0], &[(0, f32::NAN)])).is_err());
    }

    #[test]
    fn the_distance_of_two_answers_is_an_angle_and_a_difference_of_logits() {
        let logits = [(4, 2.0), (1, 0.5)];
        let same = distance(&answer([0.5, 1.0], &logits), &answer([1.0, 2.0], &logits));
        assert_eq!((same.map_cosine, same.logit_difference), (1.0, 0.0), "scale does not count");
        // 3-4-5; of the classes that the first one tells.
        let other = distance(&answer([1.0, 0.0], &logits), &answer([3.0, 4.0], &[(7, 9.0), (4, 1.0), (1, 0.75)]));
        assert!((other.map_cosine - 0.6).abs() < 1e-9, "{other:?}");
        assert_eq!(other.logit_difference, 1.0);
        assert_eq!(distance(&answer([0.0, 0.0], &[]), &answer([0.0, 0.0], &[])).map_cosine, 1.0);
        assert_eq!(distance(&answer([0.0, 0.0], &[]), &answer([0.0, 1.0], &[])).map_cosine, 0.0);
    }
}
