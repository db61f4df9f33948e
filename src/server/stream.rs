//! Drives one stream: reads, submits, sends, and lets [`Session`] decide.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::schedule::{Admission, AdmissionError, Job, Outcome, Reply, Served, StreamKey};
use crate::stream::{Action, DropReason, DroppedRun, Message, Overflow, Session};
use crate::telemetry::{FrameOutcome, Stage};

use super::frame_account::{FrameAccount, SourceName};
use super::refusal::Refusal;
use super::request::options::{self, Asked};
use super::request::{frame, policy, selector};
use super::response::{self, Echo};
use super::service::{Service, SubmittedFrame};

/// The longest name of a source.
const MAX_SOURCE_BYTES: usize = 256;
/// What the delivery's timing adds to an answer after it was measured, with room to spare.
const LATE_BYTES: usize = 64;

type Outbound = mpsc::Sender<Result<v1::ExplainStreamResponse, Status>>;

/// A stream before its `Open`.
pub(super) struct StreamTask {
    service: Service,
    inbound: Streaming<v1::ExplainStreamRequest>,
    outbound: Outbound,
    deadline: Option<Instant>,
}

impl StreamTask {
    pub(super) fn new(
        service: Service,
        inbound: Streaming<v1::ExplainStreamRequest>,
        outbound: Outbound,
        timeout: Option<Duration>,
    ) -> Self {
        let deadline = timeout.and_then(|timeout| service.engine.clock().now().checked_add(timeout));
        StreamTask { service, inbound, outbound, deadline }
    }

    /// Runs the stream to its end, its status included.
    pub(super) async fn run(mut self) {
        let (outbound, shutdown, deadline) = (self.outbound.clone(), self.service.shutdown.clone(), self.deadline);
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = outbound.closed() => return,
            () = shutdown.drain() => {
                let message = "the server is stopping; another one may take this stream";
                Err(Refusal::new(Code::Unavailable, "", message).into_status())
            }
            () = sleep_until(deadline) => Err(deadline_exceeded()),
        };
        let ending = match opened {
            Ok(Some(stream)) => stream.run(self.inbound, outbound, deadline).await,
            Ok(None) => Ok(()),
            Err(status) => Err(status),
        };
        if let Err(status) = ending {
            // Whoever would read it may have gone.
            let _ = self.outbound.send(Err(status)).await;
        }
    }

    /// Reads `Open` and answers it. A client that says nothing at all gets nothing.
    async fn open(&mut self) -> Result<Option<OpenStream>, Status> {
        let first = self.inbound.message().await.map_err(|status| self.service.read_error(status))?;
        let Some(first) = first else { return Ok(None) };
        let Some(Request::Open(open)) = first.message else {
            let message = "the first message of a stream is Open";
            return Err(Refusal::invalid("open", message).into_status());
        };
        let (stream, opened) =
            OpenStream::new(self.service.clone(), open).map_err(|refusal| refusal.under("open").into_status())?;
        let message = v1::ExplainStreamResponse { message: Some(Response::Opened(opened)) };
        // A client that has gone is noticed by whoever runs this.
        let _ = self.outbound.send(Ok(message)).await;
        Ok(Some(stream))
    }
}

impl Service {
    /// Why the next message could not be read.
    fn read_error(&self, status: Status) -> Status {
        match status.code() {
            Code::OutOfRange => super::start::oversized(self.limits.max_frame_bytes),
            _ => status,
        }
    }
}

/// An answer on its way, with the account that closes when it is sent.
struct Told {
    message: Response,
    account: FrameAccount,
}

/// A frame in work.
struct InWork {
    handle: Option<SubmittedFrame>,
    account: FrameAccount,
    echo: Echo,
    asked: Arc<Asked>,
}

/// A frame that was read and waits to be accepted: for credit, or for room in the server.
struct Held {
    frame: v1::Frame,
    read_at: Instant,
    /// Under `BLOCK`, when the server as a whole is full.
    admission: Option<Pin<Box<Admitting>>>,
}

/// Resolves when there is room.
type Admitting = dyn Future<Output = Result<Admission, AdmissionError>> + Send;

/// A stream after its `Open`.
struct OpenStream {
    service: Service,
    key: StreamKey,
    model: Arc<Served>,
    name: SourceName,
    /// As they were asked for, so that defaults stay defaults.
    options: v1::ExplainOptions,
    asked: Arc<Asked>,
    policy: v1::StreamPolicy,
    overflow: Overflow,
    session: Session<Box<Told>, Status>,
    in_work: HashMap<u64, InWork>,
    held: Option<Held>,
    /// Bounded by the frames in flight: each posts at most one outcome.
    outcomes: mpsc::UnboundedSender<(u64, Outcome)>,
    posted: mpsc::UnboundedReceiver<(u64, Outcome)>,
    /// Handed to the transport; its account closes when the transport has taken it.
    sending: Option<FrameAccount>,
}

