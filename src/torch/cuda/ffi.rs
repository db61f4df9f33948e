//! The table of interface.h, line for line.

use std::ffi::{c_char, c_int};

use torch_sys::C_tensor;

/// `CAMLENS_CUDA_VERSION`
pub const VERSION: u32 = 1;
/// `CAMLENS_CUDA_SYMBOL`
pub const SYMBOL: &[u8] = b"camlens_cuda_bridge\0";

pub const DEVICE_LOST: c_int = 3;

pub enum RawStream {}
pub enum RawEvent {}
pub enum RawPool {}
pub enum RawGraph {}

/// `camlens_cuda_device`
#[repr(C)]
pub struct RawDevice {
    pub name: [c_char; 256],
    pub uuid: [c_char; 64],
    pub total_bytes: u64,
    pub major: i32,
    pub minor: i32,
    pub multiprocessors: i32,
    pub is_mig: bool,
    pub uses_mps: bool,
}

/// `camlens_cuda_memory`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Free and all bytes of the device, as the driver sees them.
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Bytes of this process: in tensors, and in libtorch's caching allocator, those included.
    pub allocated_bytes: u64,
    pub reserved_bytes: u64,
    pub peak_allocated_bytes: u64,
}

/// `camlens_cuda_counts`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub copies_to_device: u64,
    pub copies_to_host: u64,
    pub kernels: u64,
    pub graph_launches: u64,
    pub synchronizations: u64,
}

type Error = *mut *mut c_char;
type Tensor = *const C_tensor;
type NewTensor = *mut *mut C_tensor;

/// `camlens_cuda_bridge`
#[repr(C)]
pub struct Bridge {
    pub version: u32,
    /// The size of the table.
    pub bytes: u32,
    pub kind: *const c_char,
    pub text_free: unsafe extern "C" fn(*mut c_char),

    pub device_count: unsafe extern "C" fn(*mut i32, *mut i32, Error) -> c_int,
    pub device_describe: unsafe extern "C" fn(i32, *mut RawDevice, Error) -> c_int,
    pub device_check: unsafe extern "C" fn(i32, Error) -> c_int,
    pub device_synchronize: unsafe extern "C" fn(i32, Error) -> c_int,

    pub memory_limit: unsafe extern "C" fn(i32, u64, Error) -> c_int,
    pub memory_read: unsafe extern "C" fn(i32, *mut DeviceMemory, Error) -> c_int,
    pub memory_release: unsafe extern "C" fn(i32, Error) -> c_int,
    pub counts: unsafe extern "C" fn(*mut Counts),

    pub stream_new: unsafe extern "C" fn(i32, i32, *mut *mut RawStream, Error) -> c_int,
    pub stream_free: unsafe extern "C" fn(*mut RawStream),
    pub stream_enter: unsafe extern "C" fn(i32, *mut RawStream, Error) -> c_int,
    pub stream_synchronize: unsafe extern "C" fn(*mut RawStream, Error) -> c_int,
    pub stream_uses: unsafe extern "C" fn(*mut RawStream, Tensor, Error) -> c_int,

    pub event_new: unsafe extern "C" fn(i32, bool, *mut *mut RawEvent, Error) -> c_int,
    pub event_free: unsafe extern "C" fn(*mut RawEvent),
    pub event_record: unsafe extern "C" fn(*mut RawEvent, *mut RawStream, Error) -> c_int,
    pub event_block: unsafe extern "C" fn(*mut RawEvent, *mut RawStream, Error) -> c_int,
    pub event_query: unsafe extern "C" fn(*mut RawEvent, *mut bool, Error) -> c_int,
    pub event_synchronize: unsafe extern "C" fn(*mut RawEvent, Error) -> c_int,
    pub event_elapsed: unsafe extern "C" fn(*mut RawEvent, *mut RawEvent, *mut f32, Error) -> c_int,

    pub pinned_new: unsafe extern "C" fn(i64, NewTensor, Error) -> c_int,

    pub pool_new: unsafe extern "C" fn(i32, *mut *mut RawPool, Error) -> c_int,
    pub pool_free: unsafe extern "C" fn(*mut RawPool),
    pub graph_begin: unsafe extern "C" fn(*mut RawPool, *mut RawStream, *mut *mut RawGraph, Error) -> c_int,
    pub graph_end: unsafe extern "C" fn(*mut RawGraph, Error) -> c_int,
    pub graph_launch: unsafe extern "C" fn(*mut RawGraph, *mut RawStream, Error) -> c_int,
    pub graph_free: unsafe extern "C" fn(*mut RawGraph),

    pub gate: unsafe extern "C" fn(*const Tensor, usize, Tensor, f64, f64, bool, NewTensor, Error) -> c_int,
    pub epilogue: unsafe extern "C" fn(Tensor, Tensor, Tensor, f64, f64, Error) -> c_int,
    pub grad_cam: unsafe extern "C" fn(Tensor, Tensor, NewTensor, Error) -> c_int,
    pub fuse: unsafe extern "C" fn(Tensor, Tensor, NewTensor, NewTensor, Error) -> c_int,
    pub normalize: unsafe extern "C" fn(Tensor, *const f32, *const f32, i32, bool, NewTensor, Error) -> c_int,
    pub kernels_prepare: unsafe extern "C" fn(i32, *const c_char, Error) -> c_int,

    pub closing: unsafe extern "C" fn(),
}
