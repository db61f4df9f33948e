//! The client's side of one stream: sends frames at a pace, reads the server's messages, keeps the account, and opens
//! the stream again when its connection ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::backoff::Backoff;
use super::error::ClientError;
use super::frame_queue::FrameQueue;
use super::ledger::{Answered, Ledger, Unanswered};
use super::{Link, explain_client};
use crate::proto::v1;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::proto::v1::explain_stream_response::Message as Response;

/// The pace at which frames are sent.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Frames per second. `None`: unlimited.
    pub rate_hz: Option<f64>,
    /// Whether to send only within the credit that the server grants. A camera sends regardless of it.
    pub within_credit: bool,
    /// Within the credit: largest number of unanswered frames. `None`: the credit.
    pub in_flight: Option<u32>,
}

/// What happens on a stream.
#[derive(Debug)]
pub enum Event<'a> {
    /// A message of the server, after it is counted, and the frame that it answers.
    Message(&'a Response, Option<&'a Answered>),
    /// The stream has ended before its frames. It is opened again after `wait`.
    Disconnected { why: String, wait: Duration },
}

/// Called with each event of a stream. An error ends the stream.
pub type OnEvent<'a, E> = dyn FnMut(Event<'_>) -> Result<(), E> + Send + 'a;

/// How a stream is opened again.
#[derive(Debug)]
pub struct Reconnect<C, E> {
    /// Opens another connection to the server.
    pub connect: C,
    /// Whether another try may succeed after this error of `connect`.
    pub may_pass: fn(&E) -> bool,
    pub backoff: Backoff,
    /// How long to try without an opened stream.
    pub give_up_after: Duration,
}

/// Changes a frame's message before it is sent.
#[derive(Clone)]
pub struct Adjust(Arc<dyn Fn(&mut v1::Frame) + Send + Sync>);

impl Adjust {
    pub fn new(change: impl Fn(&mut v1::Frame) + Send + Sync + 'static) -> Self {
        Adjust(Arc::new(change))
    }

    pub fn apply(&self, frame: &mut v1::Frame) {
        (self.0)(frame);
    }
}

impl Default for Adjust {
    /// No change.
    fn default() -> Self {
        Adjust::new(|_| {})
    }
}

impl std::fmt::Debug for Adjust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Adjust")
    }
}

/// One stream that is to be run.
#[derive(Debug)]
pub struct Session {
    pub open: v1::Open,
    pub pace: Pace,
    pub unanswered: Unanswered,
    pub adjust: Adjust,
    /// Ends the sending of frames. The frames that were sent are still answered.
    pub stop: CancellationToken,
}

impl Session {
    /// Runs the stream on one connection, to its end.
    ///
    /// # Errors
    /// [`ClientError::Status`] from the server, or an error of `event`.
    pub async fn run<E: From<ClientError>>(
        self,
        link: Link,
        frames: Arc<FrameQueue>,
        event: &mut OnEvent<'_, E>,
    ) -> (Account, Result<(), E>) {
        let ledger = Arc::new(Ledger::new());
        let end = self.converse(link, &ledger, &frames, event).await;
        frames.close();
        ledger.close(frames.unsent());
        (ledger.account(), end.result.map_err(Interruption::into_error))
    }

    /// Runs the stream until each of its frames has ended, over as many connections as that takes.
    ///
    /// # Errors
    /// An error of the server or of `reconnect` that does not pass, or has not passed in time; an error of `event`.
    pub async fn run_persistently<E, C, F>(
        self,
        first: Link,
        reconnect: Reconnect<C, E>,
        frames: Arc<FrameQueue>,
        event: &mut OnEvent<'_, E>,
    ) -> (Account, Result<(), E>)
    where
        E: From<ClientError> + std::fmt::Display,
        C: Fn() -> F,
        F: Future<Output = Result<Link, E>>,
    {
        let ledger = Arc::new(Ledger::new());
        let result = self.persist(first, reconnect, &ledger, &frames, event).await;
        frames.close();
        ledger.close(frames.unsent());
        (ledger.account(), result)
    }

