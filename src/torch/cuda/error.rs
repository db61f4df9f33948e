//! Why CUDA cannot be used.

use std::ffi::c_int;
use std::path::PathBuf;
use std::ptr;

use super::ffi::{self, Bridge};
use crate::torch::OperatorError;
use crate::torch::ffi::OUT_OF_MEMORY;

/// CUDA, or one of its devices, cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CudaError {
    #[error("{library} is not in {searched}: install it, or name its folder in device.libraries")]
    Missing { library: &'static str, searched: String },
    #[error("{} cannot be loaded: {problem}", path.display())]
    Unloadable { path: PathBuf, problem: String },
    #[error("{} belongs to another version of camlens: install the one that came with this program", path.display())]
    OtherVersion { path: PathBuf },
    #[error("there is no NVIDIA driver, or this process cannot reach it (libcuda.so.1, /dev/nvidia*)")]
    NoDriver,
    #[error(
        "the NVIDIA driver (CUDA {}.{}) finds no device that this process may use",
        driver / 1000,
        driver % 1000 / 10
    )]
    NoDevice { driver: u32 },
    #[error("there is no device cuda:{index}: the devices are {}", known(*count))]
    NoSuchDevice { index: u32, count: u32 },
    #[error("CUDA has failed in a way that lasts until the process ends: {0}")]
    Lost(String),
    #[error(transparent)]
    Failed(#[from] OperatorError),
}

fn known(count: u32) -> String {
    match count {
        1 => "cuda:0".to_owned(),
        count => format!("cuda:0 to cuda:{}", count.saturating_sub(1)),
    }
}

/// Calls a function of the table; a status other than OK becomes an error.
pub(super) fn checked(
    bridge: &Bridge,
    function: &str,
    call: impl FnOnce(*mut *mut std::ffi::c_char) -> c_int,
) -> Result<(), CudaError> {
    let mut text = ptr::null_mut();
    let status = call(&raw mut text);
    if status == crate::torch::ffi::OK {
        return Ok(());
    }
    // SAFETY: a function that fails sets `text` to null or to a text that `text_free` frees.
    let message = unsafe { take_text(bridge, text) };
    let operator = format!("cuda::{function}");
    Err(match status {
        ffi::DEVICE_LOST => CudaError::Lost(message),
        OUT_OF_MEMORY => CudaError::Failed(OperatorError::OutOfMemory { operator, message }),
        _ => CudaError::Failed(OperatorError::Failed { operator, message }),
    })
}

/// # Safety
/// `text` is null or a NUL-terminated text of the bridge, and nothing else frees it.
unsafe fn take_text(bridge: &Bridge, text: *mut std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe {
        let full = std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned();
        (bridge.text_free)(text);
        full.lines().next().unwrap_or_default().trim().to_owned()
    }
}
