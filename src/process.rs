//! The process's allocator and its exit.
//!
//! mimalloc replaces `malloc` for Rust and libtorch alike. Frames, answers and spans are freed on other threads than
//! those that allocated them; oneDNN allocates and frees dozens of small objects per convolution; and a run's large
//! tensors reuse the memory of the previous run, where glibc would merge and split it again.
#![allow(unsafe_code, reason = "the allocator and `_exit` are C functions")]

use std::ffi::c_int;
use std::io::{Write, stdout};

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
}

/// Ends the process with an exit code without running exit handlers. These destroy libtorch's statics, and a thread
/// that still computes in libtorch then kills the process with a signal. Standard output is flushed first.
pub fn quick_exit(code: u8) -> ! {
    // The reader of standard output may be gone.
    let _ = stdout().flush();
    // SAFETY: `_exit` of the C library takes any status and does not return.
    unsafe { _exit(c_int::from(code)) }
}

/// Returns free memory to the system now. mimalloc does so by itself a second after the memory was freed, and only when
/// the thread that freed it allocates again. Takes milliseconds.
pub fn release_memory() {
    // SAFETY: `mi_collect` may be called at any time from any thread, and moves nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
