//! What one batch in flight has for itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::recording::{Key, Recording};
use super::staging::Staging;
use crate::schedule::model_key::ModelKey;
use crate::torch::cuda::{Cuda, CudaError, Event, GraphPool, Timing};

/// Recordings of a slot; the one that was used least recently goes first.
const RECORDINGS_KEPT: usize = 16;

/// Memory, recordings and events of one batch at a time.
pub struct Slot {
    /// Memory of the recordings: only one of them runs at a time.
    pub pool: GraphPool,
    /// In order of use, the most recently used last.
    pub recordings: Vec<Recording>,
    pub input: Staging,
    pub output: Staging,
    pub events: Events,
    /// Whether no batch has the slot.
    pub is_free: Arc<AtomicBool>,
}

/// The moments of a batch on the device.
pub struct Events {
    pub begun: Event,
    pub copied_in: Event,
    pub forward_over: Event,
    pub reverse_over: Event,
    pub copied_out: Event,
}

impl Slot {
    pub fn new(cuda: Cuda, device: u32) -> Result<Self, CudaError> {
        let event = || Event::new(cuda, device, Timing::Measured);
        Ok(Slot {
            pool: GraphPool::new(cuda, device)?,
            recordings: Vec::new(),
            input: Staging::new(cuda),
            output: Staging::new(cuda),
            events: Events {
                begun: event()?,
                copied_in: event()?,
                forward_over: event()?,
                reverse_over: event()?,
                copied_out: event()?,
            },
            is_free: Arc::new(AtomicBool::new(true)),
        })
    }

    /// The recording of a batch, which counts as used.
    pub fn recording(&mut self, key: &Key) -> Option<&Recording> {
        let at = self.recordings.iter().position(|recording| recording.key == *key)?;
        let recording = self.recordings.remove(at);
        self.recordings.push(recording);
        self.recordings.last()
    }

    pub fn keep(&mut self, recording: Recording) {
        if self.recordings.len() == RECORDINGS_KEPT {
            self.recordings.remove(0);
        }
        self.recordings.push(recording);
    }

    /// Drops the recordings of a model.
    pub fn forget(&mut self, model: ModelKey) {
        self.recordings.retain(|recording| recording.key.model != model);
    }

    pub fn forget_all(&mut self) {
        self.recordings.clear();
    }
}

impl Events {
    /// When an event was over, on the host's clock: `submitted` is the moment of `begun`.
    pub fn moment(&self, submitted: Instant, event: &Event) -> Option<Instant> {
        let ms = event.since(&self.begun).ok()?;
        Some(submitted + Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}
