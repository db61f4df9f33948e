//! What one batch in flight has for itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::recording::{Key, Recording};
use crate::explain::ExplainError;
use crate::schedule::model_key::ModelKey;
use crate::torch::cuda::{Cuda, CudaError, Event, GraphPool, Pinned, Timing};

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

/// Page-locked memory that grows with the batches.
pub struct Staging {
    cuda: Cuda,
    memory: Option<Pinned>,
}

impl Slot {
    pub fn new(cuda: Cuda, device: u32) -> Result<Self, CudaError> {
        let event = || Event::new(cuda, device, Timing::Measured);
        let staging = || Staging { cuda, memory: None };
        Ok(Slot {
            pool: GraphPool::new(cuda, device)?,
            recordings: Vec::new(),
            input: staging(),
            output: staging(),
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

impl Staging {
    /// Memory of at least `bytes` bytes; `used` is the event behind the last copy from it or to it, which is over
    /// before the memory is replaced or written.
    pub fn at_least(&mut self, bytes: usize, used: Option<&Event>) -> Result<&mut [u8], ExplainError> {
        if let Some(event) = used.filter(|_| self.memory.is_some()) {
            event.synchronize()?;
        }
        if self.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            self.memory = None;
            self.memory = Some(Pinned::new(self.cuda, bytes.next_power_of_two())?);
        }
        match &mut self.memory {
            Some(memory) => Ok(memory.write_after(None)?),
            None => Ok(&mut []),
        }
    }

    /// The first bytes as a tensor of u8.
    pub fn first(&self, bytes: usize) -> Result<Tensor, ExplainError> {
        Ok(self.memory.as_ref().map_or_else(|| Ok(Tensor::new()), |memory| memory.first(bytes))?)
    }

    /// The first values, once `copied` is over.
    pub fn read_after(&self, copied: &Event, count: usize) -> Result<&[f32], ExplainError> {
        Ok(self.memory.as_ref().map_or(Ok(&[][..]), |memory| memory.read_after(copied, count))?)
    }
}
