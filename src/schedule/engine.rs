//! The engine: models, queue and threads.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tch::{Device, Kind, Tensor};

use crate::explain::{ExplainError, Explainer, Maps, Method, Target};
use crate::frame::{Limits, Payload, PreparationError};
use crate::model::{LoadLimits, Model, ModelError, Repository};
use crate::plan::Never;

use super::former::{self, Batch, Handover};
use super::job::Running;
use super::models::{self, ModelHandle};
use super::queue::{Bounds, Queue};
use super::worker::{self, Computed};
use super::{Busy, Job, Ticket, UnknownModel, rendering};

/// How the engine runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Rows that run together at most.
    pub max_batch: usize,
    /// Frames that wait for the device at most, all streams together.
    pub max_waiting_frames: usize,
    /// Their bytes.
    pub max_waiting_bytes: u64,
    /// Threads inside an operator; 0: one a core.
    pub intra_op_threads: usize,
    /// Threads that decode, and threads that render; 0: half the cores, at least one.
    pub pixel_threads: usize,
    pub frame_limits: Limits,
    pub load_limits: LoadLimits,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_batch: 8,
            max_waiting_frames: 1024,
            max_waiting_bytes: 1 << 30,
            intra_op_threads: 0,
            pixel_threads: 0,
            frame_limits: Limits::default(),
            load_limits: LoadLimits::default(),
        }
    }
}

/// Why the engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("model {model}, version {version}: {source}")]
    Load { model: String, version: i64, source: Box<ModelError> },
    #[error("model {model}, version {version}: {source}")]
    Preparation { model: String, version: i64, source: PreparationError },
    #[error("model {model}, version {version} loads but cannot be explained: {source}")]
    WarmUp { model: String, version: i64, source: Box<ExplainError> },
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the device worker ended while it was starting")]
    Lost,
}

