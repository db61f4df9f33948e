//! What this process may use of its machine: processors by its affinity mask and its cgroup's quota, memory by its
//! cgroup's limit. Kubernetes sets both for a container, and may change them while it runs.

mod cgroup;

use std::fs;
use std::path::{Path, PathBuf};

use self::cgroup::Cgroup;

/// The machine as a process sees it in `/proc` and `/sys`.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

/// What a process may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resources {
    /// Processors that the process may run on, at least 1.
    pub processors: usize,
    /// Processor time that the process's cgroup and those around it grant, in seconds a second. `None`: all there is.
    pub quota: Option<f64>,
    /// Bytes of memory of the machine.
    pub memory: u64,
    /// Bytes of memory that the process's cgroup and those around it grant. `None`: all there is.
    pub memory_limit: Option<u64>,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Machine::at("/")
    }

    /// A machine whose `/proc` and `/sys` lie in `root`; paths in them are relative to it.
    pub fn at(root: impl AsRef<Path>) -> Self {
        Machine { root: root.as_ref().to_owned() }
    }

    /// What the process may use now. What cannot be read is taken not to be limited.
    pub fn resources(&self) -> Resources {
        // Hexadecimal, in words of 32 bits with commas between them.
        let allowed = self.value("proc/self/status", "Cpus_allowed:");
        let processors =
            allowed.map(|mask| mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum());
        let memory = self.bytes("proc/meminfo", "MemTotal:").unwrap_or(u64::MAX);
        let cgroup = Cgroup::of(&self.root);
        Resources {
            processors: processors.map_or(1, |count: u32| count.max(1) as usize),
            quota: cgroup.quota(),
            memory,
            // Version 1 says "no limit" by a number that no machine has.
            memory_limit: cgroup.memory_limit().filter(|&limit| limit < memory),
        }
    }

    /// Bytes of memory that the process takes now; 0 where that cannot be read.
    pub fn resident(&self) -> u64 {
        self.bytes("proc/self/status", "VmRSS:").unwrap_or(0)
    }

    /// The bytes of a file's line that begins with `name`.
    fn bytes(&self, file: &str, name: &str) -> Option<u64> {
        let kibibytes: u64 = self.value(file, name)?.trim_end_matches("kB").trim().parse().ok()?;
        Some(kibibytes.saturating_mul(1024))
    }

    /// What a file's line says that begins with `name`.
    fn value(&self, file: &str, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    }
}

impl Resources {
    /// The number of threads that can compute at the same time. A fraction of a quota counts as a whole: more threads
    /// than that would use the quota up at once and then all stand still.
    pub fn threads(&self) -> usize {
        let granted = self.quota.map_or(usize::MAX, |quota| quota.ceil() as usize);
        self.processors.min(granted).max(1)
    }

    /// Bytes of memory that the process may use.
    pub fn memory(&self) -> u64 {
        self.memory_limit.unwrap_or(self.memory)
    }
}

#[cfg(test)]
mod tests;
