//! A stream after its `Open`: one loop over its events.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::proto::v1;
use crate::schedule::{Lane, Outcome, Served};
use crate::stream::{Action, DropReason, Overflow, Session};

use super::Outbound;
use super::account::{Opening, StreamAccount};
use super::frames::{HeldFrame, PendingFrame, UnsentAnswer, admission};
use crate::server::camlens::request::{options, policy};
use crate::server::camlens::response;
use crate::server::frame_account::FrameAccount;
use crate::server::quota::credit::CreditShare;
use crate::server::quota::unsent::UnsentShare;
use crate::server::refusal::Refusal;
use crate::server::service::Service;
use crate::server::submit::CheckedOptions;
use crate::server::transport::calls::TraceHeaders;
use crate::server::transport::connections::{AGED, About};
use crate::server::transport::deadline;
use crate::view::{self, StreamFacts};

/// The longest name of a stream's source.
const MAX_SOURCE_BYTES: usize = 256;

/// The reason in `GoingAway` for a stream whose model is no longer served.
const OUTLIVED: &str = "the stream's model was replaced or is no longer served";

/// Resolves when `grace` has passed since `model` was replaced, retired or evicted; never without `grace`.
async fn outlived(model: Arc<Served>, grace: Option<Duration>) {
    match grace {
        Some(grace) => {
            model.retired().await;
            tokio::time::sleep(grace).await;
        }
        None => std::future::pending().await,
    }
}

/// A stream after its `Open`.
pub(super) struct OpenStream {
    pub(super) service: Service,
    pub(super) lane: Lane,
    pub(super) model: Arc<Served>,
    pub(super) account: StreamAccount,
    credit: CreditShare,
    /// As the client sent them, without defaults: a frame's or an update's options are merged into these.
    pub(super) options: v1::ExplainOptions,
    /// `options`, checked and with defaults.
    pub(super) checked_options: Arc<CheckedOptions>,
    pub(super) policy: v1::StreamPolicy,
    pub(super) overflow: Overflow,
    pub(super) session: Session<Box<UnsentAnswer>, Status>,
    /// By sequence.
    pub(super) pending: HashMap<u64, PendingFrame>,
    pub(super) held: Option<HeldFrame>,
    /// Holds at most one outcome per frame in flight.
    pub(super) outcomes: mpsc::UnboundedSender<(u64, Outcome)>,
    posted: mpsc::UnboundedReceiver<(u64, Outcome)>,
    /// This stream's part of the unsent bytes of all streams.
    unsent: UnsentShare,
    /// What the live page shows of the stream, where there is a live page.
    pub(super) view: Option<view::Stream>,
    pub(super) going_away_because: &'static str,
    /// The account of the answer that was handed to the transport. It closes when the transport has taken the answer.
    pub(super) sending: Option<FrameAccount>,
}

impl OpenStream {
    /// A stream of frames for `model`, which `open` selects.
    pub(super) fn new(
        service: Service,
        model: Arc<Served>,
        open: v1::Open,
        call: &TraceHeaders,
        peer: Option<IpAddr>,
    ) -> Result<(Self, v1::Opened), Refusal> {
        let v1::Open { model: _, options, policy: asked_policy, source } = open;
        if source.len() > MAX_SOURCE_BYTES {
            let message = format!("source has {} bytes: at most {MAX_SOURCE_BYTES} are allowed", source.len());
            return Err(Refusal::invalid("source", message));
        }
        let options = options.unwrap_or_default();
        let checked_options = options::resolve(&options, &model, &service.limits)?;
        let (policy, effective_policy) = policy::resolve(&asked_policy.unwrap_or_default(), &service.limits)?;
        options::check_response_size(&checked_options, &model, effective_policy.max_response_bytes)?;
        let bounds = policy::bounds(&service.limits);
        let credit = policy.credit(&bounds);
        let stream_id = new_stream_id();
        let opening = Opening {
            stream_id: &stream_id,
            name: &source,
            model: (&model.metadata.name, model.metadata.version),
            call,
            peer,
            policy: policy.overflow.name(),
        };
        let account = StreamAccount::open(&service.telemetry, service.engine.clock(), opening);
        let opened = v1::Opened {
            stream_id: stream_id.clone(),
            model: Some(response::identity(&model.metadata, checked_options.method.mode)),
            max_in_flight: u32::try_from(credit).unwrap_or(u32::MAX),
            max_frame_bytes: service.limits.max_frame_bytes,
            max_frame_pixels: service.limits.max_frame_pixels,
            effective_options: Some(options::effective(&options, &checked_options, &model)),
            effective_policy: Some(effective_policy),
        };
        let (outcomes, posted) = mpsc::unbounded_channel();
        let view = service.view.as_ref().map(|hub| {
            hub.open(StreamFacts {
                id: stream_id.clone(),
                name: source.clone(),
                model: format!("{} {}", model.metadata.name, model.metadata.version),
                policy: policy::in_words(&effective_policy),
            })
        });
        let stream = OpenStream {
            lane: service.engine.lane(&model),
            account,
            credit: service.credit.share(credit as u64),
            model,
            options,
            checked_options: Arc::new(checked_options),
            policy: effective_policy,
            overflow: policy.overflow,
            session: Session::new(policy, bounds),
            pending: HashMap::new(),
            held: None,
            outcomes,
            posted,
            unsent: service.unsent.share(),
            view,
            going_away_because: "",
            sending: None,
            service,
        };
        tracing::debug!(stream_id, source, model = %stream.account.source.model, "stream opened");
        Ok((stream, opened))
    }

