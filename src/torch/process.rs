//! The end of a process that has used libtorch.

use std::ffi::c_int;
use std::io::{Write, stdout};

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
    #[cfg(target_env = "gnu")]
    fn malloc_trim(pad: usize) -> c_int;
}

/// Ends the process with an exit code, and without what the C library does at an exit: that destroys libtorch's statics, and a
/// thread that is still at work in libtorch then brings the process down with a signal. Standard output is flushed first.
pub fn leave(code: u8) -> ! {
    // Whoever would read it may have gone.
    let _ = stdout().flush();
    // SAFETY: `_exit` is the C library's, takes any status, and does not come back.
    unsafe { _exit(c_int::from(code)) }
}

/// Gives memory that nobody holds any more back to the system. glibc keeps what threads have freed for the next time; after a
/// hundred streams of large frames that is half as much again as is in use. Takes milliseconds, and other threads may wait for
/// that long. With another C library nothing happens.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` is glibc's, may be called at any time from any thread, and moves nothing that is in use.
    unsafe {
        malloc_trim(0);
    }
}
