//! A model as frames use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tch::{Device, Kind};
use tokio_util::sync::CancellationToken;

use super::admission::Budget;
use super::batching::Batching;
use super::buffers::Buffers;
use super::error::JobError;
use super::model_key::ModelKey;
use super::outputs::Outputs;
use super::row_input::PreparedInput;
use crate::explain::Mode;
use crate::frame::{InputSize, Limits, Payload, Preparation, PreparationError};
use crate::model::Metadata;
use crate::model::description::Precision;
use crate::plan::computes_in;

/// The server's limits for each model; a model's own can only tighten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedLimits {
    /// The most rows that run together.
    pub max_batch: u32,
    /// The most targets of one frame.
    pub max_targets: u32,
    pub frame: Limits,
}

/// The difference of bfloat16 from float32 for one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReducedPrecision {
    /// The cosine between both maps of float32's top class: of Guided Grad-CAM, or of the guided gradient where the
    /// model has no default target layer.
    pub map_cosine: f64,
    /// The largest difference of a logit among float32's highest.
    pub logit_difference: f64,
}

impl ReducedPrecision {
    /// A map whose cosine is lower is logged as a warning.
    pub const COSINE_EXPECTED: f64 = 0.99;
}

/// A model that frames may be explained with. Plain data, shared by all threads.
#[derive(Debug)]
pub struct Served {
    pub metadata: Arc<Metadata>,
    pub limits: ServedLimits,
    /// The mode of frames whose requests name none. A model described as bfloat16 runs in float32 on a processor
    /// without bfloat16.
    pub mode: Mode,
    /// Set for a model that runs in bfloat16 when it has explained its first frame.
    pub(super) reduced: OnceLock<ReducedPrecision>,
    pub(super) preparation: Preparation,
    pub(super) batching: Batching,
    inputs: Buffers<f32>,
    pictures: Buffers<u8>,
    device: Device,
    /// The workers that run it; `None`: all.
    workers: Option<Vec<usize>>,
    allows_tf32: bool,
    key: ModelKey,
    /// Counts the model's frames, with those of the models of its name and version that it replaces. Set when the model
    /// is registered with an engine.
    pub(super) budget: OnceLock<Budget>,
    /// One more than the lanes that are open.
    pub(super) lanes: Arc<()>,
    /// The number of the last use, among those of all models.
    pub(super) last_use: AtomicU64,
    retired: CancellationToken,
}

impl Served {
    /// A model that devices like `device` run.
    ///
    /// # Errors
    /// When the model's description asks for a preparation that no frame could get.
    pub fn new(metadata: Arc<Metadata>, server: ServedLimits, device: Device) -> Result<Self, PreparationError> {
        let [_, channels, height, width] = metadata.input.shape;
        let input = InputSize { channels: u32::try_from(channels.example()).unwrap_or(0), height, width };
        let preparation = Preparation::new(&metadata.preprocessing, input, &server.frame)?;
        let tightest = |own: Option<u32>, server: u32| own.map_or(server, |own| own.min(server)).max(1);
        let limits = ServedLimits {
            max_batch: tightest(metadata.max_rows, tightest(metadata.limits.max_batch, server.max_batch)),
            max_targets: tightest(metadata.limits.max_targets, server.max_targets),
            frame: server.frame,
        };
        let mode = match metadata.precision {
            Precision::Exact => Mode::Exact,
            Precision::Bfloat16 if computes_in(device, Kind::BFloat16) => Mode::Bfloat16,
            Precision::Bfloat16 | Precision::Float32 => Mode::Default,
        };
        Ok(Served {
            metadata,
            limits,
            mode,
            reduced: OnceLock::new(),
            preparation,
            batching: Batching::at_most(limits.max_batch),
            inputs: Buffers::default(),
            pictures: Buffers::default(),
            device,
            workers: None,
            allows_tf32: false,
            key: ModelKey::new(),
            budget: OnceLock::new(),
            lanes: Arc::new(()),
            last_use: AtomicU64::new(0),
            retired: CancellationToken::new(),
        })
    }

