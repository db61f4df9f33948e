//! A frame, drawn once for all viewers.

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Value, json};

use super::message::message;
use super::picture::Picture;
use crate::render::{Detail, Drawn, DrawnTarget, RenderError, Scene};

/// How finely frames are drawn for the page.
pub(super) const DETAIL: Detail = Detail { quality: 82, heat_side: 56, light_side: Some(112) };

/// A frame as viewers get it.
pub(super) struct Shot {
    /// The message for the page.
    pub(super) message: Bytes,
    /// The scene with a frame of the size that is shown.
    pub(super) scene: Scene,
    /// Encoded when somebody asks for them first.
    pub(super) pictures: [OnceLock<Option<Bytes>>; Picture::ALL.len()],
}

impl Shot {
    /// # Errors
    /// Maps whose shapes do not fit, or a frame that cannot be encoded.
    pub(super) fn draw(scene: Scene, max_side: u32) -> Result<Shot, RenderError> {
        let scene = scene.shrunk(max_side);
        let Drawn { width, height, frame, targets } = Drawn::of(&scene, DETAIL)?;
        let pictures: [OnceLock<Option<Bytes>>; Picture::ALL.len()] = Default::default();
        // The frame's own picture is there already.
        let _ = pictures[Picture::Frame as usize].set(Some(frame.clone().into()));
        let mut parts = vec![frame];
        let targets: Vec<Value> = targets.into_iter().map(|target| described(target, &mut parts)).collect();
        let head = json!({
            "kind": "frame",
            "sequence": scene.sequence,
            "tag": scene.tag,
            "width": width,
            "height": height,
            "predictions": scene
                .predictions
                .iter()
                .map(|p| json!({"class": p.class, "probability": p.probability, "logit": p.logit}))
                .collect::<Vec<Value>>(),
            "targets": targets,
            "stages": scene
                .stages
                .iter()
                .map(|(stage, took)| json!([stage, took.as_secs_f64() * 1e3]))
                .collect::<Vec<Value>>(),
            "glass_to_answer_ms": scene.glass_to_answer.map(|took| took.as_secs_f64() * 1e3),
        });
        Ok(Shot { message: message(head, &parts), scene, pictures })
    }
}

/// A target whose layers are appended to `parts`, and referred to by index.
fn described(target: DrawnTarget, parts: &mut Vec<Vec<u8>>) -> Value {
    let DrawnTarget { class, target_layer, no_evidence, area, heat, light, guided } = target;
    let mut part = |bytes: Vec<u8>| {
        parts.push(bytes);
        parts.len() - 1
    };
    let mut described = json!({"class": class, "layer": target_layer, "no_evidence": no_evidence});
    if let Some(area) = area {
        described["area"] = json!([area.left, area.top, area.width, area.height]);
    }
    if let Some(heat) = heat {
        let (width, height) = (heat.width, heat.height);
        let (levels, opacities) = (part(heat.levels), part(heat.opacities));
        described["heat"] = json!({"width": width, "height": height, "levels": levels, "opacities": opacities});
    }
    if let Some(light) = light {
        described["light"] = json!({"width": light.width, "height": light.height, "lit": part(light.lit)});
    }
    if let Some(guided) = guided {
        described["guided"] = part(guided).into();
    }
    described
}
