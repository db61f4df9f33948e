//! From answers to messages.

use bytes::Bytes;

use crate::explain::{Agreement, Convention, Mode, Prediction};
use crate::frame::{AffineTransform, Flaw};
use crate::model::{Activation, Metadata, dtype};
use crate::proto::v1;
use crate::render::{ElementType, PictureFormat, WireTensor};
use crate::schedule::{Answer, MapKind, PictureFile, PictureKind, Resolution, Served, TargetAnswer, TensorOutput};
use crate::telemetry::{Stage, Timings};

use crate::server::refusal::Refusal;
use crate::server::submit::CheckedOptions;

/// The fields of a frame that its answer repeats.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Echo {
    pub(in crate::server) sequence: u64,
    pub(in crate::server) capture_time: Option<prost_types::Timestamp>,
    pub(in crate::server) tag: Bytes,
}

/// An answer as a message. Its timings end with the rendering; later stages are added when the message is sent.
pub(in crate::server) fn explanation(
    answer: Answer,
    echo: Echo,
    trace_id: String,
    options: &CheckedOptions,
    served: &Served,
) -> v1::Explanation {
    let notices = notices(&answer, options, served);
    let model = &*served.metadata;
    v1::Explanation {
        sequence: echo.sequence,
        capture_time: echo.capture_time,
        tag: echo.tag,
        trace_id,
        model: Some(identity(model, options.method.mode)),
        predictions: answer.predictions.iter().map(|p| prediction(p, model)).collect(),
        targets: answer.targets.into_iter().map(|target| target_explanation(target, model)).collect(),
        model_to_frame: Some(transform(&answer.model_to_frame)),
        timings: timings(&answer.timings),
        batch_size: answer.batch_size,
        notices,
        convention: convention(options.method.convention) as i32,
        agreement: answer.agreement.as_ref().map(|found| agreement(found, model)),
    }
}

fn agreement(found: &Agreement, model: &Metadata) -> v1::Agreement {
    v1::Agreement {
        agrees: found.agrees,
        top: Some(prediction(&found.top, model)),
        own: Some(prediction(&found.own, model)),
        expected_probability: found.expected.probability,
        compares_probabilities: found.compares_probabilities,
        tolerance: found.expected.tolerance,
    }
}

/// A frame's refusal as its error.
pub(in crate::server) fn frame_error(refusal: Refusal, sequence: u64, tag: Bytes) -> v1::FrameError {
    let Refusal { code, message, field, retry_after } = refusal;
    v1::FrameError {
        sequence,
        tag,
        code: code as i32,
        message,
        field,
        retry_after: retry_after.and_then(|delay| delay.try_into().ok()),
    }
}

pub(in crate::server) fn identity(model: &Metadata, mode: Mode) -> v1::ModelIdentity {
    v1::ModelIdentity {
        name: model.name.clone(),
        version: model.version,
        digest: model.digest.clone(),
        precision: precision(mode) as i32,
    }
}

pub(in crate::server) fn precision(mode: Mode) -> v1::Precision {
    match mode {
        Mode::Default => v1::Precision::Float32,
        Mode::Exact => v1::Precision::Exact,
        Mode::Bfloat16 => v1::Precision::Bfloat16,
    }
}

pub(in crate::server) fn convention(convention: Convention) -> v1::Convention {
    match convention {
        Convention::Captum => v1::Convention::Captum,
        Convention::PytorchGradCam => v1::Convention::PytorchGradCam,
    }
}

pub(in crate::server) fn tensor_output(output: &TensorOutput) -> v1::TensorOutput {
    v1::TensorOutput {
        map: map(output.map) as i32,
        element_type: element_type(output.element_type) as i32,
        resolution: resolution(output.resolution) as i32,
    }
}

/// The stages in order, without `send`: a message cannot contain its own sending.
pub(in crate::server) fn timings(timings: &Timings) -> Vec<v1::StageTiming> {
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    timings
        .stages()
        .iter()
        .filter_map(|timing| {
            Some(v1::StageTiming {
                stage: stage(timing.stage)? as i32,
                start_ns: nanoseconds(timing.start),
                duration_ns: nanoseconds(timing.duration),
            })
        })
        .collect()
}