    /// Runs the stream to its end. Returns its status.
    pub(super) async fn run(
        mut self,
        mut inbound: Streaming<v1::ExplainStreamRequest>,
        outbound: Outbound,
        connection: About,
        deadline: Option<Instant>,
    ) -> Result<(), Status> {
        let shutdown = self.service.shutdown.clone();
        let (mut draining, mut gone, mut late, mut reading) = (false, false, false, true);
        // When the message became ready that the client has not read yet.
        let mut unread_since = None;
        let outlived = outlived(Arc::clone(&self.model), self.service.stream_grace);
        tokio::pin!(outlived);
        let mut ending = Ok(());
        loop {
            self.settle();
            if self.session.is_over() {
                break;
            }
            let sends = !gone && (self.session.has_message() || self.sending.is_some());
            let write_deadline = if sends {
                let since = *unread_since.get_or_insert_with(|| self.now());
                since.checked_add(self.service.write_timeout)
            } else {
                unread_since = None;
                None
            };
            // One message is read ahead of what is accepted: a Cancel is read although the credit is used up.
            let reads = reading && self.held.is_none() && !self.session.is_closing();
            tokio::select! {
                biased;
                () = outbound.closed(), if !gone => {
                    gone = true;
                    self.sending = None;
                    self.session.gone();
                    self.account.gone();
                }
                () = shutdown.drain(), if !draining => {
                    draining = true;
                    // It was read and not accepted: its sequence is above GoingAway.last_accepted_sequence.
                    self.held = None;
                    self.going_away_because = "the server is stopping";
                    self.account.event("draining", self.going_away_because);
                    self.session.drain(self.now(), self.service.drain_timeout);
                }
                () = connection.aged(), if !draining => {
                    draining = true;
                    self.held = None;
                    self.going_away_because = AGED;
                    self.account.event("draining", AGED);
                    self.session.drain(self.now(), self.service.drain_timeout);
                }
                () = &mut outlived, if !draining => {
                    draining = true;
                    self.held = None;
                    self.going_away_because = OUTLIVED;
                    self.account.event("draining", OUTLIVED);
                    self.session.drain(self.now(), self.service.drain_timeout);
                }
                () = deadline::passed(deadline), if !late => {
                    late = true;
                    self.accept_held_as_it_is();
                    self.session.fail(Status::deadline_exceeded(deadline::EXCEEDED));
                }
                () = deadline::passed(write_deadline) => {
                    let source = &self.account.source.name;
                    tracing::warn!(%source, "a stream was given up: its client does not read");
                    self.session.gone();
                    gone = true;
                    self.sending = None;
                    ending = Err(self.unread());
                    self.account.event("given_up", "the client does not read");
                }
                () = deadline::passed(self.session.deadline()) => {
                    let now = self.now();
                    self.session.tick(now);
                }
                Some((sequence, outcome)) = self.posted.recv() => self.outcome(sequence, outcome),
                permit = outbound.reserve(), if sends => {
                    unread_since = None;
                    self.finish_sending();
                    if let Ok(permit) = permit && let Some(message) = self.next_message() {
                        permit.send(v1::ExplainStreamResponse { message: Some(message) });
                    }
                }
                admission = admission(&mut self.held) => self.admitted(admission),
                message = inbound.message(), if reads => match message {
                    Ok(Some(message)) => self.read(message),
                    Ok(None) => {
                        reading = false;
                        self.session.half_close();
                    }
                    // The client has gone. The transport reports that on both sides, in any order.
                    Err(status) if status.code() == Code::Cancelled => {
                        reading = false;
                        gone = true;
                        self.session.gone();
                        self.account.gone();
                    }
                    Err(status) => {
                        reading = false;
                        self.session.fail(self.service.read_error(status));
                    }
                },
            }
        }
        // Waits until the transport has taken the last answer, so that its `send` stage is measured.
        if self.sending.is_some()
            && timeout(self.service.write_timeout, outbound.reserve()).await.is_ok_and(|room| room.is_ok())
        {
            self.finish_sending();
        }
        let ended = ending.and(self.session.into_ending());
        if !gone || ended.is_err() {
            self.account.ends(&ended);
        }
        ended
    }

