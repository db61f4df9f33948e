//! Page-locked memory for what goes to the device, and for what comes back.

use tch::Tensor;

use crate::explain::ExplainError;
use crate::torch::cuda::{Cuda, Event, Pinned};

/// Page-locked memory that grows with the batches.
pub struct Staging {
    cuda: Cuda,
    memory: Option<Pinned>,
}

impl Staging {
    pub fn new(cuda: Cuda) -> Self {
        Staging { cuda, memory: None }
    }

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
