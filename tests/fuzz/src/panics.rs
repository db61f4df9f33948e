//! Panics under libFuzzer. Its own hook ends the process at each, but camlens catches those of decoders and of the device
//! and goes on: only a panic that reaches the target counts.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// What was said, and where. Names are looked up when it is told.
    static LAST: RefCell<Option<(String, Backtrace)>> = const { RefCell::new(None) };
}

/// From here on panics are noted, not told.
pub fn are_told_when_they_matter() {
    std::panic::set_hook(Box::new(|panic| {
        LAST.set(Some((panic.to_string(), Backtrace::force_capture())));
    }));
}

/// Runs a target; a panic that it lets through is told and ends the process, as a finding.
pub fn end_the_process(target: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(target)).is_err() {
        if let Some((panic, trace)) = LAST.take() {
            eprintln!("{panic}\n{trace}");
        }
        std::process::abort();
    }
}