    /// The same model, run by these workers alone.
    #[must_use]
    pub fn on_workers(self, workers: Vec<usize>) -> Self {
        Served { workers: Some(workers), ..self }
    }

    /// Whether a worker runs the model. Workers are numbered in the order of the engine's devices.
    pub fn runs_on(&self, worker: usize) -> bool {
        self.workers.as_ref().is_none_or(|workers| workers.contains(&worker))
    }

    /// The same model on a CUDA device that may round float32 operands to TF32.
    #[must_use]
    pub fn allowing_tf32(self, allows: bool) -> Self {
        Served { allows_tf32: allows && matches!(self.device, Device::Cuda(_)), ..self }
    }

    /// Whether products of float32 may have the precision of TF32, in exact mode too.
    pub fn allows_tf32(&self) -> bool {
        self.allows_tf32
    }

    /// The streams and calls that use the model now.
    pub fn open_lanes(&self) -> usize {
        Arc::strong_count(&self.lanes) - 1
    }

    /// Rises with every use of any model: the model with the lowest number was used the longest time ago.
    pub fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Resolves when new streams no longer get the model: it was replaced, retired or evicted.
    pub async fn retired(&self) {
        self.retired.cancelled().await;
    }

    pub(super) fn retire(&self) {
        self.retired.cancel();
    }

    /// Identifies this model among all that the process loads.
    pub fn key(&self) -> ModelKey {
        self.key
    }

    /// Checks a frame without decoding it, so that it can be refused before it waits. Returns the bytes that it takes
    /// until it is explained: as it was sent, decoded, and as the model's input.
    ///
    /// # Errors
    /// The error that the frame would get later: [`JobError::NoPicture`] or [`JobError::Frame`].
    pub fn check_header(&self, payload: &Payload, outputs: &Outputs) -> Result<u64, JobError> {
        self.check_outputs(payload, outputs)?;
        let decoded = self.preparation.check_header(payload, &self.limits.frame)?;
        let input = self.input_size();
        let channels = input.channels;
        let input = match (input.fixed_height(), input.fixed_width()) {
            (Some(height), Some(width)) => u64::from(channels) * u64::from(height) * u64::from(width) * 4,
            // As large as the frame: three bytes a pixel become three floats.
            _ => decoded.saturating_mul(4),
        };
        Ok((payload.bytes().len() as u64).saturating_add(decoded).saturating_add(input))
    }

    /// The part of [`Served::check_header`] that decoding and preparing a frame do not find.
    pub(super) fn check_outputs(&self, payload: &Payload, outputs: &Outputs) -> Result<(), JobError> {
        if outputs.needs_picture() && matches!(payload, Payload::Tensor { .. }) {
            return Err(JobError::NoPicture);
        }
        Ok(())
    }

    /// Memory for a frame's input: a picture's bytes where the device normalises them, else numbers.
    pub(super) fn input_for(&self, payload: &Payload) -> PreparedInput {
        match (self.device, payload) {
            (Device::Cuda(_), Payload::Encoded { .. } | Payload::Raw { .. }) => {
                PreparedInput::Picture(self.pictures.take())
            }
            _ => PreparedInput::Values(self.inputs.take()),
        }
    }

    /// The difference of bfloat16 from float32, measured with the first frame. `None` for a model that runs in float32.
    pub fn reduced_precision(&self) -> Option<ReducedPrecision> {
        self.reduced.get().copied()
    }

    /// The dtype, float16 or bfloat16, that the model was saved in and that it does not run in on this processor: it
    /// runs in float32 instead, except in exact mode.
    pub fn widened_from(&self) -> Option<Kind> {
        self.metadata.narrow_kinds.iter().copied().find(|&kind| !computes_in(self.device, kind))
    }

    /// Whether frames may be pictures. If not, they must be tensors.
    pub fn takes_pictures(&self) -> bool {
        self.preparation.takes_pictures()
    }

    /// `[C, H, W]` of the input; `None` for a side that varies.
    pub fn input_size(&self) -> InputSize {
        self.preparation.input()
    }
}
