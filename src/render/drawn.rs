//! A scene, drawn in parts from which a page makes its pictures.

use super::{Area, HeatLayer, LightLayer, PictureFormat, RenderError, Scene, Target, ValueRange};
use super::{encode, guided_picture, heat_layer, layer_to_model, light_layer};
use crate::frame::Pixels;
use crate::model::description::ColorOrder;

/// Most targets of a scene that are drawn.
const MAX_TARGETS: usize = 8;

/// How finely the parts are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// Of the JPEGs, 1 to 100.
    pub quality: u32,
    /// Longer side of the heat maps, which are smooth, in pixels.
    pub heat_side: u32,
    /// Longer side of the light, in pixels. `None`: neither the light nor the picture of the guided map is drawn.
    pub light_side: Option<u32>,
}

/// A frame and its layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    pub width: u32,
    pub height: u32,
    /// A JPEG.
    pub frame: Vec<u8>,
    pub targets: Vec<DrawnTarget>,
}

/// What is drawn over a frame for one class at one layer. Maps that were not computed are absent.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnTarget {
    pub class: String,
    pub target_layer: String,
    pub no_evidence: bool,
    /// The part of the frame that the maps cover; absent when there is no map.
    pub area: Option<Area>,
    pub heat: Option<HeatLayer>,
    pub light: Option<LightLayer>,
    /// A JPEG of Guided Grad-CAM around grey.
    pub guided: Option<Vec<u8>>,
}

impl Drawn {
    /// Draws a scene that has a frame ([`Scene::shrunk`] gives every scene one).
    ///
    /// # Errors
    /// [`RenderError::NoArea`] without a frame, errors of maps whose shapes do not fit, and of the encoder.
    pub fn of(scene: &Scene, detail: Detail) -> Result<Drawn, RenderError> {
        let frame = scene.frame.as_ref().ok_or(RenderError::NoArea)?;
        let target = |target: &Target| drawn(target, scene, frame, detail);
        Ok(Drawn {
            width: frame.width(),
            height: frame.height(),
            frame: jpeg(frame, detail.quality)?,
            targets: scene.targets.iter().take(MAX_TARGETS).map(target).collect::<Result<_, _>>()?,
        })
    }
}

fn drawn(target: &Target, scene: &Scene, frame: &Pixels, detail: Detail) -> Result<DrawnTarget, RenderError> {
    let (size, to_upright, range) = ((frame.width(), frame.height()), &scene.to_upright, ValueRange::OfTheMap);
    let mut drawn = DrawnTarget {
        class: target.class.clone(),
        target_layer: target.target_layer.clone(),
        no_evidence: target.no_evidence,
        area: None,
        heat: None,
        light: None,
        guided: None,
    };
    if let Some(cam) = &target.cam {
        let map = cam.map()?;
        // A map at the layer's own resolution covers the model's input as one of the input's resolution does.
        let to_upright = layer_to_model((map.width(), map.height()), scene.map_size).then(to_upright);
        drawn.area = Some(Area::of((map.width(), map.height()), &to_upright, size));
        drawn.heat = Some(heat_layer(&map, &to_upright, size, range, detail.heat_side)?);
    }
    if let (Some(guided), Some(light_side)) = (&target.guided, detail.light_side) {
        let shape = guided.volume()?;
        drawn.area = Some(Area::of((shape[2], shape[1]), to_upright, size));
        drawn.light = Some(light_layer(&guided.values, shape, to_upright, size, range, light_side)?);
        drawn.guided = guided_jpeg(&guided.values, shape, scene.color, detail.quality)?;
    }
    Ok(drawn)
}

/// `None` for a map that makes no picture: of neither one nor three channels.
fn guided_jpeg(
    values: &[f32],
    shape: [u32; 3],
    color: ColorOrder,
    quality: u32,
) -> Result<Option<Vec<u8>>, RenderError> {
    match guided_picture(values, shape, color) {
        Ok(picture) => jpeg(&picture, quality).map(Some),
        Err(RenderError::Shape { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn jpeg(picture: &Pixels, quality: u32) -> Result<Vec<u8>, RenderError> {
    encode(picture, PictureFormat::Jpeg { quality })
}
