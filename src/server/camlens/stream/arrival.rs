//! From a message of the client to a pending frame.

use std::sync::Arc;
use std::time::Instant;

use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::schedule::{Admission, AdmissionError, Lane, MAX_PRIORITY, Onlooker, Reply};
use crate::stream::{Accepted, DropReason, Overflow};

use super::frames::{ArrivedFrame, HeldFrame, PendingFrame};
use super::opened::OpenStream;
use crate::server::camlens::request::{expected, frame, options};
use crate::server::frame_account::FrameAccount;
use crate::server::refusal::Refusal;
use crate::server::submit::{FrameContent, ReadFrame, SubmittedFrame};
use crate::server::transport::calls::TraceHeaders;

impl OpenStream {
    pub(super) fn read(&mut self, message: v1::ExplainStreamRequest) {
        match message.message {
            Some(Request::Frame(frame)) => self.held = Some(HeldFrame::new(self.arrived(frame))),
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

    fn arrived(&self, frame: v1::Frame) -> ArrivedFrame {
        let read_at = self.now();
        let echo = frame::echo(&frame);
        // A stream has a trace of its own, and so has each of its frames.
        let header = frame::header(&frame, TraceHeaders::default(), read_at);
        ArrivedFrame { echo, frame: ReadFrame { header, content: self.content(frame, read_at) } }
    }

    fn content(&self, mut frame: v1::Frame, read_at: Instant) -> Result<FrameContent, Refusal> {
        let options = match frame.options.take() {
            Some(own) => {
                let options = options::merge(&self.options, &own);
                let checked = options::resolve(&options, &self.model, &self.service.limits);
                Arc::new(checked.map_err(|refusal| refusal.under("frame"))?)
            }
            None => Arc::clone(&self.checked_options),
        };
        let time_to_live = match &frame.time_to_live {
            Some(own) => frame::time_to_live("frame.time_to_live", Some(own))?,
            None => frame::time_to_live("policy.time_to_live", self.policy.time_to_live.as_ref())?,
        };
        let expires_at = time_to_live.and_then(|time| read_at.checked_add(time));
        let expected = expected::resolve(frame.expected.as_ref(), &self.model.metadata)?;
        let payload = frame::payload(&mut frame, self.service.limits.max_frame_bytes)?;
        // `policy::resolve` has checked it.
        let priority = u8::try_from(self.policy.priority).unwrap_or(MAX_PRIORITY);
        let content = FrameContent::new(&self.model, options, payload, expires_at)?;
        let onlooker = self.view.as_ref().filter(|view| view.is_watched()).map(|view| Onlooker::new(view.onlooker()));
        Ok(content.with_priority(priority).expecting(expected).watched_by(onlooker))
    }

    /// Accepts the held frame, for which the stream has credit. Under `BLOCK` it waits when the server has no room.
    pub(super) fn accept_held(&mut self) {
        let Some(HeldFrame { arrived, .. }) = self.held.take() else { return };
        let (Ok(content), Overflow::Block) = (&arrived.frame.content, self.overflow) else {
            return self.accept(arrived, Lane::try_admit);
        };
        let bytes = content.bytes();
        match self.lane.try_admit(bytes) {
            Ok(admission) => self.accept(arrived, |_, _| Ok(admission)),
            Err(_) => self.held = Some(HeldFrame::waiting(arrived, self.lane.clone(), bytes)),
        }
    }

    /// Accepts the held frame, which has waited for room in the server.
    pub(super) fn admitted(&mut self, admission: Result<Admission, AdmissionError>) {
        if let Some(held) = self.held.take() {
            self.accept(held.arrived, |_, _| admission);
        }
    }

    /// Accepts the held frame of a stream that ends: it was read, so it gets an ending like the others.
    pub(super) fn accept_held_as_it_is(&mut self) {
        if let Some(held) = self.held.take() {
            self.accept(held.arrived, Lane::try_admit);
        }
    }

    /// `admit` is called with the bytes that the frame takes, unless it cannot be explained.
    fn accept(&mut self, arrived: ArrivedFrame, admit: impl FnOnce(&Lane, u64) -> Result<Admission, AdmissionError>) {
        let ArrivedFrame { frame: ReadFrame { header, content }, echo } = arrived;
        let sequence = header.sequence;
        let ready = content.and_then(|content| {
            let admission = admit(&self.lane, content.bytes())?;
            Ok((content, admission))
        });
        // A frame that cannot be explained must not replace one that can.
        let accepted = match &ready {
            Ok((content, _)) => self.session.accept(sequence, self.now(), content.expires_at()),
            Err(_) => self.session.refuse(sequence).map(|()| Accepted::Waits),
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.session.fail(Refusal::from(error).into_status()),
        };
        let (telemetry, clock) = (&self.service.telemetry, self.service.engine.clock());
        let mut account = FrameAccount::open(telemetry, clock, &self.account.source, self.overflow.name(), &header);
        if accepted == Accepted::RateLimited {
            account.dropped(DropReason::RateLimited);
            return;
        }
        let mut pending = PendingFrame { submitted: None, account, echo, options: Arc::clone(&self.checked_options) };
        let refusal = match (ready, accepted) {
            (Ok(_), Accepted::Rejected) => Some(self.no_credit()),
            (Ok((content, admission)), _) => {
                pending.options = Arc::clone(content.options());
                pending.submitted = Some(self.submit(content, admission, sequence, &pending.account));
                None
            }
            (Err(refusal), _) => Some(refusal),
        };
        self.pending.insert(sequence, pending);
        if let Some(refusal) = refusal {
            self.refused(sequence, refusal);
        }
    }

    /// Under `REJECT`.
    fn no_credit(&self) -> Refusal {
        let message = format!(
            "the stream has as many frames in work as its credit (policy.depth, Opened.max_in_flight) allows, which is \
             {}",
            self.policy.depth
        );
        Refusal::busy(message)
    }

    fn submit(
        &self,
        content: FrameContent,
        admission: Admission,
        sequence: u64,
        account: &FrameAccount,
    ) -> SubmittedFrame {
        let outcomes = self.outcomes.clone();
        // The receiver is gone when the stream is.
        let reply = Reply::new(move |outcome| drop(outcomes.send((sequence, outcome))));
        self.service.submit(&self.lane, content, admission, account, reply)
    }
}
