//! Panics under libFuzzer. Its own hook aborts at each panic, but camlens catches panics of decoders and of the device
//! and continues: only a panic that reaches the target is a finding.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Message and backtrace of the last panic. Symbols are resolved when it is printed.
    static LAST: RefCell<Option<(String, Backtrace)>> = const { RefCell::new(None) };
}

/// From now on panics are recorded instead of printed.
pub fn record() {
    std::panic::set_hook(Box::new(|panic| {
        LAST.set(Some((panic.to_string(), Backtrace::force_capture())));
    }));
}

/// Runs a target. If it panics, prints the panic and aborts, which libFuzzer counts as a finding.
pub fn abort_after(target: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(target)).is_err() {
        if let Some((panic, trace)) = LAST.take() {
            eprintln!("{panic}\n{trace}");
        }
        std::process::abort();
    }
}
