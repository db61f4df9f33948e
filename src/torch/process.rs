//! What concerns the whole process: its memory, and its end.
//!
//! `malloc` is mimalloc's here, for Rust and for libtorch alike. Frames, answers and spans pass from thread to thread and are freed
//! where they were not made; oneDNN makes and frees dozens of small things for each convolution; and a run's large tensors find the
//! memory of the run before, where glibc would join and split it anew.

use std::ffi::c_int;
use std::io::{Write, stdout};

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
}

/// Ends the process with an exit code, and without what the C library does at an exit: that destroys libtorch's statics, and a
/// thread that is still at work in libtorch then brings the process down with a signal. Standard output is flushed first.
pub fn leave(code: u8) -> ! {
    // Whoever would read it may have gone.
    let _ = stdout().flush();
    // SAFETY: `_exit` is the C library's, takes any status, and does not come back.
    unsafe { _exit(c_int::from(code)) }
}

/// Gives memory that nobody holds any more back to the system at once. By itself that happens a second after it was freed, and only
/// when its thread allocates again. Takes milliseconds.
pub fn give_back_memory() {
    // SAFETY: may be called at any time from any thread, and moves nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
