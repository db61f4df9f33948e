//! From maps to what goes over the wire, off the device's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use crate::frame::Decoded;
use crate::model::description::ColorOrder;
use crate::render::{Map, WireTensor, encode, guided_picture, heat_map, overlay, warp};
use crate::telemetry::Stage;

use super::job::{Explained, MapKind, PictureAsk, PictureKind, RenderedPicture, RenderedTarget, Resolution, TensorAsk};
use super::worker::{Computed, HostMap, HostTarget};
use super::{FrameFailure, ModelHandle};

/// A renderer's loop: until the worker is gone.
pub(super) fn run(computed: &Mutex<Receiver<Computed>>) {
    loop {
        let next = computed.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut frame) = next else { return };
        if frame.running.state.is_ended() {
            continue;
        }
        // An encoder's panic must end its own frame only.
        let outcome = catch_unwind(AssertUnwindSafe(|| render(&mut frame)))
            .unwrap_or_else(|_| Err(FrameFailure::internal("rendering the explanation panicked")));
        frame.running.timings.mark(Stage::Render, Instant::now());
        frame.running.complete(outcome, frame.batch_size);
    }
}

fn render(frame: &mut Computed) -> Result<Explained, FrameFailure> {
    let ask = frame.running.ask.clone();
    let targets = frame
        .targets
        .iter()
        .map(|target| {
            Ok(RenderedTarget {
                class_index: target.class_index,
                score: target.score,
                target_layer: target.target_layer.clone(),
                no_positive_evidence: target.no_positive_evidence,
                tensors: ask.tensors.iter().map(|&ask| Ok((ask, tensor(frame, target, ask)?))).collect::<Result<_, FrameFailure>>()?,
                pictures: ask.pictures.iter().map(|&ask| picture(frame, target, ask)).collect::<Result<_, _>>()?,
            })
        })
        .collect::<Result<_, FrameFailure>>()?;
    let predictions = std::mem::take(&mut frame.predictions);
    Ok(Explained { predictions, targets, model_to_frame: frame.model_to_frame })
}

fn present(map: Option<&HostMap>) -> Result<&HostMap, FrameFailure> {
    map.ok_or_else(|| FrameFailure::internal("a map that was asked for was not computed"))
}

fn tensor(frame: &Computed, target: &HostTarget, ask: TensorAsk) -> Result<WireTensor, FrameFailure> {
    let map = match (ask.map, ask.resolution) {
        (MapKind::GradCam, Resolution::Layer) => target.layer_map.as_ref(),
        (MapKind::GradCam, _) => target.grad_cam.as_ref(),
        (MapKind::GuidedGradCam, _) => target.guided_grad_cam.as_ref(),
        (MapKind::GuidedBackprop, _) => target.guided_backprop.as_ref(),
        (MapKind::Input, _) => Some(&frame.input),
    };
    if let (None, MapKind::GradCam, Resolution::Layer) = (map, ask.map, ask.resolution) {
        return Err(FrameFailure::invalid(
            "options.tensors.resolution",
            "RESOLUTION_LAYER needs one target layer: the maps of several were averaged at the model's resolution",
        ));
    }
    let map = present(map)?;
    if ask.resolution != Resolution::Frame {
        return Ok(WireTensor::encode(&map.values, &map.shape, ask.element_type)?);
    }
    let Some(Decoded::Picture(pixels)) = &frame.decoded else {
        return Err(needs_picture("options.tensors.resolution", "RESOLUTION_FRAME"));
    };
    let (width, height) = (pixels.width(), pixels.height());
    let warped = warp(&map.values, &map.shape, &frame.model_to_frame.upright, width, height)?;
    let mut shape = map.shape.clone();
    let axes = shape.len();
    shape[axes - 2..].copy_from_slice(&[height, width]);
    Ok(WireTensor::encode(&warped, &shape, ask.element_type)?)
}

fn needs_picture(field: &str, what: &str) -> FrameFailure {
    FrameFailure::invalid(field, format!("{what} needs a frame that is a picture; a tensor has no pixels of its own"))
}

fn picture(frame: &Computed, target: &HostTarget, ask: PictureAsk) -> Result<RenderedPicture, FrameFailure> {
    let spatial = |map: Option<&HostMap>| -> Result<(Vec<f32>, u32, u32), FrameFailure> {
        let map = present(map)?;
        match map.shape.as_slice() {
            [height, width] => Ok((map.values.clone(), *height, *width)),
            other => Err(FrameFailure::internal(format!("a heat map has shape {other:?}"))),
        }
    };
    let color = |model: &ModelHandle| match model.metadata().preprocessing.color {
        ColorOrder::Bgr => ColorOrder::Bgr,
        _ => ColorOrder::Rgb,
    };
    let guided = |map: Option<&HostMap>| -> Result<_, FrameFailure> {
        let map = present(map)?;
        let shape: [u32; 3] = map
            .shape
            .as_slice()
            .try_into()
            .map_err(|_| FrameFailure::internal(format!("a guided map has shape {:?}", map.shape)))?;
        Ok(guided_picture(&map.values, shape, color(&frame.running.model))?)
    };
    let pixels = match ask.picture {
        PictureKind::Overlay => {
            let Some(Decoded::Picture(pixels)) = &frame.decoded else {
                return Err(needs_picture("options.pictures.picture", "PICTURE_OVERLAY"));
            };
            let (values, height, width) = spatial(target.grad_cam.as_ref())?;
            let map = Map::new(&values, height, width)?;
            overlay(pixels, &map, &frame.model_to_frame.upright, ask.range, ask.color_map, ask.opacity)?
        }
        PictureKind::HeatMap => {
            let (values, height, width) = spatial(target.grad_cam.as_ref())?;
            heat_map(&Map::new(&values, height, width)?, ask.range, ask.color_map)?
        }
        PictureKind::GuidedGradCam => guided(target.guided_grad_cam.as_ref())?,
        PictureKind::GuidedBackprop => guided(target.guided_backprop.as_ref())?,
    };
    let data = Bytes::from(encode(&pixels, ask.format)?);
    Ok(RenderedPicture { ask, width: pixels.width(), height: pixels.height(), data })
}
