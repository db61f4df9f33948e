//! What the engine gets for a frame, and what it returns.

use crate::schedule::JobError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::admission::Admission;
use super::lane::Lane;
use super::outputs::{Outputs, PictureKind, Resolution};
use super::queue::ticket::Ticket;
use crate::explain::MapKind;
use crate::explain::{Agreement, HostMap, Method, Prediction, Target, TargetMaps};
use crate::frame::{AffineTransform, Flaw, Payload, Pixels};
use crate::render::{PictureFormat, WireTensor};
use crate::telemetry::{Progress, Timings};

/// A frame to explain.
#[derive(Debug)]
pub struct Job {
    pub lane: Lane,
    /// Priority class; higher ones go first. At most [`super::MAX_PRIORITY`].
    pub priority: u8,
    /// The frame ends with [`JobError::Expired`] at this moment, unless the device has begun its reverse run.
    pub expires_at: Option<Instant>,
    pub method: Method,
    pub targets: Vec<Target>,
    pub outputs: Outputs,
    pub payload: Payload,
    /// Started at the frame's acceptance.
    pub progress: Progress,
    pub admission: Admission,
    pub onlooker: Option<Onlooker>,
    pub reply: Reply,
}

/// Somebody beside the client who may want to see a frame. Asked once, when the frame is decoded; of a frame that it
/// wants, the answer has a [`Sight`].
#[derive(Clone)]
pub struct Onlooker(Arc<dyn Fn(Instant) -> bool + Send + Sync>);

impl Onlooker {
    pub fn new(wants: impl Fn(Instant) -> bool + Send + Sync + 'static) -> Self {
        Onlooker(Arc::new(wants))
    }

    pub(super) fn wants(&self, now: Instant) -> bool {
        (self.0)(now)
    }
}

impl std::fmt::Debug for Onlooker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Onlooker")
    }
}

/// An explained frame with its pixels and its maps, for an [`Onlooker`].
#[derive(Debug)]
pub struct Sight {
    /// The upright frame; `None` for a tensor.
    pub frame: Option<Pixels>,
    /// From the model's input to the upright frame.
    pub to_upright: AffineTransform,
    /// Width and height of the model's input.
    pub map_size: (u32, u32),
    /// The maps that were computed.
    pub targets: Vec<TargetMaps<HostMap>>,
}

/// How a frame ended, when the engine ended it.
pub type Outcome = Result<Answer, JobError>;

/// Receives the outcome. It is called exactly once, from one of the engine's threads; never if the frame was ended by
/// its [`super::Handle`].
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

/// A frame's ticket and its reply. The frame ends when this is dropped, even by a panic.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) ticket: Ticket,
    reply: Reply,
    /// Ended by [`Ending::expire`]; its reply has not been called yet.
    expired: AtomicBool,
}

impl Ending {
    pub(super) fn new(ticket: Ticket, reply: Reply) -> Self {
        Ending { ticket, reply, expired: AtomicBool::new(false) }
    }

    /// Ends the frame as expired, unless it has ended. The ticket is over now; the reply is called when this is
    /// dropped.
    pub(super) fn expire(&self) {
        if self.ticket.end() {
            self.expired.store(true, Ordering::Release);
        }
    }

    /// The outcome that the reply still has to get; `otherwise` is that of a frame that has not ended.
    fn owed(&self, otherwise: impl FnOnce() -> Outcome) -> Option<Outcome> {
        if self.ticket.end() {
            return Some(otherwise());
        }
        self.expired.swap(false, Ordering::AcqRel).then_some(Err(JobError::Expired))
    }

    /// Ends the frame with an outcome, unless it has ended.
    pub(super) fn finish(mut self, outcome: Outcome) {
        if let Some(outcome) = self.owed(|| outcome) {
            self.reply.call(outcome);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.reply.0.is_none() {
            return;
        }
        let lost = || Err(if std::thread::panicking() { JobError::Broken } else { JobError::Stopped });
        if let Some(outcome) = self.owed(lost) {
            self.reply.call(outcome);
        }
    }
}

/// The explanation of a frame.
#[derive(Debug)]
pub struct Answer {
    pub predictions: Vec<Prediction>,
    /// Whether they are what was expected, if something was.
    pub agreement: Option<Agreement>,
    /// Class by class, and for each class layer by layer.
    pub targets: Vec<TargetAnswer>,
    /// From the model's input to the frame as it was sent.
    pub model_to_frame: AffineTransform,
    /// What is wrong with the frame's file.
    pub flaw: Option<Flaw>,
    /// Rows that ran together.
    pub batch_size: u32,
    /// Up to and including the rendering.
    pub timings: Timings,
    /// Of a frame that an onlooker wanted.
    pub sight: Option<Box<Sight>>,
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
