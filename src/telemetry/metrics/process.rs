//! What the system knows about this process.

use opentelemetry::KeyValue;

use super::{Metrics, catalogue};

/// Reads the process's own state whenever somebody asks. Only Linux tells it.
#[cfg(target_os = "linux")]
pub(super) fn observe(metrics: &Metrics) {
    use procfs::WithCurrentSystemInfo as _;
    use procfs::process::Process;

    let stat = || Process::myself().and_then(|process| process.stat());
    metrics.observe(
        &catalogue::CPU_TIME,
        Box::new(move |tell| {
            let Ok(stat) = stat() else { return };
            let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
            tell(seconds(stat.utime), &[KeyValue::new("cpu.mode", "user")]);
            tell(seconds(stat.stime), &[KeyValue::new("cpu.mode", "system")]);
        }),
    );
    metrics.observe(
        &catalogue::MEMORY_USAGE,
        Box::new(move |tell| {
            let Ok(stat) = stat() else { return };
            tell(stat.rss_bytes().get() as f64, &[]);
        }),
    );
    metrics.observe(
        &catalogue::THREADS,
        Box::new(move |tell| {
            let Ok(stat) = stat() else { return };
            tell(stat.num_threads as f64, &[]);
        }),
    );
    metrics.observe(
        &catalogue::FILE_DESCRIPTORS,
        Box::new(move |tell| {
            let Ok(count) = Process::myself().and_then(|process| process.fd_count()) else { return };
            tell(count as f64, &[]);
        }),
    );
}

#[cfg(not(target_os = "linux"))]
pub(super) fn observe(_: &Metrics) {}
