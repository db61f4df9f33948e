//! A frame's way in and out.

use std::sync::Arc;

use super::admission::Admission;
use super::outputs::{MapKind, Outputs, PictureKind, Resolution};
use super::served::Served;
use super::ticket::Ticket;
use crate::explain::{ExplainError, Method, Prediction, Target};
use crate::frame::{AffineTransform, FrameError, Payload};
use crate::render::{PictureFormat, RenderError, WireTensor};
use crate::telemetry::Timings;

/// Whose turn it is: frames of one stream wait in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u64);

/// A frame to explain.
#[derive(Debug)]
pub struct Job {
    pub stream: StreamKey,
    pub model: Arc<Served>,
    pub method: Method,
    pub targets: Vec<Target>,
    pub outputs: Outputs,
    pub payload: Payload,
    /// Started at the frame's acceptance.
    pub timings: Timings,
    pub admission: Admission,
    pub reply: Reply,
}

/// How a frame ended, when the engine ended it.
pub type Outcome = Result<Answer, JobError>;

/// Where the outcome goes. It is called exactly once, from one of the engine's threads, unless the frame was ended by its
/// [`super::Handle`]; then never.
pub struct Reply(Option<Box<dyn FnOnce(Outcome) + Send>>);

impl Reply {
    pub fn new(reply: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Reply(Some(Box::new(reply)))
    }

    fn call(&mut self, outcome: Outcome) {
        if let Some(reply) = self.0.take() {
            reply(outcome);
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

/// A ticket and the reply that goes with it. However a thread loses it, the frame ends.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) ticket: Ticket,
    reply: Reply,
}

impl Ending {
    pub(super) fn new(ticket: Ticket, reply: Reply) -> Self {
        Ending { ticket, reply }
    }

    /// Ends the frame with an outcome, unless somebody else has ended it.
    pub(super) fn finish(mut self, outcome: Outcome) {
        if self.ticket.end() {
            self.reply.call(outcome);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.reply.0.is_some() && self.ticket.end() {
            let error = if std::thread::panicking() { JobError::Broken } else { JobError::Stopped };
            self.reply.call(Err(error));
        }
    }
}

/// Why a frame could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("options.pictures asks for an overlay, and a frame that is a tensor has no picture to draw on")]
    NoPicture,
    /// Of this row alone.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// Of the whole batch; each of its rows has it.
    #[error(transparent)]
    Batch(Arc<ExplainError>),
    #[error("the device has no memory left for this frame, not even in a smaller batch")]
    OutOfMemory,
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A panic; it is in the log.
    #[error("something in camlens broke while this frame was explained; the others are not affected")]
    Broken,
    #[error("the server is stopping")]
    Stopped,
}

/// A frame explained.
#[derive(Debug)]
pub struct Answer {
    pub predictions: Vec<Prediction>,
    /// Class by class, and for each class layer by layer.
    pub targets: Vec<TargetAnswer>,
    /// From the model's input to the frame as it was sent.
    pub model_to_frame: AffineTransform,
    /// Rows that ran together.
    pub batch_size: u32,
    /// Up to and including the rendering.
    pub timings: Timings,
}

/// One class at one target layer.
#[derive(Debug)]
pub struct TargetAnswer {
    pub class_index: u32,
    pub score: f32,
    /// Empty when no map needed one.
    pub target_layer: String,
    pub no_positive_evidence: bool,
    pub tensors: Vec<(MapKind, Resolution, WireTensor)>,
    pub pictures: Vec<PictureFile>,
}

/// An encoded picture.
#[derive(Debug)]
pub struct PictureFile {
    pub kind: PictureKind,
    pub format: PictureFormat,
    pub width: u32,
    pub height: u32,
    pub data: Vec<u8>,
}
