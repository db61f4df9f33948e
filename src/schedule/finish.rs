//! From a row of the device to an answer: wire tensors and pictures.

use super::background::Compute;
use super::clock::Clock;
use super::error::JobError;
use super::job::{Answer, PictureFile, Sight, TargetAnswer};
use super::outputs::{PictureKind, PictureOutput, Resolution, TensorOutput};
use super::prepare::RowInfo;
use crate::explain::{Head, HostMap, MapKind, RowMaps, TargetMaps};
use crate::frame::{ModelToFrame, Pixels};
use crate::model::description::ColorOrder;
use crate::render::{self, Map, RenderError, WireTensor};
use crate::telemetry::Stage;

/// A row that the device has run.
pub(super) struct DoneRow {
    pub(super) about: RowInfo,
    /// The model's input; empty unless a tensor of it was requested.
    pub(super) input: HostMap,
    pub(super) result: Result<RowMaps, JobError>,
    pub(super) batch_size: u32,
}

/// Renders the requested outputs and ends the frame.
pub(super) fn finish(row: DoneRow, clock: &dyn Clock, compute: &Compute) {
    let DoneRow { about, input, result, batch_size } = row;
    if about.ending.ticket.is_over() {
        return;
    }
    let (about, rendered) = compute.run(move || {
        let rendered = result.and_then(|maps| {
            let targets = maps.targets.iter().map(|target| render(&about, &input, target)).collect::<Result<_, _>>()?;
            let head = Head::of(&about.model.metadata);
            let expected = about.outputs.expected;
            let agreement = expected.map(|expected| head.agreement(&maps.logits, expected)).transpose()?;
            Ok((head.predictions(&maps.logits, about.outputs.top_predictions), agreement, targets, maps.targets))
        });
        (about, rendered)
    });
    about.progress.mark(Stage::Render, clock.now());
    let RowInfo { model_to_frame, map_size, flaw, picture, is_wanted, progress, admission, ending, .. } = about;
    let sight = |targets| Box::new(Sight { frame: picture, to_upright: model_to_frame.upright, map_size, targets });
    let outcome = rendered.map(|(predictions, agreement, targets, maps)| Answer {
        predictions,
        agreement,
        targets,
        model_to_frame: model_to_frame.stored,
        flaw,
        batch_size,
        timings: progress.timings(),
        sight: is_wanted.then(|| sight(maps)),
    });
    drop(admission);
    ending.finish(outcome);
}

fn render(about: &RowInfo, input: &HostMap, target: &TargetMaps<HostMap>) -> Result<TargetAnswer, RenderError> {
    let source = Source {
        frame_size: about.frame_size,
        model_to_frame: &about.model_to_frame,
        picture: about.picture.as_ref(),
        color: about.model.metadata.preprocessing.color,
        input,
        target,
    };
    Ok(TargetAnswer {
        class_index: target.class_index,
        score: target.score,
        target_layer: target.target_layer.clone(),
        no_positive_evidence: target.no_positive_evidence,
        tensors: about.outputs.tensors.iter().map(|wish| source.tensor(wish)).collect::<Result<_, _>>()?,
        pictures: about.outputs.pictures.iter().map(|wish| source.picture(wish)).collect::<Result<_, _>>()?,
    })
}

/// The maps of one target, from which tensors and pictures are made.
struct Source<'a> {
    /// Width and height of the frame as it was sent.
    frame_size: (u32, u32),
    model_to_frame: &'a ModelToFrame,
    /// The decoded frame, when a picture is drawn on it.
    picture: Option<&'a Pixels>,
    /// The order of the model's channels.
    color: ColorOrder,
    input: &'a HostMap,
    target: &'a TargetMaps<HostMap>,
}

