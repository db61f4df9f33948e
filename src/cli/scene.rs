//! From an answer and its frame to a scene, of which the report and the live page make pictures.

use std::time::Duration;

use super::answer::class_name;
use super::connection::Connection;
use super::options::{MapKind, PictureKind};
use crate::client::{self, names};
use crate::frame::{AffineTransform, Limits, PixelFormat, Pixels, decode};
use crate::model::description::ColorOrder;
use crate::proto::v1;
use crate::proto::v1::model_service_client::ModelServiceClient;
use crate::render::{ElementType, Grid, Prediction, Scene, Target, WireTensor};
use crate::telemetry::Stage;

/// Maps that scenes need, beside those that the user has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SceneMaps {
    /// The user's maps, which come first.
    asked: usize,
    /// The order of the model's channels. `None`: Guided Grad-CAM is not asked for.
    guided: Option<ColorOrder>,
}

impl SceneMaps {
    /// What scenes of these pictures and maps need; `color` is the order of the model's channels, where it is known.
    /// `None` when the user asks for nothing that needs a target layer: there may be none.
    pub fn of(pictures: &[PictureKind], maps: &[MapKind], color: Option<ColorOrder>) -> Option<SceneMaps> {
        let guided = pictures.iter().any(|picture| matches!(picture, PictureKind::GuidedGradCam | PictureKind::Light))
            || maps.contains(&MapKind::GuidedGradCam);
        let cam = pictures.iter().any(|picture| matches!(picture, PictureKind::Overlay | PictureKind::HeatMap))
            || maps.contains(&MapKind::GradCam);
        (guided || cam).then_some(SceneMaps { asked: maps.len(), guided: color.filter(|_| guided) })
    }

    /// Asks for the maps, behind those that `options` asks for already.
    pub fn ask(self, options: &mut v1::ExplainOptions) {
        let output = |map: v1::Map| v1::TensorOutput {
            map: map as i32,
            element_type: v1::ElementType::Float16 as i32,
            ..Default::default()
        };
        options.tensors.push(output(v1::Map::GradCam));
        options.tensors.extend(self.guided.map(|_| output(v1::Map::GuidedGradCam)));
    }

    /// A scene of an answer and its frame. `None` when the answer lacks the maps, or `payload` is no picture that can
    /// be shown.
    pub fn scene(self, answer: &v1::Explanation, payload: &client::Payload) -> Option<Scene> {
        let targets: Vec<Target> = answer.targets.iter().map(|target| self.target(target)).collect::<Option<_>>()?;
        let pixels = pixels(payload)?;
        let to_stored = answer.model_to_frame.as_ref()?;
        let to_stored = AffineTransform {
            matrix: [to_stored.xx, to_stored.xy, to_stored.x0, to_stored.yx, to_stored.yy, to_stored.y0],
        };
        let &[height, width] = targets.first()?.cam.as_ref()?.shape.as_slice() else { return None };
        Some(Scene {
            sequence: answer.sequence,
            tag: String::from_utf8_lossy(&answer.tag).into_owned(),
            to_upright: to_stored.then(&pixels.upright_to_stored().inverse()?),
            frame: Some(pixels),
            map_size: (width, height),
            color: self.guided.unwrap_or(ColorOrder::Rgb),
            predictions: answer.predictions.iter().map(prediction).collect(),
            stages: answer.timings.iter().filter_map(stage).collect(),
            targets,
            glass_to_answer: None,
        })
    }

    /// The target's maps behind the user's.
    fn target(self, target: &v1::TargetExplanation) -> Option<Target> {
        let count = 1 + usize::from(self.guided.is_some());
        if target.tensors.len() < self.asked + count {
            return None;
        }
        let mut maps = target.tensors[self.asked..].iter().map(|map| grid(map.tensor.as_ref()?));
        let (cam, guided) = (maps.next().flatten()?, maps.next().flatten());
        Some(Target {
            class: class_name(&target.label, target.class_index),
            target_layer: target.target_layer.clone(),
            no_evidence: cam.values.iter().all(|value| *value == 0.0),
            cam: Some(cam),
            guided,
        })
    }
}

/// The order of a model's channels. `None` when the server does not tell.
pub async fn color_order(connection: &Connection, model: Option<v1::ModelSelector>) -> Option<ColorOrder> {
    let request = v1::GetModelRequest { model };
    let answer = ModelServiceClient::new(connection.channel()).get_model(request).await.ok()?.into_inner();
    match answer.metadata?.preprocessing?.color.as_str() {
        "rgb" => Some(ColorOrder::Rgb),
        "bgr" => Some(ColorOrder::Bgr),
        "gray" => Some(ColorOrder::Gray),
        _ => None,
    }
}

fn grid(tensor: &v1::Tensor) -> Option<Grid> {
    let element_type = match tensor.element_type() {
        v1::ElementType::Float16 => ElementType::F16,
        _ => return None,
    };
    let (shape, data) = (tensor.shape.clone(), tensor.data.to_vec());
    let values = WireTensor { element_type, shape: shape.clone(), data, scale: None, zero_point: None }.values();
    Some(Grid { values, shape })
}

fn prediction(p: &v1::Prediction) -> Prediction {
    Prediction { class: class_name(&p.label, p.class_index), probability: p.probability, logit: p.logit }
}

fn stage(timing: &v1::StageTiming) -> Option<(&'static str, Duration)> {
    let name = names::stage(timing.stage);
    let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name)?;
    Some((stage.name(), Duration::from_nanos(timing.duration_ns)))
}

/// The frame's upright pixels.
fn pixels(payload: &client::Payload) -> Option<Pixels> {
    let payload = match payload {
        client::Payload::Encoded(data) => crate::frame::Payload::encoded(data.clone()).allowing_damage(),
        client::Payload::Rgb { width, height, data } => crate::frame::Payload::Raw {
            data: data.clone(),
            width: *width,
            height: *height,
            pixel_format: PixelFormat::Rgb8,
            stride_bytes: None,
        },
    };
    decode(&payload, &Limits::default(), None).ok()?.picture().cloned()
}
