//! From a configuration to an engine that explains with every model.

use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::devices::Devices;
use super::start_error::{Bytes, StartError};
use crate::config::{Config, DeviceConfig, KernelTiming, LimitsConfig};
use crate::frame;
use crate::model::description::Precision;
use crate::model::{LoadLimits, Metadata, Model, Repository, dtype};
use crate::plan::{KernelChoice, Mode, Timing, TimingCache};
use crate::process;
use crate::resources::{Machine, Resources};
use crate::schedule::{
    BackgroundDevice, CudaDevice, Device, Engine, EngineConfig, EngineError, ExplainDevice, Explainers, Served,
    ServedLimits, SystemClock, warm_up,
};
use crate::torch::cuda::{Cuda, CudaError};
use crate::torch::threads;

/// Finds the devices, loads every version of every model, starts the engine and proves that it explains with each of
/// them.
pub(super) fn load(config: &Config) -> Result<(Engine, Devices), StartError> {
    let background = config.device.background;
    let resources = Machine::this().resources();
    let Resources { processors, quota, .. } = resources;
    let (cores, memory) = (resources.threads(), resources.memory());
    tracing::info!(processors, quota, memory, "the process may use");
    let found = Devices::find(&config.device, cores)?;
    threads::set_model_threads(config.device.workers(cores).threads);
    threads::set_helpers_in_background(background);
    let explainers = Explainers::choosing(kernels(&config.device));
    let models = || models(config, &explainers, &found);
    let served = if background { in_background(models) } else { models() }?;
    let frame_threads = if config.device.frame_threads == 0 { cores } else { config.device.frame_threads };
    let engine_config = engine_config(config, frame_threads);
    let engine = match found.cuda {
        None => {
            let devices = devices(&explainers, &found, &config.device)?;
            Engine::start(engine_config, served, devices, Arc::new(SystemClock))?
        }
        Some(cuda) => {
            let devices = cuda_devices(cuda, &explainers, &found)
                .map_err(|source| StartError::Device { name: config.device.name.clone(), source })?;
            Engine::start(engine_config, served, devices, Arc::new(SystemClock))?
        }
    };
    if let Err(error) = warm_up(&engine) {
        engine.stop();
        return Err(error.into());
    }
    explainers.save_timings();
    engine.tune();
    Ok((engine, found))
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

/// Loads the models of the repository and offers them to devices.
fn models(config: &Config, explainers: &Explainers, devices: &Devices) -> Result<Vec<Arc<Served>>, StartError> {
    let limits = served_limits(&config.limits);
    let load_limits = LoadLimits { max_weight_bytes: config.models.max_weight_bytes, ..LoadLimits::default() };
    let repository =
        Repository::open(&config.models.repository).map_err(|error| StartError::Repository(Box::new(error)))?;
    let names: Vec<&str> = repository.entries().iter().map(|entry| entry.name.as_str()).collect();
    if let Some(name) = config.device.models.keys().find(|name| !names.contains(&name.as_str())) {
        let problem = format!("there is no such model; the models are {}", names.join(", "));
        return Err(StartError::Binding { name: name.clone(), problem });
    }
    let mut served = Vec::new();
    for entry in repository.entries() {
        for (version, path) in &entry.versions {
            let (one, model) = model(&entry.name, *version, path, &load_limits, limits, devices.workers[0])?;
            let one = one.allowing_tf32(config.device.allow_tf32);
            let one = match devices.bound_to(&config.device, &entry.name)? {
                Some(workers) => one.on_workers(workers),
                None => one,
            };
            explainers.insert(one.key(), model);
            served.push(Arc::new(one));
        }
    }
    Ok(served)
}

/// Loads one version of a model.
fn model(
    name: &str,
    version: i64,
    path: &Path,
    load_limits: &LoadLimits,
    limits: ServedLimits,
    device: tch::Device,
) -> Result<(Served, Model), StartError> {
    tracing::info!(name, version, "loading");
    check_memory(name, version, path)?;
    let model = Model::load(name, version, path, load_limits).map_err(|source| StartError::Model {
        name: name.to_owned(),
        version,
        source: Box::new(source),
    })?;
    // Gives back what the model's run at load took: plans would only take it in part.
    process::release_memory();
    let served = Served::new(Arc::clone(&model.metadata), limits, device)
        .map_err(|source| StartError::Preparation { name: name.to_owned(), version, source })?;
    if served.metadata.precision == Precision::Bfloat16 && served.mode != Mode::Bfloat16 {
        let Metadata { name, version, .. } = &*served.metadata;
        tracing::warn!(
            name,
            version,
            "this processor has no bfloat16 (AVX-512 BF16 or Arm BF16): the model runs in float32"
        );
    }
    if let Some(kind) = served.widened_from().filter(|_| served.mode != Mode::Exact) {
        let Metadata { name, version, .. } = &*served.metadata;
        let saved_in = dtype::name(kind);
        tracing::warn!(
            name,
            version,
            saved_in,
            "this processor has no instructions for the model's dtype: the model runs in float32"
        );
    }
    for notice in &served.metadata.notices {
        tracing::warn!(name, version, "{notice}");
    }
    Ok((served, model))
}

/// A model that surely does not fit is refused with the figures: the system would kill the process without a word.
fn check_memory(name: &str, version: i64, path: &Path) -> Result<(), StartError> {
    // What cannot be read is told when the model is loaded.
    let size = |path: &Path| fs::metadata(path).map_or(0, |file| if file.is_file() { file.len() } else { 0 });
    // A model may have its weights in files of their own.
    let weights: u64 = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size(&entry.path())).sum(),
        Err(_) => size(path),
    };
    let machine = Machine::this();
    let (taken, granted) = (machine.resident(), machine.resources().memory());
    if taken.saturating_add(weights.saturating_mul(2)) <= granted {
        return Ok(());
    }
    let [weights, taken, granted] = [weights, taken, granted].map(Bytes);
    Err(StartError::Memory { name: name.to_owned(), version, weights, taken, granted })
}

fn served_limits(limits: &LimitsConfig) -> ServedLimits {
    ServedLimits {
        max_batch: limits.max_batch,
        max_targets: limits.max_targets,
        frame: frame::Limits { max_pixels: limits.max_frame_pixels, max_encoded_bytes: limits.max_frame_bytes },
    }
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

/// Runs `work` on a thread of the scheduler's idle class.
fn in_background<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        if let Err(error) = process::enter_idle_class() {
            tracing::warn!(%error, "models are loaded at normal priority");
        }
        work()
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
