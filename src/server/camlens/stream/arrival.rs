//! From a message of the client to a frame in work.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::frame::Payload;
use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::schedule::{Admission, AdmissionError, Job, Lane, MAX_PRIORITY, Reply};
use crate::stream::{Accepted, DropReason, Overflow};

use super::opened::{InWork, OpenStream};
use crate::server::camlens::request::frame;
use crate::server::camlens::request::options;
use crate::server::camlens::request::options::Asked;
use crate::server::camlens::response::Echo;
use crate::server::frame_account::{self, FrameAccount};
use crate::server::refusal::Refusal;
use crate::server::service::SubmittedFrame;

/// A frame that was read and waits to be accepted: for credit, or for room in the server.
pub(in crate::server) struct Held {
    arrived: Arrived,
    /// Under `BLOCK`, when the server as a whole is full.
    admission: Option<Pin<Box<Admitting>>>,
}

impl Held {
    /// Whether there is room in the stream for it, and none in the server.
    pub(in crate::server) fn waits_for_server(&self) -> bool {
        self.admission.is_some()
    }
}

/// Resolves when there is room.
type Admitting = dyn Future<Output = Result<Admission, AdmissionError>> + Send;

/// A frame as it was read.
struct Arrived {
    /// Without its payload and its options.
    frame: v1::Frame,
    read_at: Instant,
    payload_bytes: u64,
    /// What it holds, or what is wrong with it as far as its header tells.
    content: Result<Content, Refusal>,
}

/// What a frame holds, after the checks that cost nothing.
struct Content {
    payload: Payload,
    /// What it takes until it is explained.
    bytes: u64,
    expires_at: Option<Instant>,
    asked: Arc<Asked>,
}

impl OpenStream {
    pub(in crate::server) fn read(&mut self, message: v1::ExplainStreamRequest) {
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
        let read_at = self.now();
        let payload_bytes = frame::payload_bytes(&frame);
        let content = self.content(&mut frame, read_at);
        Arrived { frame, read_at, payload_bytes, content }
    }

    /// Takes the content out of a frame.
    fn content(&self, frame: &mut v1::Frame, read_at: Instant) -> Result<Content, Refusal> {
        let asked = match frame.options.take() {
            Some(own) => {
                let options = options::overlay(&self.options, &own);
                let asked = options::resolve(&options, &self.model, &self.service.limits);
                Arc::new(asked.map_err(|refusal| refusal.under("frame"))?)
            }
            None => Arc::clone(&self.asked),
        };
        let time_to_live = match &frame.time_to_live {
            Some(own) => frame::time_to_live("frame.time_to_live", Some(own))?,
            None => frame::time_to_live("policy.time_to_live", self.policy.time_to_live.as_ref())?,
        };
        let expires_at = time_to_live.and_then(|time| read_at.checked_add(time));
        let payload = frame::payload(frame, self.service.limits.max_frame_bytes)?;
        let bytes = self.model.check_header(&payload, &asked.outputs).map_err(|error| Refusal::from(&error))?;
        Ok(Content { payload, bytes, expires_at, asked })
    }

    /// The stream has room for the frame; the server as a whole may not.
    pub(in crate::server) fn accept_held(&mut self) {
        let Some(Held { arrived, .. }) = self.held.take() else { return };
        let (Ok(content), Overflow::Block) = (&arrived.content, self.overflow) else {
            return self.accept(arrived, Lane::try_admit);
        };
        let (lane, bytes) = (self.lane.clone(), content.bytes);
        match lane.try_admit(bytes) {
            Ok(admission) => self.accept(arrived, |_, _| Ok(admission)),
            Err(_) => {
                let admission: Pin<Box<Admitting>> = Box::pin(async move { lane.admit(bytes).await });
                self.held = Some(Held { arrived, admission: Some(admission) });
            }
        }
    }

    pub(in crate::server) fn admitted(&mut self, admission: Result<Admission, AdmissionError>) {
        if let Some(held) = self.held.take() {
            self.accept(held.arrived, |_, _| admission);
        }
    }

    /// For a stream that ends: the frame was read, so it gets its ending like the others.
    pub(in crate::server) fn accept_held_as_it_is(&mut self) {
        if let Some(held) = self.held.take() {
            self.accept(held.arrived, Lane::try_admit);
        }
    }

    /// `room` is asked for the bytes of a frame that needs any.
    fn accept(&mut self, arrived: Arrived, room: impl FnOnce(&Lane, u64) -> Result<Admission, AdmissionError>) {
        let Arrived { frame, read_at, payload_bytes, content } = arrived;
        let sequence = frame.sequence;
        let ready = content.and_then(|content| {
            let admission = room(&self.lane, content.bytes)?;
            Ok((content, admission))
        });
        // A frame that cannot be explained must not replace one that can.
        let accepted = match &ready {
            Ok((content, _)) => self.session.accept(sequence, self.now(), content.expires_at),
            Err(_) => self.session.refuse(sequence).map(|()| Accepted::Waits),
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.session.fail(Refusal::from(error).into_status()),
        };
        let accepted_frame = frame_account::Accepted {
            source: &self.account.source,
            frame: &frame,
            // A stream has a trace of its own, and its frames each theirs.
            call: ("", ""),
            payload_bytes,
            policy: self.overflow.name(),
            at: read_at,
        };
        let mut account = FrameAccount::open(&self.service.telemetry, self.service.engine.clock(), accepted_frame);
        let echo = Echo { sequence, capture_time: frame.capture_time, tag: frame.tag, trace_id: account.trace_id() };
        if accepted == Accepted::RateLimited {
            account.dropped(DropReason::RateLimited);
            return;
        }
        let mut in_work = InWork { handle: None, account, echo, asked: Arc::clone(&self.asked) };
        let refusal = match (ready, accepted) {
            (Ok(_), Accepted::Rejected) => Some(self.no_credit()),
            (Ok((content, admission)), _) => {
                self.submit(&mut in_work, content, admission);
                None
            }
            (Err(refusal), _) => Some(refusal),
        };
        self.in_work.insert(sequence, in_work);
        if let Some(refusal) = refusal {
            self.refused(sequence, refusal);
        }
    }

    /// Under `REJECT`.
    fn no_credit(&self) -> Refusal {
        let message = format!(
            "the stream has as many frames in work as its credit (policy.depth, Opened.max_in_flight) allows, which is {}",
            self.policy.depth
        );
        Refusal::busy(message)
    }

    fn submit(&self, in_work: &mut InWork, content: Content, admission: Admission) {
        let Content { payload, bytes: _, expires_at, asked } = content;
        let sequence = in_work.echo.sequence;
        let outcomes = self.outcomes.clone();
        let handle = self.service.engine.submit(Job {
            lane: self.lane.clone(),
            // `policy::resolve` has checked it.
            priority: u8::try_from(self.policy.priority).unwrap_or(MAX_PRIORITY),
            expires_at,
            method: asked.method.clone(),
            targets: asked.targets.clone(),
            outputs: asked.outputs.clone(),
            payload,
            progress: in_work.account.progress().clone(),
            admission,
            // A stream that has ended wants nothing.
            reply: Reply::new(move |outcome| drop(outcomes.send((sequence, outcome)))),
        });
        in_work.asked = asked;
        in_work.handle = Some(SubmittedFrame::new(&self.service.engine, handle));
    }
}

/// Waits for the room that a held frame needs; for ever when none does.
pub(in crate::server) async fn admission(held: &mut Option<Held>) -> Result<Admission, AdmissionError> {
    match held.as_mut().and_then(|held| held.admission.as_mut()) {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}
