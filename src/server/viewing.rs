//! From answers to what the live page shows.

use std::time::SystemTime;

use crate::explain::{HostMap, MapKind, TargetMaps};
use crate::model::Metadata;
use crate::render::{Grid, Prediction, Scene, Target};
use crate::schedule::{Answer, Sight};

/// What is known of a frame beside its answer.
pub(super) struct SeenFrame<'a> {
    pub(super) sequence: u64,
    pub(super) tag: &'a [u8],
    pub(super) captured: Option<SystemTime>,
}

/// The scene of an answer whose frame somebody wanted to see. It takes the maps out of the answer.
pub(super) fn scene(answer: &mut Answer, frame: &SeenFrame<'_>, model: &Metadata) -> Option<Scene> {
    let Sight { frame: pixels, to_upright, map_size, targets } = *answer.sight.take()?;
    let class = |index: u32| match model.label(index) {
        "" => format!("class {index}"),
        label => label.to_owned(),
    };
    let predictions = answer.predictions.iter().map(|p| Prediction {
        class: class(p.class_index),
        probability: p.probability,
        logit: p.logit,
    });
    let stages = answer.timings.stages().iter().map(|timing| (timing.stage.name(), timing.duration));
    Some(Scene {
        sequence: frame.sequence,
        tag: String::from_utf8_lossy(frame.tag).into_owned(),
        frame: pixels,
        to_upright,
        map_size,
        color: model.preprocessing.color,
        predictions: predictions.collect(),
        targets: targets.into_iter().map(|target| shown(target, &class)).collect(),
        stages: stages.collect(),
        // A clock that is behind the camera's gives none.
        glass_to_answer: frame.captured.and_then(|captured| SystemTime::now().duration_since(captured).ok()),
    })
}

fn shown(mut target: TargetMaps<HostMap>, class: &dyn Fn(u32) -> String) -> Target {
    let mut grid = |kind| target.maps.take(kind).map(|HostMap { values, shape }| Grid { values, shape });
    Target {
        cam: grid(MapKind::GradCam),
        guided: grid(MapKind::GuidedGradCam),
        class: class(target.class_index),
        target_layer: target.target_layer,
        no_evidence: target.no_positive_evidence,
    }
}
