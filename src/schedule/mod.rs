//! From accepted frames to answers: admission, a fair queue over all streams, batches, the device's thread.
//!
//! A frame is [`Engine::submit`]ted as a [`Job`] on its stream's [`Lane`]. It waits in the queue's `line` until its
//! `turn` comes and it is chosen for the `next_batch`; then a thread of the `pool` decodes and prepares it (`prepare`).
//! When the device is free, its `worker` takes the prepared rows, runs them, and posts each row to the pool, which
//! renders it (`finish`) and calls the job's reply. While the device works, exactly one batch is prepared ahead.
//! Several workers' operators share the threads that run models, and every worker has a batch ahead. A device that
//! works asynchronously ([`AsyncDevice`]) has several batches in flight, and as many ahead.
//!
//! A frame's [`Ticket`] says who ends it: the answer, a newer frame, its age, a cancel, the stream's end. It is one
//! atomic value, so each frame ends once. Models are known by their [`ModelKey`] and come and go while frames run
//! (`registry`): [`add_model`] explains one frame with each before clients get it. Workers tune their devices while no
//! frame waits ([`AsyncDevice::tune`]). [`Admission`] bounds memory: frames and bytes of a stream, of a model, and of
//! the process. Inputs are kept in `buffers` that frames reuse. In the `background`, everything that takes long runs on
//! threads of the scheduler's idle class. [`capacity`] says how many streams all this can serve.

mod admission;
mod background;
mod batching;
mod buffers;
pub mod capacity;
mod clock;
mod cuda_device;
mod device;
mod engine;
mod error;
mod explain_device;
mod explainers;
#[cfg(test)]
pub(crate) mod fake;
mod finish;
mod job;
mod lane;
mod model_key;
mod outputs;
mod pool;
mod prepare;
mod queue;
mod registry;
mod row_input;
mod served;
#[cfg(test)]
mod simulation;
mod warm_up;
mod worker;

pub use crate::explain::{HostMap, MapKind, RowMaps};
pub use admission::{Admission, AdmissionError, InWork};
pub use background::BackgroundDevice;
pub use clock::{Clock, SystemClock};
pub use cuda_device::CudaDevice;
pub use device::{AsyncDevice, Batch, Device, RowResult};
pub use engine::{Engine, EngineConfig, EngineError, Handle};
pub use error::JobError;
pub use explain_device::ExplainDevice;
pub use explainers::Explainers;
pub use job::{Answer, Job, Onlooker, Outcome, PictureFile, Reply, Sight, TargetAnswer};
pub use lane::Lane;
pub use model_key::ModelKey;
pub use outputs::{Outputs, PictureKind, PictureOutput, Resolution, TensorOutput};
pub use queue::line::MAX_PRIORITY;
pub use queue::ticket::StreamKey;
pub use queue::ticket::Ticket;
pub use registry::Models;
pub use row_input::RowInput;
pub use served::{ReducedPrecision, Served, ServedLimits};
pub use warm_up::{WarmUpError, add_model};

/// The maps of one class at one target layer, in host memory.
pub type TargetValues = crate::explain::TargetMaps<HostMap>;
