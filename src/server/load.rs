//! From a configuration to an engine that explains with every model.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::start_error::StartError;
use crate::config::{Config, LimitsConfig, Workers};
use crate::frame;
use crate::model::description::Precision;
use crate::model::{LoadLimits, Metadata, Model, Repository, dtype};
use crate::plan::Mode;
use crate::process;
use crate::schedule::{Engine, EngineConfig, ExplainDevice, Explainers, Served, ServedLimits, SystemClock, warm_up};

/// Loads every version of every model, starts the engine and proves that it explains with each of them.
pub(super) fn load(config: &Config) -> Result<Engine, StartError> {
    let explainers = Explainers::default();
    let served = models(config, &explainers)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let workers = config.device.workers(cores);
    let frame_threads = if config.device.frame_threads == 0 { cores } else { config.device.frame_threads };
    let engine_config = engine_config(&config.limits, frame_threads);
    let engine = Engine::start(engine_config, served, devices(&explainers, workers), Arc::new(SystemClock))?;
    if let Err(error) = warm_up(&engine) {
        engine.stop();
        return Err(error.into());
    }
    Ok(engine)
}

/// Loads the models of the repository and offers them to devices.
fn models(config: &Config, explainers: &Explainers) -> Result<Vec<Arc<Served>>, StartError> {
    let limits = served_limits(&config.limits);
    let load_limits = LoadLimits { max_weight_bytes: config.models.max_weight_bytes, ..LoadLimits::default() };
    let repository =
        Repository::open(&config.models.repository).map_err(|error| StartError::Repository(Box::new(error)))?;
    let mut served = Vec::new();
    for entry in repository.entries() {
        for (version, path) in &entry.versions {
            let (one, model) = model(&entry.name, *version, path, &load_limits, limits)?;
            explainers.insert(one.key(), model, tch::Device::Cpu);
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
) -> Result<(Served, Model), StartError> {
    tracing::info!(name, version, "loading");
    let model = Model::load(name, version, path, load_limits).map_err(|source| StartError::Model {
        name: name.to_owned(),
        version,
        source: Box::new(source),
    })?;
    // Gives back what the model's run at load took: plans would only take it in part.
    process::release_memory();
    let served = Served::new(Arc::clone(&model.metadata), limits).map_err(|source| StartError::Preparation {
        name: name.to_owned(),
        version,
        source,
    })?;
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
    Ok((served, model))
}

fn served_limits(limits: &LimitsConfig) -> ServedLimits {
    ServedLimits {
        max_batch: limits.max_batch,
        max_targets: limits.max_targets,
        frame: frame::Limits { max_pixels: limits.max_frame_pixels, max_encoded_bytes: limits.max_frame_bytes },
    }
}

fn engine_config(limits: &LimitsConfig, frame_threads: usize) -> EngineConfig {
    EngineConfig {
        queued_frames: limits.queued_frames as usize,
        queued_bytes: limits.queued_bytes,
        model_queued_frames: limits.model_queued_frames as usize,
        model_queued_bytes: limits.model_queued_bytes,
        stream_queued_bytes: limits.stream_queued_bytes,
        max_batch_delay: Duration::from_millis(limits.max_batch_delay_ms.into()),
        priority_ageing: Duration::from_millis(limits.priority_ageing_ms.into()),
        frame_threads,
    }
}

/// One device for each worker, made on the worker's thread.
fn devices(explainers: &Explainers, workers: Workers) -> Vec<impl FnOnce() -> ExplainDevice + Send + use<>> {
    let device = |_| {
        let explainers = explainers.clone();
        move || {
            tch::set_num_threads(i32::try_from(workers.threads).unwrap_or(i32::MAX));
            // A single worker is warmed by the first frame, which passes through every stage.
            ExplainDevice::new(explainers, workers.count > 1, tch::Device::Cpu)
        }
    };
    (0..workers.count).map(device).collect()
}
