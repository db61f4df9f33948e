//! Metrics that are read from the server when they are collected.

use opentelemetry::KeyValue;

use crate::schedule::Engine;
use crate::telemetry::metrics::{Metrics, catalogue};
use crate::torch::cuda::Cuda;

use super::devices::Devices;
use super::repository::RepositoryHandle;
use super::service::Service;
use super::transport::connections::Connections;

const DEVICE_NAME: &str = "camlens.device.name";

/// Readings of the queues, the streams, the connections and the device.
pub(super) fn observe(metrics: &Metrics, service: &Service, connections: &Connections) {
    let engine = service.engine.clone();
    metrics.observe(
        &catalogue::QUEUE_FRAMES,
        Box::new(move |tell| in_work(&engine, &mut |frames, _, model| tell(frames as f64, model))),
    );
    let engine = service.engine.clone();
    metrics.observe(
        &catalogue::QUEUE_SIZE,
        Box::new(move |tell| in_work(&engine, &mut |_, bytes, model| tell(bytes as f64, model))),
    );
    let (engine, kind) = (service.engine.clone(), service.devices.kind());
    metrics.observe(
        &catalogue::DEVICE_BUSY,
        Box::new(move |tell| {
            tell(engine.device_busy().as_secs_f64(), &[KeyValue::new(DEVICE_NAME, kind)]);
        }),
    );
    let fallback = if service.devices.fallback.is_some() { 1.0 } else { 0.0 };
    metrics.observe(&catalogue::DEVICE_FALLBACK, Box::new(move |tell| tell(fallback, &[])));
    if let Some(cuda) = service.devices.cuda {
        device_memory(metrics, cuda, &service.devices);
    }
    if let Some(repository) = service.repository.clone() {
        models(metrics, repository);
    }
    let unsent = service.unsent.clone();
    metrics.observe(&catalogue::UNSENT_SIZE, Box::new(move |tell| tell(unsent.bytes() as f64, &[])));
    let streams = service.stream_slots.clone();
    metrics.observe(&catalogue::STREAMS, Box::new(move |tell| tell(streams.taken().into(), &[])));
    let credit = service.credit.clone();
    metrics.observe(&catalogue::CREDIT, Box::new(move |tell| tell(credit.frames() as f64, &[])));
    let open = connections.clone();
    metrics.observe(&catalogue::CONNECTIONS, Box::new(move |tell| tell(open.open().into(), &[])));
    let refused = connections.clone();
    metrics.observe(&catalogue::CONNECTIONS_REFUSED, Box::new(move |tell| tell(refused.refused() as f64, &[])));
}

/// Readings of the repository.
fn models(metrics: &Metrics, repository: RepositoryHandle) {
    let of = |name: &str, version: i64| {
        [KeyValue::new(catalogue::MODEL_NAME, name.to_owned()), KeyValue::new(catalogue::MODEL_VERSION, version)]
    };
    let changes = repository.clone();
    metrics.observe(
        &catalogue::MODEL_CHANGES,
        Box::new(move |tell| {
            for ((name, version), change, count) in changes.view().lock().changes() {
                let [name, version] = of(name, *version);
                tell(count as f64, &[name, version, KeyValue::new("camlens.change", change.name())]);
            }
        }),
    );
    metrics.observe(
        &catalogue::MODEL_MEMORY,
        Box::new(move |tell| {
            for view in repository.view().lock().versions.iter().filter(|view| view.bytes > 0) {
                tell(view.bytes as f64, &of(&view.name, view.version.unwrap_or_default()));
            }
        }),
    );
}

/// Readings of the memory of CUDA devices.
fn device_memory(metrics: &Metrics, cuda: Cuda, devices: &Devices) {
    let named = |index: u32| KeyValue::new(DEVICE_NAME, format!("cuda:{index}"));
    let limits = devices.memory.clone();
    metrics.observe(
        &catalogue::DEVICE_MEMORY_LIMIT,
        Box::new(move |tell| limits.iter().for_each(|&(index, limit)| tell(limit as f64, &[named(index)]))),
    );
    let indices: Vec<u32> = devices.memory.iter().map(|(index, _)| *index).collect();
    metrics.observe(
        &catalogue::DEVICE_MEMORY_USAGE,
        Box::new(move |tell| {
            for &index in &indices {
                // A device that was lost has no figures.
                let Ok(memory) = cuda.memory(index) else { continue };
                let cached = memory.reserved_bytes.saturating_sub(memory.allocated_bytes);
                for (state, bytes) in [("used", memory.allocated_bytes), ("cached", cached)] {
                    tell(bytes as f64, &[named(index), KeyValue::new("camlens.memory.state", state)]);
                }
            }
        }),
    );
}

/// Reports frames and bytes in work of each model.
fn in_work(engine: &Engine, tell: &mut dyn FnMut(usize, u64, &[KeyValue])) {
    for (model, in_work) in engine.in_work() {
        let attributes = [
            KeyValue::new(catalogue::MODEL_NAME, model.metadata.name.clone()),
            KeyValue::new(catalogue::MODEL_VERSION, model.metadata.version),
        ];
        tell(in_work.frames, in_work.bytes, &attributes);
    }
}
