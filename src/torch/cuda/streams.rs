//! Streams, events and page-locked memory.

use std::sync::OnceLock;
use std::{ptr, slice};

use tch::Tensor;
use torch_sys::C_tensor;

use super::error::{CudaError, checked};
use super::ffi::{RawEvent, RawStream};
use super::library::Cuda;
use crate::torch::{Operator, OperatorError, Value};

/// A queue of work on a device, which runs beside other queues.
pub struct Stream {
    cuda: Cuda,
    device: u32,
    raw: *mut RawStream,
}

// SAFETY: interface.h allows calls from any thread.
unsafe impl Send for Stream {}

/// Whether an event measures time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    Measured,
    Off,
}

/// A point in a stream's work.
pub struct Event {
    cuda: Cuda,
    raw: *mut RawEvent,
}

// SAFETY: as above.
unsafe impl Send for Event {}

impl Stream {
    /// `priority`: 0 is the lowest; lower numbers go first.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: Cuda, device: u32, priority: i32) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        let bridge = cuda.bridge();
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "stream_new", |error| unsafe {
            (bridge.stream_new)(device as i32, priority, &raw mut raw, error)
        })?;
        Ok(Stream { cuda, device, raw })
    }

    pub(super) fn raw(&self) -> *mut RawStream {
        self.raw
    }

    /// Runs `run` with this as the current stream of the thread: operators and copies are queued on it. Afterwards the
    /// device's default stream is the current one.
    ///
    /// # Errors
    /// What the driver says.
    pub fn within<T>(&self, run: impl FnOnce() -> T) -> Result<T, CudaError> {
        let leave = Leave { cuda: self.cuda, device: self.device };
        let bridge = self.cuda.bridge();
        // SAFETY: the stream is alive, and it ends to be the current one before it can be freed.
        checked(bridge, "stream_enter", |error| unsafe { (bridge.stream_enter)(self.device as i32, self.raw, error) })?;
        let result = run();
        drop(leave);
        Ok(result)
    }

    /// Waits for what is queued.
    ///
    /// # Errors
    /// What the queued work failed with.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let bridge = self.cuda.bridge();
        // SAFETY: the stream is alive.
        checked(bridge, "stream_synchronize", |error| unsafe { (bridge.stream_synchronize)(self.raw, error) })
    }

    /// The tensor, made on another stream, is used by what is queued here: its memory is not reused before that has
    /// run.
    ///
    /// # Errors
    /// A tensor that is not on the device.
    pub fn uses(&self, tensor: &Tensor) -> Result<(), CudaError> {
        let bridge = self.cuda.bridge();
        let tensor: *const C_tensor = tensor.as_ptr();
        // SAFETY: the stream and the tensor are alive.
        checked(bridge, "stream_uses", |error| unsafe { (bridge.stream_uses)(self.raw, tensor, error) })
    }

    /// Copies between page-locked memory and the device while the host goes on.
    ///
    /// # Errors
    /// Shapes that differ, and what the driver says.
    pub fn copy(&self, to: &Tensor, from: &Tensor) -> Result<(), CudaError> {
        static COPY: OnceLock<Result<Operator, OperatorError>> = OnceLock::new();
        let copy = COPY.get_or_init(|| Operator::find("aten::copy_", "")).as_ref().map_err(Clone::clone)?;
        let tensor = |tensor: &Tensor| Value::Tensor(tensor.shallow_clone());
        self.within(|| copy.call(&[tensor(to), tensor(from), Value::Bool(true)]))??;
        Ok(())
    }

    /// Marks the end of what is queued now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        let bridge = self.cuda.bridge();
        // SAFETY: both are alive.
        checked(bridge, "event_record", |error| unsafe { (bridge.event_record)(event.raw, self.raw, error) })
    }

    /// What is queued from now on runs after the event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        let bridge = self.cuda.bridge();
        // SAFETY: both are alive.
        checked(bridge, "event_block", |error| unsafe { (bridge.event_block)(event.raw, self.raw, error) })
    }
}