impl OpenStream {
    fn new(service: Service, open: v1::Open) -> Result<(Self, v1::Opened), Refusal> {
        let v1::Open { model, options, policy: asked_policy, source } = open;
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!("source has {} bytes: at most {MAX_SOURCE_BYTES} are allowed", source.len());
            return Err(Refusal::invalid("source", message));
        }
        let model = Arc::clone(selector::select(service.engine.served(), model.as_ref())?);
        let options = options.unwrap_or_default();
        let asked = options::resolve(&options, &model, &service.limits)?;
        let (policy, effective_policy) = policy::resolve(&asked_policy.unwrap_or_default(), &service.limits)?;
        options::check_response_size(&asked, &model, effective_policy.max_response_bytes)?;
        let bounds = policy::bounds(&service.limits);
        let stream_id = new_stream_id();
        let opened = v1::Opened {
            stream_id: stream_id.clone(),
            model: Some(response::identity(&model.metadata, asked.precision)),
            max_in_flight: u32::try_from(policy.credit(&bounds)).unwrap_or(u32::MAX),
            max_frame_bytes: service.limits.max_frame_bytes,
            max_frame_pixels: service.limits.max_frame_pixels,
            effective_options: Some(asked.effective.clone()),
            effective_policy: Some(effective_policy),
        };
        let (outcomes, posted) = mpsc::unbounded_channel();
        let stream = OpenStream {
            key: service.engine.new_stream(),
            name: SourceName::new(&stream_id, &source, &model.metadata),
            model,
            options,
            asked: Arc::new(asked),
            policy: effective_policy,
            overflow: policy.overflow,
            session: Session::new(policy, bounds),
            in_work: HashMap::new(),
            held: None,
            outcomes,
            posted,
            sending: None,
            service,
        };
        tracing::debug!(stream_id, source, model = %stream.name.model, "stream opened");
        Ok((stream, opened))
    }

    /// Runs to the end; gives the status to end with.
    async fn run(
        mut self,
        mut inbound: Streaming<v1::ExplainStreamRequest>,
        outbound: Outbound,
        deadline: Option<Instant>,
    ) -> Result<(), Status> {
        let shutdown = self.service.shutdown.clone();
        let (mut draining, mut gone, mut late, mut reading) = (false, false, false, true);
        loop {
            self.settle();
            if self.session.is_over() {
                break;
            }
            let sends = !gone && (self.session.has_message() || self.sending.is_some());
            // One message ahead of what is accepted: a Cancel behind a full credit is read at once.
            let reads = reading && self.held.is_none() && !self.session.is_closing();
            tokio::select! {
                biased;
                () = outbound.closed(), if !gone => {
                    gone = true;
                    self.sending = None;
                    self.session.gone();
                }
                () = shutdown.drain(), if !draining => {
                    draining = true;
                    // It was read, but not accepted: the client finds it after the last accepted one.
                    self.held = None;
                    self.session.drain(self.now(), self.service.drain_timeout);
                }
                () = sleep_until(deadline), if !late => {
                    late = true;
                    self.accept_held_as_it_is();
                    self.session.fail(deadline_exceeded());
                }
                () = sleep_until(self.session.deadline()) => {
                    let now = self.now();
                    self.session.tick(now);
                }
                Some((sequence, outcome)) = self.posted.recv() => self.outcome(sequence, outcome),
                permit = outbound.reserve(), if sends => {
                    self.finish_sending();
                    if let Ok(permit) = permit && let Some(message) = self.next_message() {
                        permit.send(Ok(v1::ExplainStreamResponse { message: Some(message) }));
                    }
                }
                admission = admission(&mut self.held) => self.admitted(admission),
                message = inbound.message(), if reads => match message {
                    Ok(Some(message)) => self.read(message),
                    Ok(None) => {
                        reading = false;
                        self.session.half_close();
                    }
                    // The client has gone; the transport notices it on both sides, in any order.
                    Err(status) if status.code() == Code::Cancelled => {
                        reading = false;
                        gone = true;
                        self.session.gone();
                    }
                    Err(status) => {
                        reading = false;
                        self.session.fail(self.service.read_error(status));
                    }
                },
            }
        }
        // The last answer is on its way; closing the account now costs its `send` stage nothing but the wait.
        if self.sending.is_some() && outbound.reserve().await.is_ok() {
            self.finish_sending();
        }
        self.session.into_ending()
    }

    fn now(&self) -> Instant {
        self.service.engine.clock().now()
    }

    /// Accepts what may be accepted now, and carries out what the session has decided.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.session.next_action() {
                self.carry_out(action);
            }
            while let Some((_, mut told)) = self.session.next_evicted() {
                told.account.outcome(FrameOutcome::Dropped { reason: DropReason::SlowReader.name() });
            }
            let waits_for_room = self.held.as_ref().is_none_or(|held| held.admission.is_some());
            if waits_for_room || !self.session.wants_frames() {
                return;
            }
            self.accept_held();
        }
    }

    fn carry_out(&mut self, action: Action) {
        let (sequence, reason) = match action {
            Action::Replace { sequence } => (sequence, DropReason::Replaced),
            Action::Abort { sequence, reason } => (sequence, reason),
        };
        let handle = self.in_work.get(&sequence).and_then(|frame| frame.handle.as_ref());
        let ended = match (action, handle) {
            (Action::Replace { .. }, Some(handle)) => handle.replace(),
            (Action::Abort { .. }, Some(handle)) => handle.cancel(),
            (_, None) => false,
        };
        if ended {
            if let Some(mut frame) = self.in_work.remove(&sequence) {
                frame.account.outcome(match reason {
                    DropReason::Cancelled => FrameOutcome::Cancelled,
                    other => FrameOutcome::Dropped { reason: other.name() },
                });
            }
            self.session.dropped(sequence, reason);
        } else if let Action::Replace { .. } = action {
            self.session.taken(sequence);
        }
    }

    fn read(&mut self, message: v1::ExplainStreamRequest) {
        match message.message {
            Some(Request::Frame(frame)) => {
                self.held = Some(Held { frame, read_at: self.now(), admission: None });
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

    fn update(&mut self, update: v1::Update) -> Result<(), Refusal> {
        let options = match &update.options {
            Some(over) => options::overlay(&self.options, over),
            None => self.options.clone(),
        };
        let wire_policy = match &update.policy {
            Some(over) => policy::overlay(&self.policy, over)?,
            None => self.policy,
        };
        let asked = options::resolve(&options, &self.model, &self.service.limits)?;
        let (policy, effective_policy) = policy::resolve(&wire_policy, &self.service.limits)?;
        options::check_response_size(&asked, &self.model, effective_policy.max_response_bytes)?;
        self.options = options;
        self.asked = Arc::new(asked);
        self.policy = effective_policy;
        self.overflow = policy.overflow;
        self.session.update(policy);
        Ok(())
    }

    /// The stream has room for the frame; the server as a whole may not.
    fn accept_held(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        let bytes = frame::payload_bytes(&held.frame);
        match (self.service.engine.try_admit(bytes), self.overflow) {
            (Err(_), Overflow::Block) => {
                let engine = self.service.engine.clone();
                held.admission = Some(Box::pin(async move { engine.admit(bytes).await }));
                self.held = Some(held);
            }
            (admission, _) => self.accept(held.frame, held.read_at, admission),
        }
    }

    fn admitted(&mut self, admission: Result<Admission, AdmissionError>) {
        if let Some(held) = self.held.take() {
            self.accept(held.frame, held.read_at, admission);
        }
    }

    /// For a stream that ends: the frame was read, so it gets its ending like the others.
    fn accept_held_as_it_is(&mut self) {
        if let Some(held) = self.held.take() {
            let admission = self.service.engine.try_admit(frame::payload_bytes(&held.frame));
            self.accept(held.frame, held.read_at, admission);
        }
    }

    fn accept(&mut self, mut frame: v1::Frame, read_at: Instant, admission: Result<Admission, AdmissionError>) {
        let sequence = frame.sequence;
        if let Err(error) = self.session.accept(sequence) {
            self.session.fail(Refusal::from(error).into_status());
            return;
        }
        let account = FrameAccount::open(&self.service.telemetry, &self.name, &frame, read_at);
        let echo = Echo {
            sequence,
            capture_time: frame.capture_time,
            tag: frame.tag.clone(),
            trace_id: account.trace().trace_id.to_string(),
        };
        let asked = Arc::clone(&self.asked);
        let in_work = InWork { handle: None, account, echo, asked };
        self.in_work.insert(sequence, in_work);
        if let Err(refusal) = self.submit(&mut frame, admission) {
            self.refused(sequence, refusal);
        }
    }

    fn submit(&mut self, frame: &mut v1::Frame, admission: Result<Admission, AdmissionError>) -> Result<(), Refusal> {
        let sequence = frame.sequence;
        let Some(in_work) = self.in_work.get_mut(&sequence) else { return Ok(()) };
        if let Some(own) = frame.options.take() {
            let options = options::overlay(&self.options, &own);
            let asked = options::resolve(&options, &self.model, &self.service.limits);
            in_work.asked = Arc::new(asked.map_err(|refusal| refusal.under("frame"))?);
        }
        let payload = frame::payload(frame, self.service.limits.max_frame_bytes)?;
        let outcomes = self.outcomes.clone();
        let handle = self.service.engine.submit(Job {
            stream: self.key,
            model: Arc::clone(&self.model),
            method: in_work.asked.method.clone(),
            targets: in_work.asked.targets.clone(),
            outputs: in_work.asked.outputs.clone(),
            payload,
            timings: in_work.account.timings().clone(),
            admission: admission?,
            // A stream that has ended wants nothing.
            reply: Reply::new(move |outcome| drop(outcomes.send((sequence, outcome)))),
        });
        in_work.handle = Some(SubmittedFrame::new(&self.service.engine, handle));
        Ok(())
    }

    fn refused(&mut self, sequence: u64, refusal: Refusal) {
        let Some(InWork { mut account, echo, .. }) = self.in_work.remove(&sequence) else { return };
        let message = refusal.message.clone();
        account.outcome(FrameOutcome::Failed { code: refusal.code as i32, message });
        let error = refusal.into_frame_error(sequence, echo.tag);
        let bytes = error.encoded_len();
        let told = Told { message: Response::FrameError(error), account };
        self.session.answered(sequence, Box::new(told), bytes);
    }

    fn outcome(&mut self, sequence: u64, outcome: Outcome) {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => return self.refused(sequence, Refusal::from(&error)),
        };
        let Some(mut frame) = self.in_work.remove(&sequence) else { return };
        frame.account.answered(answer.timings.clone(), answer.batch_size);
        let explanation = response::explanation(answer, frame.echo.clone(), &frame.asked, &self.model.metadata);
        let bytes = explanation.encoded_len() + LATE_BYTES;
        let limit = self.policy.max_response_bytes;
        if limit != 0 && bytes as u64 > limit {
            let message = format!(
                "the answer has {bytes} bytes, and policy.max_response_bytes is {limit}: ask for fewer or smaller outputs"
            );
            self.in_work.insert(sequence, frame);
            return self.refused(sequence, Refusal::new(Code::ResourceExhausted, "options", message));
        }
        let told = Told { message: Response::Explanation(Box::new(explanation)), account: frame.account };
        self.session.answered(sequence, Box::new(told), bytes);
    }

    fn next_message(&mut self) -> Option<Response> {
        Some(match self.session.next_message()? {
            Message::Answer { answer, .. } => {
                let Told { mut message, mut account } = *answer;
                account.mark(Stage::Deliver, &**self.service.engine.clock());
                if let Response::Explanation(explanation) = &mut message {
                    explanation.timings = response::timings(account.timings());
                }
                self.sending = Some(account);
                message
            }
            Message::Dropped(run) => Response::Dropped(dropped(run)),
            Message::GoingAway { last_accepted, drain_timeout } => Response::GoingAway(v1::GoingAway {
                last_accepted_sequence: last_accepted,
                drain_timeout: drain_timeout.try_into().ok(),
                reason: "the server is stopping".to_owned(),
            }),
        })
    }

    /// The transport has taken the message before.
    fn finish_sending(&mut self) {
        if let Some(mut account) = self.sending.take() {
            account.mark(Stage::Send, &**self.service.engine.clock());
        }
    }
}

/// Waits for the room that a held frame needs; for ever when none does.
async fn admission(held: &mut Option<Held>) -> Result<Admission, AdmissionError> {
    match held.as_mut().and_then(|held| held.admission.as_mut()) {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the deadline that the client set for the whole stream has passed")
}

fn dropped(run: DroppedRun) -> v1::Dropped {
    use v1::dropped::Reason;
    let reason = match run.reason {
        DropReason::Replaced => Reason::Replaced,
        DropReason::Cancelled => Reason::Cancelled,
        DropReason::SlowReader => Reason::SlowReader,
        DropReason::Draining => Reason::Draining,
        DropReason::StreamEnded => Reason::StreamEnded,
    };
    v1::Dropped { first_sequence: run.first, last_sequence: run.last, count: run.count, reason: reason as i32 }
}

/// Unlike any other of this process, and unlikely to be one of another's.
fn new_stream_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{started:x}-{number}")
}
