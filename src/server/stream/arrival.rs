//! From a message of the client to a frame in work.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::frame::Payload;
use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::schedule::{Admission, AdmissionError, Job, Reply};
use crate::stream::Overflow;

use super::opened::{InWork, OpenStream};
use crate::server::frame_account::FrameAccount;
use crate::server::refusal::Refusal;
use crate::server::request::frame;
use crate::server::request::options::{self, Asked};
use crate::server::response::Echo;
use crate::server::service::SubmittedFrame;

/// A frame that was read and waits to be accepted: for credit, or for room in the server.
pub(super) struct Held {
    arrived: Arrived,
    /// Under `BLOCK`, when the server as a whole is full.
    admission: Option<Pin<Box<Admitting>>>,
}

impl Held {
    /// Whether there is room in the stream for it, and none in the server.
    pub(super) fn waits_for_server(&self) -> bool {
        self.admission.is_some()
    }
}

/// Resolves when there is room.
type Admitting = dyn Future<Output = Result<Admission, AdmissionError>> + Send;

/// A frame as it was read.
struct Arrived {
    /// Without its payload and its options.
    frame: v1::Frame,
    /// Bytes of the payload.
    bytes: u64,
    read_at: Instant,
    /// What it holds, or what is wrong with it as far as its header tells.
    content: Result<Content, Refusal>,
}

/// What a frame holds, after the checks that cost nothing.
struct Content {
    payload: Payload,
    asked: Arc<Asked>,
}

impl OpenStream {
    pub(super) fn read(&mut self, message: v1::ExplainStreamRequest) {
        match message.message {
            Some(Request::Frame(frame)) => {
                let arrived = self.arrived(frame);
                self.held = Some(Held { arrived, admission: None });
            }
            Some(Request::Cancel(cancel)) => self.session.cancel(cancel.sequence),
            Some(Request::Update(update)) => {
                if let Err(refusal) = self.update(update) {
                    self.session.fail(refusal.under("update").into_status());
                }
            }
            Some(Request::Open(_)) => {
                let refusal = Refusal::invalid("open", "a stream has one Open, its first message");
                self.session.fail(refusal.into_status());
            }
            None => {
                let refusal = Refusal::invalid("message", "a message of a stream holds a frame, a Cancel or an Update");
                self.session.fail(refusal.into_status());
            }
        }
    }

    fn arrived(&self, mut frame: v1::Frame) -> Arrived {
        let (bytes, read_at) = (frame::payload_bytes(&frame), self.now());
        let content = self.content(&mut frame);
        Arrived { frame, bytes, read_at, content }
    }

    /// Takes the content out of a frame.
    fn content(&self, frame: &mut v1::Frame) -> Result<Content, Refusal> {
        let asked = match frame.options.take() {
            Some(own) => {
                let options = options::overlay(&self.options, &own);
                let asked = options::resolve(&options, &self.model, &self.service.limits);
                Arc::new(asked.map_err(|refusal| refusal.under("frame"))?)
            }
            None => Arc::clone(&self.asked),
        };
        let payload = frame::payload(frame, self.service.limits.max_frame_bytes)?;
        self.model.check_header(&payload, &asked.outputs).map_err(|error| Refusal::from(&error))?;
        Ok(Content { payload, asked })
    }

    /// The stream has room for the frame; the server as a whole may not.
    pub(super) fn accept_held(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        let bytes = held.arrived.bytes;
        match (&held.arrived.content, self.service.engine.try_admit(bytes), self.overflow) {
            (Ok(_), Err(_), Overflow::Block) => {
                let engine = self.service.engine.clone();
                held.admission = Some(Box::pin(async move { engine.admit(bytes).await }));
                self.held = Some(held);
            }
            (_, admission, _) => self.accept(held.arrived, admission),
        }
    }

    pub(super) fn admitted(&mut self, admission: Result<Admission, AdmissionError>) {
        if let Some(held) = self.held.take() {
            self.accept(held.arrived, admission);
        }
    }

    /// For a stream that ends: the frame was read, so it gets its ending like the others.
    pub(super) fn accept_held_as_it_is(&mut self) {
        if let Some(held) = self.held.take() {
            let admission = self.service.engine.try_admit(held.arrived.bytes);
            self.accept(held.arrived, admission);
        }
    }

    fn accept(&mut self, arrived: Arrived, admission: Result<Admission, AdmissionError>) {
        let Arrived { frame, bytes: _, read_at, content } = arrived;
        let sequence = frame.sequence;
        let ready = content.and_then(|content| Ok((content, admission?)));
        // A frame that cannot be explained must not replace one that can.
        let accepted = if ready.is_ok() { self.session.accept(sequence) } else { self.session.refuse(sequence) };
        if let Err(error) = accepted {
            self.session.fail(Refusal::from(error).into_status());
            return;
        }
        let account = FrameAccount::open(&self.service.telemetry, &self.name, &frame, read_at);
        let echo = Echo {
            sequence,
            capture_time: frame.capture_time,
            tag: frame.tag,
            trace_id: account.trace().trace_id.to_string(),
        };
        let mut in_work = InWork { handle: None, account, echo, asked: Arc::clone(&self.asked) };
        let refusal = match ready {
            Ok((content, admission)) => {
                self.submit(&mut in_work, content, admission);
                None
            }
            Err(refusal) => Some(refusal),
        };
        self.in_work.insert(sequence, in_work);
        if let Some(refusal) = refusal {
            self.refused(sequence, refusal);
        }
    }

    fn submit(&self, in_work: &mut InWork, content: Content, admission: Admission) {
        let Content { payload, asked } = content;
        let sequence = in_work.echo.sequence;
        let outcomes = self.outcomes.clone();
        let handle = self.service.engine.submit(Job {
            stream: self.key,
            model: Arc::clone(&self.model),
            method: asked.method.clone(),
            targets: asked.targets.clone(),
            outputs: asked.outputs.clone(),
            payload,
            timings: in_work.account.timings().clone(),
            admission,
            // A stream that has ended wants nothing.
            reply: Reply::new(move |outcome| drop(outcomes.send((sequence, outcome)))),
        });
        in_work.asked = asked;
        in_work.handle = Some(SubmittedFrame::new(&self.service.engine, handle));
    }
}

/// Waits for the room that a held frame needs; for ever when none does.
pub(super) async fn admission(held: &mut Option<Held>) -> Result<Admission, AdmissionError> {
    match held.as_mut().and_then(|held| held.admission.as_mut()) {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}