/// Loads models and explains frames with them. Cheap to clone; the threads end with [`Engine::shutdown`].
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    models: Vec<ModelHandle>,
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Loads every model of a repository, all versions, runs each once from pixels to fused map, and starts serving.
    ///
    /// # Errors
    /// The first model that does not load, or cannot be explained.
    pub fn start(repository: &Repository, settings: &Settings) -> Result<Engine, EngineError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let or_cores = |given: usize, automatic: usize| if given == 0 { automatic.max(1) } else { given };
        let intra_op = or_cores(settings.intra_op_threads, cores);
        let pixel_threads = or_cores(settings.pixel_threads, cores / 2);
        let queue = Arc::new(Queue::new(Bounds {
            max_frames: settings.max_waiting_frames.max(1),
            max_bytes: settings.max_waiting_bytes,
        }));
        let handover = Arc::new(Handover::default());
        // No room at all: a batch is handed over when the device takes it, so exactly one is prefetched.
        let (to_worker, batches) = sync_channel::<Batch>(0);
        let (to_rendering, computed) = sync_channel::<Computed>(settings.max_batch.max(1) * 2);
        let (started, start) = sync_channel(1);
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| -> std::io::Result<()> {
            threads.push(thread::Builder::new().name(name).spawn(body)?);
            Ok(())
        };
        {
            let (repository, settings, handover) = (repository.clone(), settings.clone(), handover.clone());
            spawn(
                "device".into(),
                Box::new(move || {
                    tch::set_num_threads(intra_op as i32);
                    device_thread(&repository, &settings, &handover, &batches, &to_rendering, &started);
                }),
            )?;
        }
        {
            let (queue, handover, max_batch) = (queue.clone(), handover, settings.max_batch.max(1));
            spawn(
                "former".into(),
                Box::new(move || former::run(&queue, &handover, &to_worker, max_batch, pixel_threads)),
            )?;
        }
        let computed = Arc::new(Mutex::new(computed));
        for index in 0..pixel_threads {
            let computed = computed.clone();
            spawn(format!("render-{index}"), Box::new(move || rendering::run(&computed)))?;
        }
        drop(computed);
        let engine = Engine(Arc::new(Inner {
            models: match start.recv() {
                Ok(Ok(models)) => models,
                Ok(Err(error)) => {
                    queue.close();
                    return Err(error);
                }
                Err(_) => {
                    queue.close();
                    return Err(EngineError::Lost);
                }
            },
            queue,
            threads: Mutex::new(threads),
        }));
        Ok(engine)
    }

    /// Every model that is served, by name and version.
    pub fn models(&self) -> &[ModelHandle] {
        &self.0.models
    }

    /// A model: without a name the only one, without a version the newest.
    pub fn model(&self, name: Option<&str>, version: Option<i64>) -> Result<ModelHandle, UnknownModel> {
        models::find(&self.0.models, name, version)
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`Busy`] names the limit that is reached; the job's `done` is then not called.
    pub fn submit(&self, job: Job) -> Result<Ticket, Busy> {
        let bytes = match &job.payload {
            Payload::Encoded { data, .. } | Payload::Raw { data, .. } | Payload::Tensor { data, .. } => data.len() as u64,
        };
        let running = Running::new(job, bytes);
        let ticket = Ticket { state: running.state.clone(), queue: self.0.queue.clone(), stream: running.stream };
        match self.0.queue.push(running) {
            Ok(()) => Ok(ticket),
            Err((busy, refused)) => {
                // Ended by the refusal, so that dropping it reports nothing.
                refused.state.finish();
                Err(busy)
            }
        }
    }

    /// Frames and bytes that wait.
    pub fn waiting(&self) -> (usize, u64) {
        self.0.queue.depth()
    }

    /// Takes no more frames, finishes those that wait, and ends the threads.
    pub fn shutdown(&self) {
        self.0.queue.close();
        let threads = std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has reported its frames; there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// The device's thread: it loads the models, reports, and works.
fn device_thread(
    repository: &Repository,
    settings: &Settings,
    handover: &Handover,
    batches: &Receiver<Batch>,
    to_rendering: &SyncSender<Computed>,
    started: &SyncSender<Result<Vec<ModelHandle>, EngineError>>,
) {
    let device = Device::Cpu;
    match load_all(repository, settings, device) {
        Ok((mut explainers, handles)) => {
            if started.send(Ok(handles)).is_ok() {
                worker::run(&mut explainers, device, handover, batches, to_rendering);
            }
        }
        Err(error) => {
            // Nobody waits any more when this fails.
            let _ = started.send(Err(error));
        }
    }
}

fn load_all(
    repository: &Repository,
    settings: &Settings,
    device: Device,
) -> Result<(Vec<Explainer>, Vec<ModelHandle>), EngineError> {
    let (mut explainers, mut handles) = (Vec::new(), Vec::new());
    for entry in repository.entries() {
        for (version, path) in &entry.versions {
            let (model, version) = (entry.name.clone(), *version);
            let loaded = Model::load(&model, version, path, &settings.load_limits).map_err(|source| EngineError::Load {
                model: model.clone(),
                version,
                source: Box::new(source),
            })?;
            let handle = ModelHandle::new(explainers.len(), loaded.metadata.clone(), settings.frame_limits)
                .map_err(|source| EngineError::Preparation { model: model.clone(), version, source })?;
            let mut explainer = Explainer::new(loaded, device);
            warm_up(&mut explainer, &handle).map_err(|source| EngineError::WarmUp {
                model: model.clone(),
                version,
                source: Box::new(source),
            })?;
            tracing::info!(model, version, digest = %handle.metadata().digest, "model is ready");
            explainers.push(explainer);
            handles.push(handle);
        }
    }
    Ok((explainers, handles))
}

/// Explains one black frame by the model's defaults: whatever is wrong shows before the first client does.
fn warm_up(explainer: &mut Explainer, handle: &ModelHandle) -> Result<(), ExplainError> {
    let metadata = handle.metadata();
    let [height, width] = handle.example_size();
    let channels = metadata.input.shape[1].example();
    let has_target = !metadata.default_target_layers.is_empty();
    let maps = Maps { guided_grad_cam: has_target, guided_backprop: true, grad_cam: has_target };
    let method = Method { maps, ..Method::default() };
    let input = Tensor::f_zeros([1, channels, height, width], (Kind::Float, Device::Cpu))?;
    let forward = explainer.forward(&method, &input, &Never)?;
    let classes = forward.classes(&[vec![Target::Top(1)]]).into_iter().collect::<Result<Vec<_>, _>>()?;
    forward.reverse(&classes, &Never)?.fuse()?;
    Ok(())
}
