//! A first frame for each model, before any client's: it proves that the model can be explained, and compiles its plan.

use std::sync::{Arc, mpsc};

use super::engine::Engine;
use super::job::{Answer, Job, JobError, Outcome, Reply};
use super::outputs::{MapKind, Outputs, Resolution, TensorOutput};
use super::served::Served;
use crate::explain::{Convention, Method, Mode, Target};
use crate::frame::{Payload, PixelFormat};
use crate::model::Metadata;
use crate::render::ElementType;
use crate::telemetry::Progress;

/// A model that is served cannot be explained.
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
    /// Weights that are not numbers, or a model that takes its input in another range.
    #[error("{what} holds a value that is not finite; are weights and preprocessing in order?")]
    NotFinite { what: &'static str },
}

/// Explains one frame with each model, the way a client's frame goes; blocks until all are explained. What is asked is what a
/// request is given by default: the top class, Guided Grad-CAM at the default target layer. A model without a default target
/// layer needs one in each request, so that only its guided gradient is computed.
///
/// # Errors
/// The first model that fails. Its name and the cause are meant for whoever starts the server.
pub fn warm_up(engine: &Engine) -> Result<(), WarmUpError> {
    for model in engine.served() {
        let Metadata { name, version, .. } = &*model.metadata;
        let began = engine.clock().now();
        explain_first(engine, model).map_err(|cause| WarmUpError {
            name: name.clone(),
            version: *version,
            cause: Box::new(cause),
        })?;
        let took = engine.clock().now().saturating_duration_since(began);
        tracing::info!(name, version, ms = took.as_millis() as u64, "explained a first frame");
    }
    Ok(())
}

fn explain_first(engine: &Engine, model: &Arc<Served>) -> Result<(), WarmUpCause> {
    let map =
        if model.metadata.default_target_layers.is_empty() { MapKind::GuidedBackprop } else { MapKind::GuidedGradCam };
    let tensor = TensorOutput { map, element_type: ElementType::F32, resolution: Resolution::Model };
    let outputs = Outputs { tensors: vec![tensor], top_predictions: 1, ..Outputs::default() };
    let payload = first_frame(model);
    model.check_header(&payload, &outputs).map_err(WarmUpCause::Job)?;
    let lane = engine.lane(model);
    let admission = lane.try_admit(0).map_err(|_| WarmUpCause::Job(JobError::Stopped))?;
    let (told, outcome) = mpsc::channel::<Outcome>();
    engine.submit(Job {
        lane,
        priority: 0,
        expires_at: None,
        method: Method {
            target_layers: Vec::new(),
            convention: Convention::default(),
            maps: outputs.maps(),
            mode: if model.metadata.exact { Mode::Exact } else { Mode::Default },
        },
        targets: vec![Target::Top(1)],
        outputs,
        payload,
        progress: Progress::start(engine.clock().now()),
        admission,
        // Whoever waits has its channel below.
        reply: Reply::new(move |outcome| drop(told.send(outcome))),
    });
    let answer = outcome.recv().unwrap_or(Err(JobError::Stopped)).map_err(WarmUpCause::Job)?;
    check_finite(&answer)
}

/// A picture of the input's own size where the model takes pictures, so that preprocessing is proved as well; else a tensor.
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
    let places = (0..channels).flat_map(|c| (0..height).flat_map(move |y| (0..width).map(move |x| (c, y, x))));
    let data: Vec<u8> = places.flat_map(|(c, y, x)| (value(c % 3, y, x) as f32 / 255.0).to_le_bytes()).collect();
    Payload::Tensor { data: data.into(), shape: vec![channels, height, width] }
}

fn check_finite(answer: &Answer) -> Result<(), WarmUpCause> {
    let of = |what, finite: bool| if finite { Ok(()) } else { Err(WarmUpCause::NotFinite { what }) };
    of("the top class's logit", answer.predictions.iter().all(|prediction| prediction.logit.is_finite()))?;
    for (_, _, tensor) in answer.targets.iter().flat_map(|target| &target.tensors) {
        let numbers = tensor.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        of("the explanation", numbers.into_iter().all(f32::is_finite))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Bench, served};
    use super::super::job::TargetAnswer;
    use super::*;
    use crate::explain::ExplainError;
    use crate::frame::AffineTransform;
    use crate::render::WireTensor;
    use crate::telemetry::Timings;

    #[test]
    fn each_model_explains_a_frame_and_the_first_that_fails_is_named() {
        let models = [served("sound", 4), served("broken", 4), served("never", 4)];
        let batches = std::sync::atomic::AtomicU32::new(0);
        let bench = Bench::new(
            &models,
            Box::new(move |_, _| match batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(ExplainError::NotFinite),
            }),
        );
        let error = std::thread::scope(|scope| {
            let warming = scope.spawn(|| warm_up(&bench.engine));
            for _ in 0..2 {
                bench.began();
                bench.go();
            }
            warming.join().expect("no panic").expect_err("one is broken")
        });
        assert_eq!((error.name.as_str(), error.version), ("broken", 1));
        assert!(error.to_string().contains("cannot explain a first frame: the model gave a logit"), "{error}");
    }

    #[test]
    fn what_is_not_finite_is_no_proof() {
        let answer = |value: f32| Answer {
            predictions: Vec::new(),
            targets: vec![TargetAnswer {
                class_index: 0,
                score: 1.0,
                target_layer: String::new(),
                no_positive_evidence: false,
                tensors: vec![(
                    MapKind::GuidedBackprop,
                    Resolution::Model,
                    WireTensor::encode(&[0.5, value], &[1, 2], ElementType::F32).expect("two numbers"),
                )],
                pictures: Vec::new(),
            }],
            model_to_frame: AffineTransform::IDENTITY,
            batch_size: 1,
            timings: Timings::start(std::time::Instant::now()),
        };
        assert!(check_finite(&answer(1.0)).is_ok());
        for value in [f32::NAN, f32::INFINITY] {
            let cause = check_finite(&answer(value)).expect_err("not a number");
            assert!(cause.to_string().starts_with("the explanation holds a value that is not finite"), "{cause}");
        }
    }
}
