//! The devices that run models.

use tch::Device;

use super::start_error::StartError;
use crate::config::{DeviceConfig, DeviceName, KernelTiming, Workers};
use crate::torch::cuda::{self, Cuda, CudaDevice, CudaError};

/// The devices of a server.
#[derive(Debug, Clone)]
pub struct Devices {
    /// The device of each worker.
    pub workers: Vec<Device>,
    /// Their names for people: `cpu`, `cuda:0 (NVIDIA H200)`.
    pub names: Vec<String>,
    /// CUDA, if its devices run the models.
    pub(super) cuda: Option<Cuda>,
    /// Why the processor runs the models although `device.name` is `auto`.
    pub fallback: Option<String>,
}

impl Devices {
    /// Finds the devices, and loads CUDA if it is asked for.
    pub(super) fn find(config: &DeviceConfig, cores: usize) -> Result<Self, StartError> {
        let of_processor = |fallback: Option<CudaError>| {
            let Workers { count, .. } = config.workers(cores);
            let names = vec!["cpu".to_owned()];
            let fallback = fallback.map(|error| error.to_string());
            Devices { workers: vec![Device::Cpu; count], names, cuda: None, fallback }
        };
        match &config.name {
            DeviceName::Cpu => Ok(of_processor(None)),
            DeviceName::Cuda(indices) => {
                of_cuda(config, indices).map_err(|source| StartError::Device { name: config.name.clone(), source })
            }
            DeviceName::Auto => match of_cuda(config, &[]) {
                Ok(devices) => Ok(devices),
                Err(error) => {
                    tracing::warn!(%error, "CUDA cannot be used: the processor runs the models");
                    Ok(of_processor(Some(error)))
                }
            },
        }
    }

    /// Whether the processor runs the models.
    pub(super) fn are_cpu(&self) -> bool {
        self.workers.contains(&Device::Cpu)
    }

    /// `cpu` or `cuda`, for metrics.
    pub(super) fn kind(&self) -> &'static str {
        if self.are_cpu() { "cpu" } else { "cuda" }
    }
}

/// One worker for each of these CUDA devices; for each that there is, if none is named.
fn of_cuda(config: &DeviceConfig, indices: &[u32]) -> Result<Devices, CudaError> {
    let cuda = cuda::load(&config.libraries)?;
    let found = cuda.devices()?;
    let missing = indices.iter().find(|&&index| !found.iter().any(|device| device.index == index));
    if let Some(&index) = missing {
        return Err(CudaError::NoSuchDevice { index, count: found.len() as u32 });
    }
    cuda.configure(config.allow_tf32, config.kernel_timing != KernelTiming::Never)?;
    let all: Vec<u32> = found.iter().map(|device| device.index).collect();
    let chosen = if indices.is_empty() { &all } else { indices };
    let chosen: Vec<&CudaDevice> =
        chosen.iter().filter_map(|index| found.iter().find(|device| device.index == *index)).collect();
    for device in &chosen {
        prepare(cuda, device, config)?;
    }
    let indices: Vec<u32> = chosen.iter().map(|device| device.index).collect();
    if let Err(error) = cuda.prepare_kernels(&indices, config.cache.as_deref()) {
        tracing::warn!(%error, "camlens's own kernels cannot be compiled: libtorch's run in their place, more slowly");
    }
    Ok(Devices {
        workers: chosen.iter().map(|device| Device::Cuda(device.index as usize)).collect(),
        names: chosen.iter().map(|device| format!("cuda:{} ({})", device.index, device.name)).collect(),
        cuda: Some(cuda),
        fallback: None,
    })
}

/// Checks a device, and limits its memory.
fn prepare(cuda: Cuda, device: &CudaDevice, config: &DeviceConfig) -> Result<(), CudaError> {
    let CudaDevice { index, name, total_bytes, capability, is_mig, uses_mps, .. } = device;
    cuda.check(*index)?;
    let limit = config.memory_limit.map(|limit| limit.of(*total_bytes));
    if let Some(limit) = limit {
        cuda.limit_memory(*index, limit)?;
    }
    tracing::info!(device = format!("cuda:{index}"), name, %capability, total_bytes, limit, is_mig, uses_mps, "using");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_the_workers_of_its_cores() {
        let devices = Devices::find(&DeviceConfig::default(), 9).expect("the processor is there");
        assert_eq!(devices.workers, vec![Device::Cpu; 3]);
        assert_eq!((devices.names, devices.fallback), (vec!["cpu".to_owned()], None));
    }
}
