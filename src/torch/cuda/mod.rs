//! CUDA, loaded when a CUDA device is asked for: the program itself links the CPU's libtorch alone.
//!
//! `libtorch_cuda.so` adds CUDA to libtorch's operators. camlens's own `libcamlens_cuda.so` has what libtorch has no
//! operators for (interface.h): devices, memory limits, streams, events, graphs, and kernels.

mod devices;
mod error;
mod ffi;
mod graphs;
mod kernels;
mod library;
mod streams;

pub use devices::{Capability, CudaDevice};
pub use error::CudaError;
pub use ffi::{Counts, DeviceMemory};
pub use graphs::{Graph, GraphPool};
pub(in crate::torch) use kernels::{add_clamped, gate};
pub use kernels::{epilogue, fuse, grad_cam, normalize};
pub use library::{Cuda, close, load, loaded};
pub use streams::{Event, Pinned, Stream, Timing};