/// Makes the default stream the current one.
struct Leave {
    cuda: Cuda,
    device: u32,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let bridge = self.cuda.bridge();
        // SAFETY: null is the default stream.
        let left = checked(bridge, "stream_enter", |error| unsafe {
            (bridge.stream_enter)(self.device as i32, ptr::null_mut(), error)
        });
        if let Err(error) = left {
            tracing::error!(%error, "the default stream could not be entered");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nothing else frees it, and it is nobody's current stream.
        unsafe { (self.cuda.bridge().stream_free)(self.raw) };
    }
}

impl Event {
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: Cuda, device: u32, timing: Timing) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        let bridge = cuda.bridge();
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "event_new", |error| unsafe {
            (bridge.event_new)(device as i32, timing == Timing::Measured, &raw mut raw, error)
        })?;
        Ok(Event { cuda, raw })
    }

    /// Whether what it marks has run.
    ///
    /// # Errors
    /// What the queued work failed with.
    pub fn is_over(&self) -> Result<bool, CudaError> {
        let mut is_over = false;
        let bridge = self.cuda.bridge();
        // SAFETY: the event is alive, the pointer valid for writes.
        checked(bridge, "event_query", |error| unsafe { (bridge.event_query)(self.raw, &raw mut is_over, error) })?;
        Ok(is_over)
    }

    /// Waits for what it marks.
    ///
    /// # Errors
    /// What the queued work failed with.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let bridge = self.cuda.bridge();
        // SAFETY: the event is alive.
        checked(bridge, "event_synchronize", |error| unsafe { (bridge.event_synchronize)(self.raw, error) })
    }

    /// Milliseconds from `begin` to this event, both measured and over.
    ///
    /// # Errors
    /// An event that is not over or does not measure time.
    pub fn since(&self, begin: &Event) -> Result<f32, CudaError> {
        let mut ms = 0.0;
        let bridge = self.cuda.bridge();
        // SAFETY: both are alive, the pointer valid for writes.
        checked(bridge, "event_elapsed", |error| unsafe {
            (bridge.event_elapsed)(begin.raw, self.raw, &raw mut ms, error)
        })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nothing else frees it.
        unsafe { (self.cuda.bridge().event_free)(self.raw) };
    }
}

/// Page-locked host memory. Copies between it and a device run while the host goes on.
pub struct Pinned {
    /// `[bytes]` of u8, contiguous.
    tensor: Tensor,
}

impl Pinned {
    /// # Errors
    /// Out of memory.
    pub fn new(cuda: Cuda, bytes: usize) -> Result<Self, CudaError> {
        let mut tensor = ptr::null_mut();
        let bridge = cuda.bridge();
        // SAFETY: the pointer is valid for writes.
        checked(bridge, "pinned_new", |error| unsafe { (bridge.pinned_new)(bytes as i64, &raw mut tensor, error) })?;
        // SAFETY: a new tensor that is ours.
        Ok(Pinned { tensor: unsafe { Tensor::from_ptr(tensor) } })
    }

    pub fn len(&self) -> usize {
        self.tensor.numel()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `bytes` bytes as a tensor that copies take.
    ///
    /// # Errors
    /// More bytes than there are.
    pub fn first(&self, bytes: usize) -> Result<Tensor, OperatorError> {
        Ok(self.tensor.f_narrow(0, 0, bytes as i64)?)
    }

    /// The first `count` values, once `copied`, the event behind the copy that writes them, is over.
    ///
    /// # Errors
    /// What the queued work failed with.
    ///
    /// # Panics
    /// With more values than there are.
    pub fn read_after(&self, copied: &Event, count: usize) -> Result<&[f32], CudaError> {
        copied.synchronize()?;
        assert!(count * size_of::<f32>() <= self.len(), "{count} values of {} bytes", self.len());
        // SAFETY: the memory is aligned for any number and initialised, and nothing writes to it after the event.
        Ok(unsafe { slice::from_raw_parts(self.tensor.data_ptr().cast::<f32>(), count) })
    }

    /// The memory, once `read`, the event behind the copy that reads it, is over; at once without one.
    ///
    /// # Errors
    /// What the queued work failed with.
    pub fn write_after(&mut self, read: Option<&Event>) -> Result<&mut [u8], CudaError> {
        read.map(Event::synchronize).transpose()?;
        // SAFETY: the memory is initialised as far as bytes can be, and nothing reads it after the event.
        Ok(unsafe { slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<u8>(), self.len()) })
    }
}
