//! From accepted frames to explanations: who goes when, with whom, and on which thread.
//!
//! A [`Job`] waits in the fair `queue` until the `former` chooses it: it forms a batch of frames of one key, decodes and
//! prepares them, and hands the batch over the moment the device is free, so exactly one batch is prefetched. The
//! `worker` is a plain thread and the only owner of the device. What it gives is made into tensors and pictures by
//! `rendering` threads, and the job's `done` is called. A [`Ticket`] takes a frame back on the way; one compare-and-swap
//! state a frame decides who ends it.

mod engine;
mod failure;
mod former;
mod job;
mod models;
mod queue;
mod rendering;
mod ticket;
mod worker;

pub use engine::{Engine, EngineError, Settings};
pub use failure::{FailureKind, FrameFailure};
pub use job::{Ask, Busy, Completion, Explained, Job, MapKind, PictureAsk, PictureKind, RenderedPicture, RenderedTarget, Resolution, TensorAsk};
pub use models::{ModelHandle, UnknownModel};
pub use ticket::Ticket;
