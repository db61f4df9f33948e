//! `[device]` of `camlens.toml`.

use serde::{Deserialize, Serialize};

/// `[device]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// `cpu`.
    pub name: String,
    /// What the device is to be good at.
    pub performance: Performance,
    /// Threads that run models. 0: as many as there are cores.
    pub threads: usize,
    /// Threads that decode, prepare and render. 0: as many as there are cores.
    pub frame_threads: usize,
    /// Threads that talk to clients. 0: one for four cores, so that they do not take the cores from the frames.
    pub connection_threads: usize,
}

impl DeviceConfig {
    /// On a machine with so many cores.
    pub fn workers(&self, cores: usize) -> Workers {
        let threads = if self.threads == 0 { cores } else { self.threads };
        match self.performance {
            Performance::Latency => Workers { count: 1, threads },
            Performance::Throughput => Workers { count: threads, threads: 1 },
        }
    }

    /// [`DeviceConfig::connection_threads`], on a machine with so many cores.
    pub fn connection_threads_of(&self, cores: usize) -> usize {
        if self.connection_threads == 0 { (cores / 4).max(1) } else { self.connection_threads }
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        DeviceConfig {
            name: "cpu".to_owned(),
            performance: Performance::default(),
            threads: 0,
            frame_threads: 0,
            connection_threads: 0,
        }
    }
}

/// How [`DeviceConfig::threads`] are used. OpenVINO has hints of the same names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Performance {
    /// Each batch runs on all threads, one batch after the other: a frame is explained as soon as can be
    #[default]
    Latency,
    /// Each thread runs batches of its own: more frames a second from many cores, each of which takes longer
    Throughput,
}

/// How a device's threads are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Batches that run at once.
    pub count: usize,
    /// Threads of each.
    pub threads: usize,
}
