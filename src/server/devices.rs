//! The devices that run models.

use tch::Device;

use super::start_error::StartError;
use crate::config::{DeviceConfig, DeviceName, KernelTiming, Workers};
use crate::schedule::Served;
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
    /// The index of each CUDA device, and the bytes of its memory that the process may hold.
    pub(super) memory: Vec<(u32, u64)>,
    /// Why the processor runs the models although `device.name` is `auto`.
    pub fallback: Option<String>,
}

impl Devices {
    /// Finds the devices, and loads CUDA if it is asked for. `cores` is the number of cores that the process may use.
    ///
    /// # Errors
    /// [`StartError::Device`]: a CUDA device was asked for and cannot be used.
    pub fn find(config: &DeviceConfig, cores: usize) -> Result<Self, StartError> {
        let of_processor = |fallback: Option<CudaError>| {
            let Workers { count, .. } = config.workers(cores);
            let names = vec!["cpu".to_owned()];
            let fallback = fallback.map(|error| error.to_string());
            Devices { workers: vec![Device::Cpu; count], names, cuda: None, memory: Vec::new(), fallback }
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

    /// The workers whose devices `device.models` names for a model; `None`: all, as where the processor runs the models
    /// for want of CUDA.
    pub(super) fn bound_to(&self, config: &DeviceConfig, model: &str) -> Result<Option<Vec<usize>>, StartError> {
        let Some(name) = config.models.get(model).filter(|_| self.fallback.is_none()) else { return Ok(None) };
        let refuse = |problem: String| Err(StartError::Binding { name: model.to_owned(), problem });
        let indices = match name {
            DeviceName::Cpu if self.are_cpu() => return Ok(None),
            DeviceName::Cuda(indices) if !self.are_cpu() => indices,
            DeviceName::Cuda(_) => {
                return refuse(format!(
                    "device.name is `cpu`, so no model runs on `{name}`: set device.name to `cuda`, or leave the model \
                     out of device.models"
                ));
            }
            DeviceName::Cpu | DeviceName::Auto => {
                return refuse(format!("`{name}` names no CUDA device; the devices are {}", self.names.join(", ")));
            }
        };
        if indices.is_empty() {
            return Ok(None);
        }
        let worker = |index: &u32| self.workers.iter().position(|device| *device == Device::Cuda(*index as usize));
        match indices.iter().map(worker).collect() {
            Some(workers) => Ok(Some(workers)),
            None => refuse(format!("`{name}` is not among the devices, which are {}", self.names.join(", "))),
        }
    }

    /// The names of the devices that run a model.
    pub(super) fn names_of(&self, model: &Served) -> Vec<String> {
        // On the processor there may be several workers, which have one name.
        let runs = |worker: usize| self.are_cpu() || model.runs_on(worker);
        self.names.iter().enumerate().filter(|(worker, _)| runs(*worker)).map(|(_, name)| name.clone()).collect()
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
    let memory = chosen.iter().map(|device| Ok((device.index, prepare(cuda, device, config)?)));
    let memory = memory.collect::<Result<_, CudaError>>()?;
    let indices: Vec<u32> = chosen.iter().map(|device| device.index).collect();
    if let Err(error) = cuda.prepare_kernels(&indices, config.cache.as_deref()) {
        tracing::warn!(%error, "camlens's own kernels cannot be compiled: libtorch's run in their place, more slowly");
    }
    Ok(Devices {
        workers: chosen.iter().map(|device| Device::Cuda(device.index as usize)).collect(),
        names: chosen.iter().map(|device| format!("cuda:{} ({})", device.index, device.name)).collect(),
        cuda: Some(cuda),
        memory,
        fallback: None,
    })
}

/// Checks a device, limits its memory, and returns the bytes that the process may hold.
fn prepare(cuda: Cuda, device: &CudaDevice, config: &DeviceConfig) -> Result<u64, CudaError> {
    let CudaDevice { index, name, total_bytes, capability, is_mig, uses_mps, .. } = device;
    cuda.check(*index)?;
    let limit = config.memory_limit.map(|limit| limit.of(*total_bytes));
    if let Some(limit) = limit {
        cuda.limit_memory(*index, limit)?;
    }
    tracing::info!(device = format!("cuda:{index}"), name, %capability, total_bytes, limit, is_mig, uses_mps, "using");
    Ok(limit.unwrap_or(*total_bytes))
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

    fn two_cards() -> Devices {
        Devices {
            workers: vec![Device::Cuda(0), Device::Cuda(3)],
            names: vec!["cuda:0 (a card)".to_owned(), "cuda:3 (a card)".to_owned()],
            cuda: None,
            memory: Vec::new(),
            fallback: None,
        }
    }

    fn binding(name: DeviceName) -> DeviceConfig {
        DeviceConfig { models: [("m".to_owned(), name)].into(), ..DeviceConfig::default() }
    }

    #[test]
    fn a_model_is_bound_to_the_workers_of_its_devices() {
        let devices = two_cards();
        let workers = |name| devices.bound_to(&binding(name), "m").map_err(|error| error.to_string());
        assert_eq!(workers(DeviceName::Cuda(vec![3])), Ok(Some(vec![1])));
        assert_eq!(workers(DeviceName::Cuda(vec![3, 0])), Ok(Some(vec![1, 0])));
        assert_eq!(workers(DeviceName::Cuda(vec![])), Ok(None));
        assert_eq!(devices.bound_to(&binding(DeviceName::Cuda(vec![3])), "other").expect("it is free"), None);
        for name in [DeviceName::Cuda(vec![0, 1]), DeviceName::Cpu] {
            let error = workers(name.clone()).expect_err("no such device");
            assert!(error.contains("device.models: m: ") && error.contains("cuda:3 (a card)"), "{error}");
        }
    }

    #[test]
    fn on_the_processor_no_model_is_bound_to_a_card_except_when_it_stands_in() {
        let mut devices = Devices::find(&DeviceConfig::default(), 2).expect("the processor is there");
        let config = binding(DeviceName::Cuda(vec![0]));
        let error = devices.bound_to(&config, "m").expect_err("no card runs models").to_string();
        assert!(error.contains("`cuda:0`: set device.name to `cuda`"), "{error}");
        assert_eq!(devices.bound_to(&binding(DeviceName::Cpu), "m").expect("the processor runs it"), None);
        devices.fallback = Some("no driver".to_owned());
        assert_eq!(devices.bound_to(&config, "m").expect("all models run"), None);
    }
}