fn stage(stage: Stage) -> Option<v1::Stage> {
    Some(match stage {
        Stage::Receive => v1::Stage::Receive,
        Stage::Queue => v1::Stage::Queue,
        Stage::Decode => v1::Stage::Decode,
        Stage::Preprocess => v1::Stage::Preprocess,
        Stage::Batch => v1::Stage::Batch,
        Stage::CopyIn => v1::Stage::CopyIn,
        Stage::Forward => v1::Stage::Forward,
        Stage::Backward => v1::Stage::Backward,
        Stage::Fuse => v1::Stage::Fuse,
        Stage::CopyOut => v1::Stage::CopyOut,
        Stage::Render => v1::Stage::Render,
        Stage::Deliver => v1::Stage::Deliver,
        Stage::Send => return None,
    })
}

fn notices(answer: &Answer, options: &CheckedOptions, served: &Served) -> Vec<v1::Notice> {
    let mut notices = Vec::new();
    if let Some(flaw) = answer.flaw {
        let (code, message) = match flaw {
            Flaw::Damaged(damage) => {
                let gray = if damage.lost > 0.0 { "; parts that were lost are grey" } else { "" };
                (v1::notice::Code::DamagedFrame, format!("the frame is a damaged JPEG: {damage}{gray}"))
            }
            Flaw::UnusedBits { used } => (
                v1::notice::Code::UnusedBits,
                format!(
                    "the frame is nearly black: its 16-bit samples use the lower {used} bits alone; if the camera has \
                     so few, say so in the PNG's sBIT chunk, or as input.sample_bits in model.toml"
                ),
            ),
        };
        notices.push(v1::Notice { code: code as i32, message, ..Default::default() });
    }
    if let Some(found) = &answer.agreement {
        notices.extend(disagreement(found, &served.metadata));
    }
    if served.metadata.guided_operators() == 0 && options.method.maps.needs_guided_gradient() {
        notices.push(v1::Notice {
            code: v1::notice::Code::NoRectifier as i32,
            message: "the model has no rectifier: guided backpropagation is the plain gradient".to_owned(),
            ..Default::default()
        });
    }
    if let (Mode::Bfloat16, Some(found)) = (options.method.mode, served.reduced_precision()) {
        notices.push(v1::Notice {
            code: v1::notice::Code::ReducedPrecision as i32,
            message: format!(
                "computed in bfloat16; for a picture at the server's start its map had a cosine of {:.4} to float32's, \
                 and its logits differed by up to {:.2}",
                found.map_cosine, found.logit_difference
            ),
            ..Default::default()
        });
    }
    if served.allows_tf32() {
        notices.push(v1::Notice {
            code: v1::notice::Code::ReducedPrecision as i32,
            message: "products of float32 may be computed in TF32: device.allow_tf32 is set".to_owned(),
            ..Default::default()
        });
    }
    if let (Mode::Default, Some(kind)) = (options.method.mode, served.widened_from()) {
        let saved_in = dtype::name(kind);
        notices.push(v1::Notice {
            code: v1::notice::Code::WidenedPrecision as i32,
            message: format!(
                "computed in float32: the model was saved in {saved_in}, for which the server's processor has no \
                 instructions"
            ),
            ..Default::default()
        });
    }
    if options.method.mode == Mode::Exact || served.widened_from().is_none() {
        for kind in &served.metadata.narrow_kinds {
            notices.push(v1::Notice {
                code: v1::notice::Code::ReducedPrecision as i32,
                message: format!("computed in {}, as the model was saved", dtype::name(*kind)),
                ..Default::default()
            });
        }
    }
    for target in answer.targets.iter().filter(|target| target.no_positive_evidence) {
        notices.push(v1::Notice {
            code: v1::notice::Code::NoPositiveEvidence as i32,
            message: format!("nothing in {} speaks for class {}", target.target_layer, target.class_index),
            class_index: Some(target.class_index),
            target_layer: target.target_layer.clone(),
        });
    }
    notices
}

