//! The process's allocator, its threads' class and waiting, and its exit.
//!
//! mimalloc replaces `malloc` for Rust and libtorch alike. Frames, answers and spans are freed on other threads than
//! those that allocated them; oneDNN allocates and frees dozens of small objects per convolution; and a run's large
//! tensors reuse the memory of the previous run, where glibc would merge and split it again.
#![allow(unsafe_code, reason = "the allocator, `sched_setscheduler` and `_exit` are C functions")]

use std::ffi::c_int;
#[cfg(feature = "mimalloc")]
use std::ffi::c_long;
use std::fs;
use std::io::{self, Write, stdout};
use std::time::Duration;

/// A frame frees dozens of megabytes, and the next one takes them again. mimalloc's second lets pages go between two
/// frames of a stream: about a hundred page faults a frame. Memory is given back at once when streams end.
#[cfg(feature = "mimalloc")]
const KEPT: Duration = Duration::from_secs(10);

/// `mi_option_purge_delay` of mimalloc.h; milliseconds.
#[cfg(feature = "mimalloc")]
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
    fn sched_setscheduler(thread: c_int, policy: c_int, parameters: *const SchedParam) -> c_int;
}

/// sched.h
#[repr(C)]
struct SchedParam {
    priority: c_int,
}

/// Ends the process with an exit code without running exit handlers. These destroy libtorch's statics, and a thread
/// that still computes in libtorch then kills the process with a signal. Standard output is flushed first.
pub fn quick_exit(code: u8) -> ! {
    // The reader of standard output may be gone.
    let _ = stdout().flush();
    // SAFETY: `_exit` of the C library takes any status and does not return.
    unsafe { _exit(c_int::from(code)) }
}

/// Makes mimalloc return free memory to the system after ten seconds instead of one, unless the environment variable
/// `MIMALLOC_PURGE_DELAY`, in milliseconds, says something else. Does nothing without the feature `mimalloc`.
pub fn keep_free_memory() {
    #[cfg(feature = "mimalloc")]
    // SAFETY: it writes one of mimalloc's options, which no other thread does.
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT.as_millis() as c_long)
    }
}

/// Returns free memory to the system now. mimalloc does so by itself a while after the memory was freed, and only when
/// the thread that freed it allocates again. Takes milliseconds. Does nothing without the feature `mimalloc`.
pub fn release_memory() {
    #[cfg(feature = "mimalloc")]
    // SAFETY: `mi_collect` may be called at any time from any thread, and moves nothing that is in use.
    unsafe {
        libmimalloc_sys::mi_collect(true)
    }
}

/// Puts the calling thread into the scheduler's idle class: it runs when no thread of another class wants the
/// processor. It cannot leave the class again without a privilege. Threads that it starts are in the class too.
///
/// # Errors
/// When the system refuses.
pub fn enter_idle_class() -> io::Result<()> {
    const CALLING_THREAD: c_int = 0;
    const SCHED_IDLE: c_int = 5;
    // SAFETY: the parameters are read during the call only.
    match unsafe { sched_setscheduler(CALLING_THREAD, SCHED_IDLE, &SchedParam { priority: 0 }) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long the calling thread has been ready to run and waited for a processor, since it started. Zero where the
/// kernel does not tell.
pub fn waited_for_processor() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().nth(1).and_then(|waited| waited.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