    async fn persist<E, C, F>(
        &self,
        first: Link,
        reconnect: Reconnect<C, E>,
        ledger: &Arc<Ledger>,
        frames: &Arc<FrameQueue>,
        event: &mut OnEvent<'_, E>,
    ) -> Result<(), E>
    where
        E: From<ClientError> + std::fmt::Display,
        C: Fn() -> F,
        F: Future<Output = Result<Link, E>>,
    {
        let mut link = Some(first);
        let (mut failures, mut opened) = (0, Instant::now());
        loop {
            let before = ledger.ended_frames();
            let connected = match link.take() {
                Some(link) => Ok(link),
                None => (reconnect.connect)().await,
            };
            let (may_pass, why, result) = match connected {
                Err(error) => ((reconnect.may_pass)(&error), error.to_string(), Err(error)),
                Ok(link) => {
                    let end = self.converse(link, ledger, frames, event).await;
                    if end.was_opened {
                        opened = Instant::now();
                    }
                    ledger.disconnected(end.result.is_err(), self.unanswered);
                    match end.result {
                        Ok(()) => (true, "the server ended the stream".to_owned(), Ok(())),
                        Err(Interruption::Client(error)) => (error.may_pass(), error.to_string(), Err(error.into())),
                        Err(Interruption::Event(error)) => return Err(error),
                    }
                }
            };
            if !may_pass {
                return result;
            }
            if self.stop.is_cancelled() || (frames.is_drained() && !ledger.has_waiting()) {
                // What the connection took along is in the account.
                return Ok(());
            }
            failures = if ledger.ended_frames() > before { 1 } else { failures + 1 };
            let wait = reconnect.backoff.wait(failures);
            if opened.elapsed() + wait > reconnect.give_up_after {
                return result;
            }
            event(Event::Disconnected { why, wait })?;
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One call, from Open to its status.
    async fn converse<E: From<ClientError>>(
        &self,
        link: Link,
        ledger: &Arc<Ledger>,
        frames: &Arc<FrameQueue>,
        event: &mut OnEvent<'_, E>,
    ) -> End<E> {
        let (requests, outgoing) = mpsc::channel(1);
        let sender = Sender {
            requests,
            credit: Arc::new(Semaphore::new(0)),
            ledger: ledger.clone(),
            pace: self.pace,
            adjust: self.adjust.clone(),
            over: self.stop.child_token(),
        };
        let mut receiver = Receiver {
            credit: sender.credit.clone(),
            ledger: ledger.clone(),
            pace: self.pace,
            over: sender.over.clone(),
            was_opened: false,
        };
        let (open, queue) = (self.open.clone(), frames.clone());
        let sending = tokio::spawn(async move { sender.run(open, &queue).await });
        let result = match explain_client(link).explain_stream(ReceiverStream::new(outgoing)).await {
            Ok(response) => receiver.run(response.into_inner(), event).await,
            Err(status) => {
                Err(Interruption::Client(ClientError::Status { asked: "open the stream", status: Box::new(status) }))
            }
        };
        receiver.over.cancel();
        receiver.credit.close();
        // The task ends by itself: its token is cancelled.
        if let Err(error) = sending.await {
            tracing::warn!(%error, "the task that sends the frames panicked");
        }
        End { was_opened: receiver.was_opened, result }
    }
}

/// How a connection's stream ended.
struct End<E> {
    was_opened: bool,
    result: Result<(), Interruption<E>>,
}

enum Interruption<E> {
    Client(ClientError),
    Event(E),
}

impl<E: From<ClientError>> Interruption<E> {
    fn into_error(self) -> E {
        match self {
            Interruption::Client(error) => error.into(),
            Interruption::Event(error) => error,
        }
    }
}

struct Receiver {
    credit: Arc<Semaphore>,
    ledger: Arc<Ledger>,
    pace: Pace,
    /// Ends the sending on this connection.
    over: CancellationToken,
    was_opened: bool,
}

impl Receiver {
    async fn run<E>(
        &mut self,
        mut responses: tonic::Streaming<v1::ExplainStreamResponse>,
        event: &mut OnEvent<'_, E>,
    ) -> Result<(), Interruption<E>> {
        loop {
            let response = responses.message().await.map_err(|status| {
                Interruption::Client(ClientError::Status { asked: "continue the stream", status: Box::new(status) })
            })?;
            let Some(response) = response else { return Ok(()) };
            let Some(message) = response.message else { continue };
            let (ended, answered) = self.ledger.take(&message);
            match &message {
                Response::Opened(opened) => self.opened(opened),
                Response::GoingAway(_) => self.over.cancel(),
                // Bounded, so that a wrong count from a server cannot overflow the semaphore.
                _ if self.pace.within_credit => self.credit.add_permits(ended.min(u64::from(u32::MAX)) as usize),
                _ => {}
            }
            event(Event::Message(&message, answered.as_ref())).map_err(Interruption::Event)?;
        }
    }

    /// Grants the credit, once.
    fn opened(&mut self, opened: &v1::Opened) {
        if !std::mem::replace(&mut self.was_opened, true) {
            let limit = self.pace.in_flight.unwrap_or(u32::MAX).min(opened.max_in_flight).max(1);
            self.credit.add_permits(if self.pace.within_credit { limit as usize } else { Semaphore::MAX_PERMITS });
        }
    }
}

struct Sender {
    requests: mpsc::Sender<v1::ExplainStreamRequest>,
    credit: Arc<Semaphore>,
    ledger: Arc<Ledger>,
    pace: Pace,
    adjust: Adjust,
    over: CancellationToken,
}

impl Sender {
    async fn run(self, open: v1::Open, frames: &FrameQueue) {
        let over = self.over.clone();
        tokio::select! {
            () = over.cancelled() => {}
            () = self.send(open, frames) => {}
        }
        // Dropping the channel ends the request stream. The server answers the frames that it has and ends the call.
    }

    async fn send(&self, open: v1::Open, frames: &FrameQueue) {
        if self.requests.send(v1::ExplainStreamRequest { message: Some(Request::Open(open)) }).await.is_err() {
            return;
        }
        let period = self.pace.rate_hz.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut due = tokio::time::Instant::now();
        loop {
            // Opened grants the credit; each answered, failed or dropped frame returns its part.
            let Ok(permit) = self.credit.acquire().await else { return };
            if period.is_some() {
                tokio::time::sleep_until(due).await;
            }
            // The frame is taken when it can be sent, so that a camera's is the newest.
            let Ok(slot) = self.requests.reserve().await else { return };
            if !self.ledger.has_waiting() {
                let Some(frame) = frames.next().await else { return };
                // From here on the ledger has the frame, even if this task is cancelled.
                self.ledger.add(frame);
            }
            self.ledger.make_room().await;
            let Some(mut frame) = self.ledger.send() else { return };
            self.adjust.apply(&mut frame);
            slot.send(v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) });
            if self.pace.within_credit {
                permit.forget();
            }
            if let Some(period) = period {
                // A source that is late continues from now, as a camera does; it does not catch up.
                due = (due + period).max(tokio::time::Instant::now());
            }
        }
    }
}

/// Largest name of a stream in the protocol, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Cuts a stream's name to the protocol's limit of 256 bytes, at a character boundary.
pub fn stream_name(wanted: &str) -> String {
    let mut name = wanted.to_owned();
    while name.len() > MAX_NAME_BYTES {
        name.pop();
    }
    name
}
