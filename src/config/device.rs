//! `[device]` of `camlens.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::device_name::DeviceName;
use super::memory_limit::MemoryLimit;

/// `[device]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// The devices that run models.
    pub name: DeviceName,
    /// Folders of `libtorch_cuda.so` and `libcamlens_cuda.so`, before those where the dynamic linker looks.
    pub libraries: Vec<PathBuf>,
    /// The most memory of each CUDA device. Default: without limit.
    pub memory_limit: Option<MemoryLimit>,
    /// Whether cuDNN and cuBLAS may round float32 operands to TF32.
    pub allow_tf32: bool,
    /// Threads that run models. 0: one per core.
    pub threads: usize,
    /// Whether frames are explained in the scheduler's idle class, with the processor time that nobody else wants.
    pub background: bool,
    /// When the kernels of a model's operations are timed, to find the fastest.
    pub kernel_timing: KernelTiming,
    /// A folder where what was measured of kernels is kept for the next start.
    pub cache: Option<PathBuf>,
    /// Threads that decode and preprocess frames and render answers. 0: one per core.
    pub frame_threads: usize,
    /// Threads that serve connections. 0: one per four cores, which leaves the cores to the frames.
    pub connection_threads: usize,
    /// The CUDA devices of models that run on some of the devices only. Others run on all.
    pub models: BTreeMap<String, DeviceName>,
}

impl DeviceConfig {
    /// The workers on a machine with `cores` cores. Their batches share the threads, and one that is alone has all of
    /// them.
    pub fn workers(&self, cores: usize) -> Workers {
        let threads = if self.threads == 0 { cores } else { self.threads };
        // A batch gains little from the fourth thread on, while there are others to run.
        Workers { count: threads.div_ceil(4).max(2).min(threads), threads }
    }

    /// [`DeviceConfig::connection_threads`] on a machine with `cores` cores.
    pub fn connection_threads_of(&self, cores: usize) -> usize {
        if self.connection_threads == 0 { (cores / 4).max(1) } else { self.connection_threads }
    }
}

/// When [`DeviceConfig::kernel_timing`] happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum KernelTiming {
    /// While no frame waits, and now and then between frames; the first frames take longer
    #[default]
    WhileServing,
    /// Before the first frame; the start takes seconds longer
    AtStart,
    /// Never: frames take longer, and give the same bits at every start
    Never,
}

/// How a device's threads are divided among workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Number of workers: batches that run at the same time.
    pub count: usize,
    /// Threads that run models, shared by the workers: an operator is split among those that have nothing else to do.
    pub threads: usize,
}
