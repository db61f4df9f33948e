//! What is submitted and what comes back.

use std::sync::Arc;

use bytes::Bytes;

use crate::explain::{Method, Prediction, Target};
use crate::frame::{ModelToFrame, Payload};
use crate::render::{ColorMap, ElementType, PictureFormat, ValueRange, WireTensor};
use crate::telemetry::Timings;

use super::ticket::FrameState;
use super::{FrameFailure, ModelHandle};

/// Which map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapKind {
    GuidedGradCam,
    GradCam,
    GuidedBackprop,
    /// The model's input as it was prepared.
    Input,
}

/// At which resolution a tensor comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolution {
    #[default]
    Model,
    /// The frame's own pixels, as it was sent.
    Frame,
    /// The target layer's; of Grad-CAM alone.
    Layer,
}

/// A map as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorAsk {
    pub map: MapKind,
    pub element_type: ElementType,
    pub resolution: Resolution,
}

/// What a picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PictureKind {
    /// Grad-CAM in colours over the upright frame.
    Overlay,
    /// Grad-CAM in colours, at the model's resolution.
    HeatMap,
    GuidedGradCam,
    GuidedBackprop,
}

/// A map as a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureAsk {
    pub picture: PictureKind,
    pub format: PictureFormat,
    pub color_map: ColorMap,
    /// Of an overlay: 0 to 1.
    pub opacity: f32,
    pub range: ValueRange,
}

/// What is asked of a frame. `method.maps` must cover what the tensors and pictures show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    pub method: Method,
    /// Empty: predictions alone.
    pub targets: Vec<Target>,
    pub top_predictions: usize,
    pub tensors: Vec<TensorAsk>,
    pub pictures: Vec<PictureAsk>,
}

impl Ask {
    /// Whether a picture is drawn over the frame, which then has to be kept.
    pub(super) fn needs_frame(&self) -> bool {
        self.pictures.iter().any(|p| p.picture == PictureKind::Overlay)
    }
}

/// A frame to explain.
pub struct Job {
    pub model: ModelHandle,
    /// Streams take turns.
    pub stream: u64,
    pub payload: Payload,
    pub ask: Arc<Ask>,
    /// Running since the frame was accepted.
    pub timings: Timings,
    /// Called exactly once, on a thread of the schedule, unless the frame is taken back. It must not block.
    pub done: Box<dyn FnOnce(Completion) + Send>,
}

/// How a frame ended.
#[derive(Debug)]
pub struct Completion {
    pub outcome: Result<Explained, FrameFailure>,
    /// Up to and including rendering.
    pub timings: Timings,
    /// Rows that ran together.
    pub batch_size: u32,
}

/// A frame explained.
#[derive(Debug)]
pub struct Explained {
    pub predictions: Vec<Prediction>,
    /// Class by class, and for each class layer by layer.
    pub targets: Vec<RenderedTarget>,
    pub model_to_frame: ModelToFrame,
}

/// One class at one target layer.
#[derive(Debug)]
pub struct RenderedTarget {
    pub class_index: u32,
    /// The class's logit.
    pub score: f32,
    pub target_layer: String,
    pub no_positive_evidence: bool,
    /// In the order asked for.
    pub tensors: Vec<(TensorAsk, WireTensor)>,
    /// In the order asked for.
    pub pictures: Vec<RenderedPicture>,
}

/// An encoded picture.
#[derive(Debug)]
pub struct RenderedPicture {
    pub ask: PictureAsk,
    pub width: u32,
    pub height: u32,
    pub data: Bytes,
}

/// The queue is full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} are waiting, and {limit} may ({option})")]
pub struct Busy {
    pub what: String,
    pub limit: u64,
    pub option: &'static str,
}

/// A job on its way. When it is dropped unanswered, by a thread that died say, its failure is reported.
pub(super) struct Running {
    pub model: ModelHandle,
    pub stream: u64,
    pub payload: Payload,
    pub ask: Arc<Ask>,
    pub timings: Timings,
    pub state: Arc<FrameState>,
    pub bytes: u64,
    done: Option<Box<dyn FnOnce(Completion) + Send>>,
}

impl Running {
    pub fn new(job: Job, bytes: u64) -> Self {
        Running {
            model: job.model,
            stream: job.stream,
            payload: job.payload,
            ask: job.ask,
            timings: job.timings,
            state: Arc::default(),
            bytes,
            done: Some(job.done),
        }
    }

    /// Ends the frame, unless it was taken back.
    pub fn complete(mut self, outcome: Result<Explained, FrameFailure>, batch_size: u32) {
        self.end(outcome, batch_size);
    }

    fn end(&mut self, outcome: Result<Explained, FrameFailure>, batch_size: u32) {
        if let Some(done) = self.done.take()
            && self.state.finish()
        {
            done(Completion { outcome, timings: self.timings.clone(), batch_size });
        }
    }

    /// What batches together.
    pub fn key(&self) -> (usize, &Method) {
        (self.model.index(), &self.ask.method)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Err(FrameFailure::internal("the frame was lost inside the server")), 0);
    }
}

#[cfg(test)]
pub(super) mod tests_support {
    use super::*;
    use crate::frame::Limits;
    use crate::model::graph::Dimension;
    use crate::model::{InputInfo, Metadata};
    use std::collections::BTreeMap;
    use std::time::Instant;

    fn metadata() -> Metadata {
        let size = |n| Dimension::Fixed(n);
        let shape = [Dimension::Dynamic { example: 2 }, size(3), size(4), size(4)];
        Metadata {
            name: "test".into(),
            version: 1,
            digest: String::new(),
            summary: String::new(),
            license: String::new(),
            input: InputInfo { name: "x".into(), kind: tch::Kind::Float, shape },
            outputs: Vec::new(),
            logits: "0".into(),
            class_count: Some(2),
            labels: Vec::new(),
            layers: Vec::new(),
            layer_shapes: BTreeMap::new(),
            token_grid: None,
            class_tokens: 0,
            channels_last: false,
            default_target_layers: Vec::new(),
            default_target_problem: None,
            rectifiers: 0,
            smooth_activations: 0,
            guide_smooth_activations: false,
            exact: false,
            preprocessing: Default::default(),
            limits: Default::default(),
            max_rows: None,
            node_count: 0,
            parameter_count: 0,
            constant_bytes: 0,
        }
    }

    /// A frame of `bytes` bytes that asks for a class at a layer; nobody hears how it ends.
    pub fn running(stream: u64, layer: &str, class: u32, bytes: usize) -> Running {
        let method = Method { target_layers: vec![layer.to_owned()], ..Method::default() };
        let job = Job {
            model: ModelHandle::new(0, Arc::new(metadata()), Limits::default()).unwrap(),
            stream,
            payload: Payload::Encoded { data: Bytes::from(vec![0; bytes]), format: None },
            ask: Arc::new(Ask { method, targets: vec![Target::Class(class)], ..Ask::default() }),
            timings: Timings::start(Instant::now()),
            done: Box::new(|_| {}),
        };
        Running::new(job, bytes as u64)
    }
}
