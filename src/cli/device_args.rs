//! The flags that choose the devices that run models.

use std::path::PathBuf;

use clap::Args;

use crate::config::{DeviceConfig, DeviceName, MemoryLimit};

/// The device of a server, or of a command that runs models itself.
#[derive(Debug, Clone, Default, Args)]
pub struct DeviceArgs {
    /// Devices that run models: cpu, cuda (all CUDA devices), cuda:0,1 (some) or auto (cuda if it can be used)
    /// [default: cpu]
    #[arg(long, env = "CAMLENS_DEVICE", value_name = "DEVICE")]
    pub device: Option<DeviceName>,

    /// Folders of libtorch_cuda.so and libcamlens_cuda.so, separated by colons, before those where the dynamic linker
    /// looks
    #[arg(long, env = "CAMLENS_DEVICE_LIBRARIES", value_name = "DIRS", value_delimiter = ':')]
    pub device_libraries: Vec<PathBuf>,

    /// Most memory that camlens takes from each CUDA device, such as 6GiB or 25% [default: without limit]
    #[arg(long, env = "CAMLENS_DEVICE_MEMORY_LIMIT", value_name = "LIMIT")]
    pub device_memory_limit: Option<MemoryLimit>,
}

impl DeviceArgs {
    /// Overrides the settings whose flags are given.
    pub fn set(self, config: &mut DeviceConfig) {
        let DeviceArgs { device, device_libraries, device_memory_limit } = self;
        if let Some(device) = device {
            config.name = device;
        }
        if !device_libraries.is_empty() {
            config.libraries = device_libraries;
        }
        if device_memory_limit.is_some() {
            config.memory_limit = device_memory_limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_are_not_given_change_nothing() {
        let file = DeviceConfig {
            name: DeviceName::Auto,
            libraries: vec!["a".into()],
            memory_limit: Some("25%".parse().expect("a limit")),
            ..DeviceConfig::default()
        };
        let mut config = file.clone();
        DeviceArgs::default().set(&mut config);
        assert_eq!(config, file);
        let args = DeviceArgs { device: Some(DeviceName::Cuda(vec![1])), ..DeviceArgs::default() };
        args.set(&mut config);
        assert_eq!(config, DeviceConfig { name: DeviceName::Cuda(vec![1]), ..file });
    }
}
