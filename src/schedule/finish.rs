//! From a device's row to an answer: wire tensors and pictures.

use super::clock::Clock;
use super::device::{HostMap, RowMaps, TargetValues};
use super::error::JobError;
use super::job::{Answer, PictureFile, TargetAnswer};
use super::outputs::{PictureKind, PictureOutput, Resolution, TensorOutput};
use super::prepare::RowInfo;
use crate::explain::MapKind;
use crate::explain::top_predictions;
use crate::frame::{AffineTransform, Pixels};
use crate::model::description::ColorOrder;
use crate::render::{self, Map, RenderError, WireTensor};
use crate::telemetry::Stage;

/// A row after the device.
pub(super) struct DoneRow {
    pub(super) about: RowInfo,
    /// Kept only when it was asked for.
    pub(super) input: HostMap,
    pub(super) result: Result<RowMaps, JobError>,
    pub(super) batch_size: u32,
}

/// Renders what was asked for and ends the frame.
pub(super) fn finish(row: DoneRow, clock: &dyn Clock) {
    let DoneRow { about, input, result, batch_size } = row;
    if about.ending.ticket.is_over() {
        return;
    }
    let rendered = result.and_then(|maps| {
        let targets = maps.targets.iter().map(|target| render(&about, &input, target)).collect::<Result<_, _>>()?;
        Ok((top_predictions(&maps.logits, about.outputs.top_predictions), targets))
    });
    about.progress.mark(Stage::Render, clock.now());
    let RowInfo { model_to_frame, progress, admission, ending, .. } = about;
    let outcome = rendered.map(|(predictions, targets)| Answer {
        predictions,
        targets,
        model_to_frame: model_to_frame.stored,
        batch_size,
        timings: progress.timings(),
    });
    drop(admission);
    ending.finish(outcome);
}

fn render(about: &RowInfo, input: &HostMap, target: &TargetValues) -> Result<TargetAnswer, RenderError> {
    let source = Source { about, input, target };
    Ok(TargetAnswer {
        class_index: target.class_index,
        score: target.score,
        target_layer: target.target_layer.clone(),
        no_positive_evidence: target.no_positive_evidence,
        tensors: about.outputs.tensors.iter().map(|wish| source.tensor(wish)).collect::<Result<_, _>>()?,
        pictures: about.outputs.pictures.iter().map(|wish| source.picture(wish)).collect::<Result<_, _>>()?,
    })
}

/// Where tensors and pictures are made from.
struct Source<'a> {
    about: &'a RowInfo,
    input: &'a HostMap,
    target: &'a TargetValues,
}

impl Source<'_> {
    /// # Errors
    /// [`RenderError::Shape`] when the device did not make the map.
    fn map(&self, kind: MapKind) -> Result<&HostMap, RenderError> {
        let map = match kind {
            MapKind::GuidedGradCam => self.target.guided_grad_cam.as_ref(),
            MapKind::GradCam => self.target.grad_cam.as_ref(),
            MapKind::GuidedBackprop => self.target.guided_backprop.as_ref(),
            MapKind::Input => Some(self.input),
        };
        map.ok_or(RenderError::Shape { shape: Vec::new(), allowed: "a map that was computed does" })
    }

    fn tensor(&self, wish: &TensorOutput) -> Result<(MapKind, Resolution, WireTensor), RenderError> {
        let (map, resolution) = match (wish.resolution, &self.target.layer_map) {
            (Resolution::Layer, Some(layer_map)) => (layer_map, Resolution::Layer),
            // Layers of several sizes were averaged: the model's resolution is the only one they share.
            (Resolution::Layer, None) => (self.map(wish.map)?, Resolution::Model),
            (resolution, _) => (self.map(wish.map)?, resolution),
        };
        let tensor = if resolution == Resolution::Frame {
            let (width, height) = self.about.frame_size;
            let to_frame = &self.about.model_to_frame.stored;
            let warped = render::warp(&map.values, &map.shape, to_frame, width, height)?;
            let mut shape = map.shape.clone();
            let axes = shape.len();
            shape[axes - 2..].copy_from_slice(&[height, width]);
            WireTensor::encode(&warped, &shape, wish.element_type)?
        } else {
            WireTensor::encode(&map.values, &map.shape, wish.element_type)?
        };
        Ok((wish.map, resolution, tensor))
    }

    fn picture(&self, wish: &PictureOutput) -> Result<PictureFile, RenderError> {
        let picture = match wish.kind {
            PictureKind::HeatMap => render::heat_map(&self.grad_cam()?, wish.range, wish.color_map)?,
            PictureKind::Overlay => self.overlay(wish)?,
            PictureKind::GuidedGradCam => self.guided(MapKind::GuidedGradCam)?,
            PictureKind::GuidedBackprop => self.guided(MapKind::GuidedBackprop)?,
        };
        Ok(PictureFile {
            kind: wish.kind,
            format: wish.format,
            width: picture.width(),
            height: picture.height(),
            data: render::encode(&picture, wish.format)?,
        })
    }

    fn overlay(&self, wish: &PictureOutput) -> Result<Pixels, RenderError> {
        let frame = self.about.picture.as_ref().ok_or(RenderError::NoArea)?;
        let to_upright: &AffineTransform = &self.about.model_to_frame.upright;
        render::overlay(frame, &self.grad_cam()?, to_upright, wish.range, wish.color_map, wish.opacity)
    }

    fn guided(&self, kind: MapKind) -> Result<Pixels, RenderError> {
        let map = self.map(kind)?;
        let color: ColorOrder = self.about.model.metadata.preprocessing.color;
        match *map.shape.as_slice() {
            [channels, height, width] => render::guided_picture(&map.values, [channels, height, width], color),
            _ => Err(RenderError::Shape { shape: map.shape.clone(), allowed: "[C, H, W] does" }),
        }
    }

    fn grad_cam(&self) -> Result<Map<'_>, RenderError> {
        let map = self.map(MapKind::GradCam)?;
        match *map.shape.as_slice() {
            [height, width] => Map::new(&map.values, height, width),
            _ => Err(RenderError::Shape { shape: map.shape.clone(), allowed: "[H, W] does" }),
        }
    }
}
