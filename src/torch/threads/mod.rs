//! The threads that run models: one pool for the process, shared by all models and devices on the CPU.
//!
//! libtorch is compiled for OpenMP, whose teams wait for every one of their threads at the end of each operator. On a
//! core that is shared, a thread is taken away for milliseconds, and its team waits as long, once per operator. Here an
//! operator is split into parts; the thread that calls it takes parts itself, helpers that are free take others, and
//! the caller waits only for helpers that have begun. `openmp.cpp` defines the functions of OpenMP that libtorch calls,
//! so that ATen, oneDNN and MKL run on these threads too; libgomp is loaded and never called.

use std::marker::PhantomData;

#[cfg(test)]
mod tests;

/// threads.h
mod ffi {
    use std::ffi::c_int;

    unsafe extern "C" {
        pub(super) fn camlens_threads() -> c_int;
        pub(super) fn camlens_threads_set(threads: c_int);
        pub(super) fn camlens_threads_set_background(background: bool);
        pub(super) fn camlens_threads_begin_run();
        pub(super) fn camlens_threads_end_run();
        pub(super) fn camlens_threads_rescues() -> u64;
        pub(super) fn camlens_threads_serve_openmp() -> bool;
    }
}

/// The number of threads that run models at the same time, callers and helpers together. At first one for each
/// processor that the process may use.
pub fn model_threads() -> usize {
    // SAFETY: the function has no arguments and may be called from any thread.
    usize::try_from(unsafe { ffi::camlens_threads() }).unwrap_or(1)
}

/// Sets [`model_threads`], at least 1 and at most 64. Holds for operators that begin afterwards.
pub fn set_model_threads(threads: usize) {
    // SAFETY: any number may be set at any time, from any thread.
    unsafe { ffi::camlens_threads_set(threads.try_into().unwrap_or(i32::MAX)) }
}

/// Puts the helpers into the scheduler's idle class, so that they run when nobody else wants the processor. They cannot
/// leave it again without a privilege.
pub fn set_helpers_in_background(background: bool) {
    // SAFETY: it may be set at any time, from any thread.
    unsafe { ffi::camlens_threads_set_background(background) }
}

/// Parts of operators that had to get a thread of their own, because they wait for each other and the pool was busy.
pub fn rescued_parts() -> u64 {
    // SAFETY: the function has no arguments and may be called from any thread.
    unsafe { ffi::camlens_threads_rescues() }
}

/// Whether libtorch's parallel loops run on these threads: not when another OpenMP was put before the program's own,
/// by `LD_PRELOAD` for example.
pub fn runs_libtorch() -> bool {
    // SAFETY: the function has no arguments and may be called from any thread.
    unsafe { ffi::camlens_threads_serve_openmp() }
}

/// While it lives, the calling thread counts as one that runs a model, between operators too: operators of other
/// threads get a helper less. The thread's own operators are split among [`model_threads`] threads, at most.
pub struct ModelRun {
    /// Not to be sent: the thread that began ends.
    on_this_thread: PhantomData<*const ()>,
}

impl ModelRun {
    /// Begins a run on the calling thread.
    pub fn begin() -> Self {
        let threads = i32::try_from(model_threads()).unwrap_or(1);
        if tch::get_num_threads() != threads {
            tch::set_num_threads(threads);
        }
        // SAFETY: the function has no arguments; `drop` calls its counterpart on the same thread.
        unsafe { ffi::camlens_threads_begin_run() };
        ModelRun { on_this_thread: PhantomData }
    }
}

impl Drop for ModelRun {
    fn drop(&mut self) {
        let _ = self.on_this_thread;
        // SAFETY: `begin` was called on this thread, since the type cannot be sent to another.
        unsafe { ffi::camlens_threads_end_run() };
    }
}
