//! The errors of operators and kernels, and how the bridge reports them.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use super::ffi;

/// Why an operator could not be found or run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OperatorError {
    #[error("operator {operator} is not in this libtorch")]
    Unknown { operator: String },
    #[error("operator {operator}: argument {argument}: {problem}")]
    Argument { operator: String, argument: String, problem: String },
    #[error("operator {operator}: {message}")]
    Failed { operator: String, message: String },
    #[error("operator {operator}: out of memory: {message}")]
    OutOfMemory { operator: String, message: String },
    #[error("operator {operator} returned a value of a kind that camlens does not support")]
    Unsupported { operator: String },
}

impl From<tch::TchError> for OperatorError {
    /// An error of one of tch's own `f_…` functions.
    fn from(error: tch::TchError) -> Self {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default().to_owned();
        if message.contains("can't allocate memory") || message.contains("out of memory") {
            OperatorError::OutOfMemory { operator: "tch".into(), message: first }
        } else {
            OperatorError::Failed { operator: "tch".into(), message: first }
        }
    }
}

/// Takes ownership of a text that the bridge allocated; empty if it is null.
///
/// # Safety
/// `text` is null or a NUL-terminated text from the bridge, and nothing else frees it.
pub(super) unsafe fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        ffi::camlens_text_free(text);
        copy
    }
}

/// The error for the status and text of a bridge function.
pub(super) fn error_of(operator: &str, status: c_int, text: *mut c_char) -> OperatorError {
    // SAFETY: a bridge function that fails sets `text` to a text that the caller frees.
    let full = unsafe { take_text(text) };
    let message = full.lines().next().unwrap_or_default().trim().to_owned();
    let operator = operator.to_owned();
    if status == ffi::OUT_OF_MEMORY {
        OperatorError::OutOfMemory { operator, message }
    } else {
        OperatorError::Failed { operator, message }
    }
}

/// Calls a bridge function; a status other than OK becomes an error.
pub(super) fn checked(operator: &str, call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), OperatorError> {
    let mut error = ptr::null_mut();
    match call(&raw mut error) {
        ffi::OK => Ok(()),
        status => Err(error_of(operator, status, error)),
    }
}
