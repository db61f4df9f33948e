//! From accepted frames to answers: admission, a fair line across streams, batches, the device's thread.
//!
//! A frame is [`Engine::submit`]ted as a [`Job`] on its stream's [`Lane`]. It waits in the [`line`] until its [`turn`] comes and
//! it is chosen for the [`next_batch`] (both are the [`dispatch`]); then a thread of the [`pool`] decodes and prepares it ([`prepare`]). When the device is
//! free, its [`worker`] takes what is prepared, runs it, and posts each row to the pool, which renders it ([`finish`]) and
//! calls the job's reply. While the device works, exactly one batch is prepared ahead. There is one worker on all cores, or one on
//! each, as the configuration says; then a batch ahead for each of them.
//!
//! A frame's [`Ticket`] says who ends it: the answer, a newer frame, its age, a cancel, the stream's death. It is one atomic
//! value, so each frame ends once. Before the first frame of a client, [`warm_up`] explains one of its own with each model.
//! Memory is bounded by [`Admission`]: frames and bytes, of a stream, a model, and all of them. A model's inputs lie in
//! [`buffers`] that one frame after the other uses.

mod admission;
mod batching;
mod buffers;
mod clock;
mod device;
mod engine;
mod error;
mod explain_device;
#[cfg(test)]
mod fake;
mod finish;
mod job;
mod lane;
mod outputs;
mod pool;
mod prepare;
mod queue;
mod served;
#[cfg(test)]
mod simulation;
mod warm_up;
mod worker;

pub use crate::explain::MapKind;
pub use admission::{Admission, AdmissionError, InWork};
pub use clock::{Clock, SystemClock};
pub use device::{Batch, Device, HostMap, RowMaps, RowResult, TargetValues};
pub use engine::{Engine, EngineConfig, EngineError, Handle};
pub use error::JobError;
pub use explain_device::ExplainDevice;
pub use job::{Answer, Job, Outcome, PictureFile, Reply, TargetAnswer};
pub use lane::Lane;
pub use outputs::{Outputs, PictureKind, PictureOutput, Resolution, TensorOutput};
pub use queue::line::MAX_PRIORITY;
pub use queue::ticket::StreamKey;
pub use queue::ticket::Ticket;
pub use served::{ReducedPrecision, Served, ServedLimits};
pub use warm_up::{WarmUpError, warm_up};