    fn unread(&self) -> Status {
        let seconds = self.service.write_timeout.as_secs();
        let message = format!("nothing was read from this stream for {seconds} s (server.write_timeout_s)");
        Status::deadline_exceeded(message)
    }

    pub(super) fn now(&self) -> Instant {
        self.service.engine.clock().now()
    }

    /// Accepts the held frame if it may be accepted now, and carries out what the session has decided.
    fn settle(&mut self) {
        let allowed = self.unsent.update(self.session.unsent_bytes());
        self.session.limit_unsent(allowed);
        loop {
            while let Some(action) = self.session.next_action() {
                self.carry_out(action);
            }
            while let Some((_, mut answer)) = self.session.next_evicted() {
                answer.account.dropped(DropReason::SlowReader);
            }
            let waits_for_room = self.held.as_ref().is_none_or(HeldFrame::waits_for_server);
            if waits_for_room || !self.session.wants_frames() {
                return;
            }
            self.accept_held();
        }
    }

    fn carry_out(&mut self, action: Action) {
        let (sequence, reason) = match action {
            Action::Withdraw { sequence, reason } | Action::Abort { sequence, reason } => (sequence, reason),
        };
        let submitted = self.pending.get(&sequence).and_then(|frame| frame.submitted.as_ref());
        let ended = match (action, submitted) {
            (Action::Withdraw { .. }, Some(frame)) => frame.withdraw(),
            (Action::Abort { .. }, Some(frame)) => frame.cancel(),
            (_, None) => false,
        };
        if ended {
            self.dropped(sequence, reason);
        } else if let Action::Withdraw { .. } = action {
            self.session.taken(sequence);
        }
    }

    pub(super) fn update(&mut self, update: v1::Update) -> Result<(), Refusal> {
        let options = match &update.options {
            Some(over) => options::merge(&self.options, over),
            None => self.options.clone(),
        };
        let wire_policy = match &update.policy {
            Some(over) => policy::merge(&self.policy, over)?,
            None => self.policy,
        };
        let checked_options = options::resolve(&options, &self.model, &self.service.limits)?;
        let (policy, effective_policy) = policy::resolve(&wire_policy, &self.service.limits)?;
        options::check_response_size(&checked_options, &self.model, effective_policy.max_response_bytes)?;
        self.options = options;
        self.checked_options = Arc::new(checked_options);
        self.policy = effective_policy;
        self.overflow = policy.overflow;
        self.session.update(policy);
        self.credit.becomes(policy.credit(&policy::bounds(&self.service.limits)) as u64);
        self.account.event("update", policy.overflow.name());
        if let Some(view) = &self.view {
            view.policy(policy::in_words(&effective_policy));
        }
        Ok(())
    }
}

/// Unique in this process; the start's time makes it differ from other processes'.
fn new_stream_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{started:x}-{number}")
}