/// What is to be said of a prediction beside the expected one.
fn disagreement(found: &Agreement, model: &Metadata) -> Vec<v1::Notice> {
    let Agreement { agrees, expected, top, own, compares_probabilities } = *found;
    let class = |index: u32| match model.label(index) {
        "" => format!("class {index}"),
        label => format!("{label} (class {index})"),
    };
    let notice = |code: v1::notice::Code, message| v1::Notice {
        code: code as i32,
        message,
        class_index: Some(expected.class_index),
        ..Default::default()
    };
    let mut notices = Vec::new();
    if !agrees {
        let sent = expected.probability.map_or(String::new(), |probability| format!(" with probability {probability}"));
        let here = if model.scores.activation != Activation::None {
            format!(
                "{} with {}, and {} has {}",
                class(top.class_index),
                top.probability,
                class(own.class_index),
                own.probability
            )
        } else {
            format!("{}: logit {}, and {} has {}", class(top.class_index), top.logit, class(own.class_index), own.logit)
        };
        let message = format!(
            "expected {}{sent}; the top class here is {here} (tolerance {}): are weights, version and preprocessing \
             those of the server that was asked?",
            class(expected.class_index),
            expected.tolerance
        );
        notices.push(notice(v1::notice::Code::Disagrees, message));
    }
    if expected.probability.is_some() && !compares_probabilities {
        let message =
            "the model has no probabilities (output.activation is none): classes alone were compared".to_owned();
        notices.push(notice(v1::notice::Code::ProbabilityIgnored, message));
    }
    notices
}

fn prediction(prediction: &Prediction, model: &Metadata) -> v1::Prediction {
    v1::Prediction {
        class_index: prediction.class_index,
        label: model.label(prediction.class_index).to_owned(),
        logit: prediction.logit,
        probability: prediction.probability,
    }
}

fn target_explanation(target: TargetAnswer, model: &Metadata) -> v1::TargetExplanation {
    v1::TargetExplanation {
        class_index: target.class_index,
        label: model.label(target.class_index).to_owned(),
        score: target.score,
        target_layer: target.target_layer,
        tensors: target.tensors.into_iter().map(map_tensor).collect(),
        pictures: target.pictures.into_iter().map(picture).collect(),
    }
}

fn map_tensor((kind, at, tensor): (MapKind, Resolution, WireTensor)) -> v1::MapTensor {
    v1::MapTensor {
        map: map(kind) as i32,
        resolution: resolution(at) as i32,
        tensor: Some(v1::Tensor {
            element_type: element_type(tensor.element_type) as i32,
            shape: tensor.shape,
            data: tensor.data.into(),
            scale: tensor.scale,
            zero_point: tensor.zero_point,
        }),
    }
}

fn picture(file: PictureFile) -> v1::EncodedPicture {
    v1::EncodedPicture {
        picture: match file.kind {
            PictureKind::Overlay => v1::Picture::Overlay,
            PictureKind::HeatMap => v1::Picture::HeatMap,
            PictureKind::GuidedGradCam => v1::Picture::GuidedGradCam,
            PictureKind::GuidedBackprop => v1::Picture::GuidedBackprop,
            PictureKind::Light => v1::Picture::Light,
        } as i32,
        format: match file.format {
            PictureFormat::Png => v1::ImageFormat::Png,
            PictureFormat::Jpeg { .. } => v1::ImageFormat::Jpeg,
        } as i32,
        width: file.width,
        height: file.height,
        data: file.data.into(),
    }
}

fn map(kind: MapKind) -> v1::Map {
    match kind {
        MapKind::GuidedGradCam => v1::Map::GuidedGradCam,
        MapKind::GradCam => v1::Map::GradCam,
        MapKind::GuidedBackprop => v1::Map::GuidedBackprop,
        MapKind::Input => v1::Map::Input,
    }
}

fn element_type(element_type: ElementType) -> v1::ElementType {
    match element_type {
        ElementType::F32 => v1::ElementType::Float32,
        ElementType::F16 => v1::ElementType::Float16,
        ElementType::U8 => v1::ElementType::Uint8,
    }
}

fn resolution(resolution: Resolution) -> v1::Resolution {
    match resolution {
        Resolution::Model => v1::Resolution::Model,
        Resolution::Frame => v1::Resolution::Frame,
        Resolution::Layer => v1::Resolution::Layer,
    }
}

fn transform(transform: &AffineTransform) -> v1::AffineTransform {
    let [xx, xy, x0, yx, yy, y0] = transform.matrix;
    v1::AffineTransform { xx, xy, x0, yx, yy, y0 }
}
