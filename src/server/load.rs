//! From a configuration to an engine that explains with every model.

use crate::config::Config;
use crate::frame;
use crate::model::LoadLimits;
use crate::model::Metadata;
use crate::model::Model;
use crate::model::Repository;
use crate::model::description::Precision;
use crate::model::dtype;
use crate::plan::Mode;
use crate::process;
use crate::schedule::Engine;
use crate::schedule::EngineConfig;
use crate::schedule::ExplainDevice;
use crate::schedule::Served;
use crate::schedule::ServedLimits;
use crate::schedule::SystemClock;
use crate::schedule::warm_up;
use crate::server::StartError;
use std::sync::Arc;
use std::time::Duration;
/// Loads every version of every model, starts the engine and proves that it explains with each of them.
pub(super) fn load(config: &Config) -> Result<Engine, StartError> {
    let limits = config.limits;
    let served_limits = ServedLimits {
        max_batch: limits.max_batch,
        max_targets: limits.max_targets,
        frame: frame::Limits { max_pixels: limits.max_frame_pixels, max_encoded_bytes: limits.max_frame_bytes },
    };
    let load_limits = LoadLimits { max_weight_bytes: config.models.max_weight_bytes, ..LoadLimits::default() };
    let repository =
        Repository::open(&config.models.repository).map_err(|error| StartError::Repository(Box::new(error)))?;
    let (mut models, mut served) = (Vec::new(), Vec::new());
    for entry in repository.entries() {
        for (version, path) in &entry.versions {
            let (name, version) = (entry.name.clone(), *version);
            tracing::info!(name, version, "loading");
            let model = Model::load(&name, version, path, &load_limits).map_err(|source| StartError::Model {
                name: name.clone(),
                version,
                source: Box::new(source),
            })?;
            // What its run at load took: plans would only take it in part.
            process::release_memory();
            let metadata = Arc::clone(&model.metadata);
            let one = Served::new(metadata, served_limits).map_err(|source| StartError::Preparation {
                name,
                version,
                source,
            })?;
            if one.metadata.precision == Precision::Bfloat16 && one.mode != Mode::Bfloat16 {
                let Metadata { name, version, .. } = &*one.metadata;
                tracing::warn!(
                    name,
                    version,
                    "this processor has no bfloat16 (AVX-512 BF16 or Arm BF16): the model runs in float32"
                );
            }
            if let Some(kind) = one.widened_from().filter(|_| one.mode != Mode::Exact) {
                let Metadata { name, version, .. } = &*one.metadata;
                let saved_in = dtype::name(kind);
                tracing::warn!(
                    name,
                    version,
                    saved_in,
                    "this processor has no instructions for the model's dtype: the model runs in float32"
                );
            }
            served.push(Arc::new(one));
            models.push(model);
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let or_cores = |threads: usize| if threads == 0 { cores } else { threads };
    let workers = config.device.workers(cores);
    let engine_config = EngineConfig {
        queued_frames: limits.queued_frames as usize,
        queued_bytes: limits.queued_bytes,
        model_queued_frames: limits.model_queued_frames as usize,
        model_queued_bytes: limits.model_queued_bytes,
        stream_queued_bytes: limits.stream_queued_bytes,
        max_batch_delay: Duration::from_millis(limits.max_batch_delay_ms.into()),
        priority_ageing: Duration::from_millis(limits.priority_ageing_ms.into()),
        frame_threads: or_cores(config.device.frame_threads),
    };
    let first = ExplainDevice::new(models, tch::Device::Cpu);
    let mut devices: Vec<ExplainDevice> = (1..workers.count).map(|_| first.share()).collect();
    devices.push(first);
    let on_its_thread = |mut device: ExplainDevice| {
        let served = served.clone();
        move || {
            tch::set_num_threads(i32::try_from(workers.threads).unwrap_or(i32::MAX));
            // A single worker is warmed by the first frame, which proves the whole way.
            if workers.count > 1 {
                device.warm(&served);
            }
            device
        }
    };
    let devices = devices.into_iter().map(on_its_thread).collect();
    let engine = Engine::start(engine_config, served, devices, Arc::new(SystemClock))?;
    if let Err(error) = warm_up(&engine) {
        engine.stop();
        return Err(error.into());
    }
    Ok(engine)
}
