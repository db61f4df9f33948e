//! From a configuration to an engine that explains with every model.

use std::sync::Arc;
use std::time::Duration;

use super::devices::Devices;
use super::repository::{Keeper, Loader, SETTLE};
use super::start_error::StartError;
use crate::config::{Config, DeviceConfig, KernelTiming};
use crate::model::Repository;
use crate::model::repository::Follower;
use crate::plan::{KernelChoice, Timing, TimingCache};
use crate::resources::{Machine, Resources};
use crate::schedule::{
    BackgroundDevice, CudaDevice, Device, Engine, EngineConfig, EngineError, ExplainDevice, Explainers, SystemClock,
};
use crate::torch::cuda::{Cuda, CudaError};
use crate::torch::threads;

/// How the models are kept once the server serves.
pub(super) struct Loaded {
    pub(super) engine: Engine,
    pub(super) devices: Devices,
    pub(super) keeper: Keeper,
}

/// Finds the devices, starts the engine, loads every version of every model and proves that it explains with each of
/// them. Where the repository is polled, a model that cannot be loaded is noted, and the others serve.
pub(super) fn load(config: &Config) -> Result<Loaded, StartError> {
    let background = config.device.background;
    let resources = Machine::this().resources();
    let Resources { processors, quota, .. } = resources;
    let (cores, memory) = (resources.threads(), resources.memory());
    tracing::info!(processors, quota, memory, "the process may use");
    let found = Devices::find(&config.device, cores)?;
    threads::set_model_threads(config.device.workers(cores).threads);
    threads::set_helpers_in_background(background);
    let explainers = Explainers::choosing(kernels(&config.device));
    let polls = config.models.poll_s > 0;
    if !polls {
        check_bindings(config)?;
    }
    let frame_threads = if config.device.frame_threads == 0 { cores } else { config.device.frame_threads };
    let engine_config = engine_config(config, frame_threads);
    let engine = match found.cuda {
        None => {
            let devices = devices(&explainers, &found, &config.device)?;
            Engine::start(engine_config, Vec::new(), devices, Arc::new(SystemClock))?
        }
        Some(cuda) => {
            let devices = cuda_devices(cuda, &explainers, &found)
                .map_err(|source| StartError::Device { name: config.device.name.clone(), source })?;
            Engine::start(engine_config, Vec::new(), devices, Arc::new(SystemClock))?
        }
    };
    let loader = Loader::new(config, explainers.clone(), found.clone());
    let follower = Follower::new(polls, SETTLE);
    let limit = config.models.memory_limit.map(|limit| limit.of(memory));
    let mut keeper = Keeper::new(config.models.repository.clone(), engine.clone(), loader, follower, limit);
    if let Err(error) = keeper.begin(!polls) {
        engine.stop();
        return Err(error);
    }
    explainers.save_timings();
    engine.tune();
    Ok(Loaded { engine, devices: found, keeper })
}

/// Every model that `device.models` names must be there.
fn check_bindings(config: &Config) -> Result<(), StartError> {
    let repository =
        Repository::open(&config.models.repository).map_err(|error| StartError::Repository(Box::new(error)))?;
    let names: Vec<&str> = repository.entries().iter().map(|entry| entry.name.as_str()).collect();
    if let Some(name) = config.device.models.keys().find(|name| !names.contains(&name.as_str())) {
        let problem = format!("there is no such model; the models are {}", names.join(", "));
        return Err(StartError::Binding { name: name.clone(), problem });
    }
    Ok(())
}

/// How devices choose kernels. A cache that cannot be used costs time at the start, and nothing else.
fn kernels(config: &DeviceConfig) -> KernelChoice {
    let timing = match config.kernel_timing {
        KernelTiming::WhileServing => Timing::WhenTuning,
        KernelTiming::AtStart => Timing::AtFirstRun,
        KernelTiming::Never => Timing::Never,
    };
    let known = config.cache.as_deref().map_or_else(TimingCache::default, |folder| {
        TimingCache::in_folder(folder).unwrap_or_else(|error| {
            tracing::warn!(folder = %folder.display(), %error, "device.cache cannot be used: kernels are timed again");
            TimingCache::default()
        })
    });
    if config.cache.is_some() {
        tracing::info!(operations = known.len(), "fastest kernels known from earlier starts");
    }
    KernelChoice { timing, known: Arc::new(known) }
}

fn engine_config(config: &Config, frame_threads: usize) -> EngineConfig {
    let Config { limits, device, .. } = config;
    let (binds_models, background) = (!device.models.is_empty(), device.background);
    EngineConfig {
        queued_frames: limits.queued_frames as usize,
        queued_bytes: limits.queued_bytes,
        model_queued_frames: limits.model_queued_frames as usize,
        model_queued_bytes: limits.model_queued_bytes,
        stream_queued_bytes: limits.stream_queued_bytes,
        max_batch_delay: Duration::from_millis(limits.max_batch_delay_ms.into()),
        priority_ageing: Duration::from_millis(limits.priority_ageing_ms.into()),
        binds_models,
        frame_threads,
        background,
    }
}

/// One device for each CUDA device, made here: what is wrong is known before a thread starts.
fn cuda_devices(
    cuda: Cuda,
    explainers: &Explainers,
    found: &Devices,
) -> Result<Vec<impl FnOnce() -> CudaDevice + Send + 'static>, CudaError> {
    let indices = found.workers.iter().filter_map(|device| match device {
        tch::Device::Cuda(index) => Some(*index as u32),
        _ => None,
    });
    indices.map(|index| CudaDevice::new(cuda, index, explainers.clone()).map(|device| move || device)).collect()
}

/// Makes a device on the thread that it is called on.
type MakeDevice = Box<dyn FnOnce() -> Box<dyn Device> + Send>;

/// One device for each worker, made on the worker's thread, or on a thread of the idle class for it.
fn devices(explainers: &Explainers, found: &Devices, config: &DeviceConfig) -> Result<Vec<MakeDevice>, StartError> {
    let background = config.background;
    let is_timed_at_start = config.kernel_timing == KernelTiming::AtStart;
    let device = |&device: &tch::Device| -> Result<MakeDevice, StartError> {
        let explainers = explainers.clone();
        // A single worker is warmed by the first frame, which passes through every stage.
        let warms = found.workers.len() > 1 && is_timed_at_start;
        let make = move || ExplainDevice::new(explainers, warms, device);
        if background {
            let device = BackgroundDevice::start(make).map_err(EngineError::from)?;
            return Ok(Box::new(move || Box::new(device)));
        }
        Ok(Box::new(move || Box::new(make())))
    };
    found.workers.iter().map(device).collect()
}