impl Source<'_> {
    /// The map of one kind.
    ///
    /// # Errors
    /// [`RenderError::Shape`] when the device did not compute the map.
    fn map(&self, kind: MapKind) -> Result<&HostMap, RenderError> {
        let map = if kind == MapKind::Input { Some(self.input) } else { self.target.maps.get(kind) };
        map.ok_or(RenderError::Shape { shape: Vec::new(), allowed: "a map that was computed does" })
    }

    fn tensor(&self, wish: &TensorOutput) -> Result<(MapKind, Resolution, WireTensor), RenderError> {
        let (map, resolution) = match (wish.resolution, &self.target.layer_map) {
            (Resolution::Layer, Some(layer_map)) => (layer_map, Resolution::Layer),
            // The averaged layers differ in size, so there is no map at a layer's resolution.
            (Resolution::Layer, None) => (self.map(wish.map)?, Resolution::Model),
            (resolution, _) => (self.map(wish.map)?, resolution),
        };
        let tensor = if resolution == Resolution::Frame {
            let (width, height) = self.frame_size;
            let to_frame = &self.model_to_frame.stored;
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
            PictureKind::HeatMap => render::heat_map(&self.cam(wish.kind.map())?, wish.range, wish.color_map)?,
            PictureKind::Overlay => self.overlay(wish)?,
            PictureKind::Light => self.light(wish)?,
            PictureKind::GuidedGradCam | PictureKind::GuidedBackprop => self.guided(wish.kind.map())?,
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
        let frame = self.picture.ok_or(RenderError::NoArea)?;
        let to_upright = &self.model_to_frame.upright;
        render::overlay(frame, &self.cam(wish.kind.map())?, to_upright, wish.range, wish.color_map, wish.opacity)
    }

    fn light(&self, wish: &PictureOutput) -> Result<Pixels, RenderError> {
        let frame = self.picture.ok_or(RenderError::NoArea)?;
        let to_upright = &self.model_to_frame.upright;
        let (values, shape) = self.gradient(wish.kind.map())?;
        render::light(frame, values, shape, to_upright, wish.range, wish.opacity)
    }

    fn guided(&self, kind: MapKind) -> Result<Pixels, RenderError> {
        let (values, shape) = self.gradient(kind)?;
        render::guided_picture(values, shape, self.color)
    }

    /// A map with channels, and its shape.
    fn gradient(&self, kind: MapKind) -> Result<(&[f32], [u32; 3]), RenderError> {
        let map = self.map(kind)?;
        match *map.shape.as_slice() {
            [channels, height, width] => Ok((&map.values, [channels, height, width])),
            _ => Err(RenderError::Shape { shape: map.shape.clone(), allowed: "[C, H, W] does" }),
        }
    }

    fn cam(&self, kind: MapKind) -> Result<Map<'_>, RenderError> {
        let map = self.map(kind)?;
        match *map.shape.as_slice() {
            [height, width] => Map::new(&map.values, height, width),
            _ => Err(RenderError::Shape { shape: map.shape.clone(), allowed: "[H, W] does" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{AffineTransform, Channels};
    use crate::render::{ColorMap, ElementType, PictureFormat, ValueRange};

    const STAYS: ModelToFrame = ModelToFrame { upright: AffineTransform::IDENTITY, stored: AffineTransform::IDENTITY };

    /// The value of a kind's map in these tests.
    fn value(kind: MapKind) -> f32 {
        kind as u8 as f32
    }

    /// A map of 1 × 1 pixel.
    fn pixel(kind: MapKind) -> HostMap {
        let shape = if kind.has_channels() { vec![1, 1, 1] } else { vec![1, 1] };
        HostMap { values: vec![value(kind)], shape }
    }

    /// Calls `check` with every map at the model's resolution, and a layer map of value 9.
    fn with_source(check: impl FnOnce(&Source<'_>)) {
        let computed = MapKind::ALL.into_iter().filter(|&kind| kind != MapKind::Input);
        let layer_map = HostMap { values: vec![9.0], shape: vec![1, 1] };
        let target = TargetMaps {
            layer_map: Some(layer_map),
            maps: computed.map(|kind| (kind, pixel(kind))).collect(),
            ..TargetMaps::default()
        };
        let frame = Pixels::upright(1, 1, Channels::Gray, vec![0]);
        check(&Source {
            frame_size: (1, 1),
            model_to_frame: &STAYS,
            picture: Some(&frame),
            color: ColorOrder::Gray,
            input: &pixel(MapKind::Input),
            target: &target,
        });
    }

    #[test]
    fn a_tensor_holds_the_map_of_its_kind_at_its_resolution() {
        with_source(|source| {
            for map in MapKind::ALL {
                for resolution in [Resolution::Model, Resolution::Frame] {
                    let wish = TensorOutput { map, element_type: ElementType::F32, resolution };
                    let (kind, at, tensor) = source.tensor(&wish).unwrap();
                    assert_eq!((kind, at), (map, resolution));
                    assert_eq!((tensor.values(), tensor.shape), (vec![value(map)], pixel(map).shape));
                }
            }
            let resolution = Resolution::Layer;
            let wish = TensorOutput { map: MapKind::GradCam, element_type: ElementType::F32, resolution };
            assert_eq!(source.tensor(&wish).unwrap().2.values(), [9.0]);
        });
    }

    #[test]
    fn a_picture_of_every_kind_is_made_of_its_map() {
        with_source(|source| {
            for kind in [
                PictureKind::Overlay,
                PictureKind::HeatMap,
                PictureKind::GuidedGradCam,
                PictureKind::GuidedBackprop,
                PictureKind::Light,
            ] {
                let (format, range) = (PictureFormat::Png, ValueRange::OfTheMap);
                let wish = PictureOutput { kind, format, color_map: ColorMap::Jet, opacity: 0.5, range };
                let file = source.picture(&wish).unwrap();
                assert_eq!((file.kind, file.width, file.height), (kind, 1, 1));
                let without = TargetMaps::default();
                let empty = Source { target: &without, ..*source };
                assert!(empty.picture(&wish).is_err(), "{kind:?} without its map");
            }
        });
    }
}
