//! One stream of a run, from its opening to its result.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::load::{Pace, Run};
use super::payloads;
use super::schedule::Length;
use crate::cli::failure::Failure;
use crate::client::Link;
use crate::client::tally::{Echo, Tally};
use crate::proto::v1;
use crate::proto::v1::explain_service_client::ExplainServiceClient;
use crate::proto::v1::explain_stream_request::Message as Request;
use crate::proto::v1::explain_stream_response::Message as Response;

/// How long after the end of a timed run the frames that are still due may be sent.
const GRACE: Duration = Duration::from_millis(100);
/// How often a stream's progress is checked.
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a server may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream that the server has opened, before its first frame.
pub struct OpenStream {
    pub opened: v1::Opened,
    requests: mpsc::Sender<v1::ExplainStreamRequest>,
    responses: Streaming<v1::ExplainStreamResponse>,
}

/// The result of a stream.
#[derive(Debug)]
pub struct StreamOutcome {
    pub tally: Tally,
    /// Sent, accepted, and without an ending.
    pub missing: BTreeSet<u64>,
    /// Frames due in the measured time.
    pub offered: u64,
    /// Frames that were due, but that the transport did not accept before the end.
    pub unsent: u64,
    /// Answers received in the measured time.
    pub answered: u64,
    /// When sending ended, from the start of the run.
    pub sending_ended: Duration,
    /// The status with which the stream ended, if it is an error.
    pub error: Option<Status>,
}

impl OpenStream {
    pub async fn open(mut client: ExplainServiceClient<Link>, open: v1::Open) -> Result<Self, Failure> {
        let refused = |status: Status| Failure::from_status("open a stream", &status);
        let closed = || Failure::failed("the stream ended before the server opened it");
        let (requests, outgoing) = mpsc::channel(1);
        let opening = async {
            let first = v1::ExplainStreamRequest { message: Some(Request::Open(open)) };
            requests.send(first).await.map_err(|_| closed())?;
            let mut responses =
                client.explain_stream(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
            match responses.message().await.map_err(refused)?.and_then(|response| response.message) {
                Some(Response::Opened(opened)) => Ok((opened, responses)),
                _ => Err(closed()),
            }
        };
        let (opened, responses) = tokio::time::timeout(OPEN_TIMEOUT, opening).await.unwrap_or_else(|_| {
            Err(Failure::failed(format!("the server did not open a stream within {} s", OPEN_TIMEOUT.as_secs())))
        })?;
        Ok(OpenStream { opened, requests, responses })
    }

    /// Sends the frames of the run and reads until the stream ends or stalls.
    pub async fn run(self, run: &Run, number: usize, begin: Instant) -> StreamOutcome {
        let credit = match run.pace {
            Pace::Open { .. } => Semaphore::MAX_PERMITS,
            Pace::Closed { in_flight } => in_flight as usize,
        };
        // Cancelled with the run's token, or when this stream ends.
        let live = Live::new(run, number, begin, credit, run.stop.child_token());
        let OpenStream { requests, mut responses, .. } = self;
        let all_sent = CancellationToken::new();
        let sending = async {
            let progress = live.send(requests).await;
            all_sent.cancel();
            let ended = begin.elapsed();
            // The last frame is due before the end, so sending lasts for the whole length.
            match run.length {
                Length::For(length) if progress.complete => (progress, ended.max(length)),
                _ => (progress, ended),
            }
        };
        let reading = async {
            let mut answered = 0;
            let error = tokio::select! {
                read = live.read(&mut responses, &mut answered) => read.err(),
                () = live.stalls(&all_sent) => None,
            };
            // The stream has ended or stalled: frames sent from now on would get no answer.
            live.stop.cancel();
            (answered, error)
        };
        let ((progress, sending_ended), (answered, error)) = tokio::join!(sending, reading);
        let (offered, unsent) = match run.pace {
            Pace::Closed { .. } => (progress.measured, 0),
            Pace::Open { rate_hz } => {
                let schedule = run.schedule(rate_hz, number);
                let due = schedule.due_before(sending_ended);
                let warming = schedule.due_before(run.warm_up.min(sending_ended));
                (due - warming, due.saturating_sub(progress.sent))
            }
        };
        let mut tally = live.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = tally.close();
        StreamOutcome { tally, missing, offered, unsent, answered, sending_ended, error }
    }

    /// Sends without reading until `end` is cancelled. Returns the number of frames that the transport accepted.
    pub async fn run_without_reading(self, run: &Run, number: usize, begin: Instant, end: &CancellationToken) -> u64 {
        let OpenStream { requests, responses, .. } = self;
        let live = Live::new(run, number, begin, Semaphore::MAX_PERMITS, end.clone());
        let progress = live.send(requests).await;
        end.cancelled().await;
        drop(responses);
        progress.sent
    }
}

/// A running stream, shared by the sending and the reading side.
struct Live<'a> {
    run: &'a Run,
    number: usize,
    begin: Instant,
    tally: Mutex<Tally>,
    /// In a closed loop, the number of frames that may be sent now.
    credit: Semaphore,
    /// When the last frame was sent or message read, in milliseconds from the start of the run.
    last_progress_ms: AtomicU64,
    stop: CancellationToken,
}

/// Frames sent so far.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    sent: u64,
    /// Of `sent`, those due in the measured time.
    measured: u64,
    /// Whether sending reached the end of the run without being stopped.
    complete: bool,
}

impl<'a> Live<'a> {
    fn new(run: &'a Run, number: usize, begin: Instant, credit: usize, stop: CancellationToken) -> Self {
        let credit = Semaphore::new(credit);
        Live { run, number, begin, tally: Mutex::default(), credit, last_progress_ms: AtomicU64::new(0), stop }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // A poisoned lock is usable: counting does not panic between two updates.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes progress at the current time and returns that time.
    fn progress(&self) -> Instant {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.begin).as_millis() as u64;
        self.last_progress_ms.store(since, Ordering::Relaxed);
        now
    }

    /// Returns once frames await their ending, or the end of the call, without progress for longer than `patience`.
    async fn stalls(&self, all_sent: &CancellationToken) {
        loop {
            tokio::time::sleep(STALL_CHECK_INTERVAL).await;
            let last = Duration::from_millis(self.last_progress_ms.load(Ordering::Relaxed));
            let awaits = all_sent.is_cancelled() || self.tally().outstanding() > 0;
            if awaits && self.begin.elapsed().saturating_sub(last) > self.run.patience {
                return;
            }
        }
    }

    /// Reads until the stream ends and adds the answers received in the measured time to `answered`.
    async fn read(
        &self,
        responses: &mut Streaming<v1::ExplainStreamResponse>,
        answered: &mut u64,
    ) -> Result<(), Status> {
        while let Some(response) = responses.message().await? {
            let now = self.progress();
            let Some(message) = response.message else { continue };
            let ended = self.tally().take(&message);
            if let Pace::Closed { in_flight } = self.run.pace {
                // A faulty server may end more frames than were sent: add at most `in_flight` permits.
                self.credit.add_permits(ended.frames.min(in_flight.into()) as usize);
            }
            match &message {
                Response::GoingAway(_) => self.stop.cancel(),
                Response::Explanation(answer) => {
                    let received = now.saturating_duration_since(self.begin);
                    *answered += u64::from(self.run.measures(received));
                    if let Some(due) = ended.answered
                        && self.run.measures(due.saturating_duration_since(self.begin))
                    {
                        self.run.meter().answer(answer, now.saturating_duration_since(due), received);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends until the end of the run, then closes the request stream: the server answers the frames that it has and
    /// ends the call.
    async fn send(&self, requests: mpsc::Sender<v1::ExplainStreamRequest>) -> Progress {
        let mut progress = Progress::default();
        let cut = async {
            match self.run.length {
                Length::For(length) => tokio::time::sleep_until((self.begin + length + GRACE).into()).await,
                Length::Frames(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = cut => progress.complete = true,
            () = self.send_each(&requests, &mut progress) => {}
        }
        progress
    }

    async fn send_each(&self, requests: &mpsc::Sender<v1::ExplainStreamRequest>, progress: &mut Progress) {
        while let Some(due) = self.next(progress.sent).await {
            let Ok(permit) = requests.reserve().await else { return };
            let accepted = self.progress();
            progress.sent += 1;
            let frame = self.frame(progress.sent);
            self.tally().sent(frame.sequence, Echo { tag: frame.tag.clone(), capture_time: None }, due);
            if self.run.measures(due.saturating_duration_since(self.begin)) {
                progress.measured += 1;
                let mut meter = self.run.meter();
                meter.send_delay.record(accepted.saturating_duration_since(due));
                meter.sent_bytes += frame.payload.as_ref().map_or(0, payloads::length);
            }
            permit.send(v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) });
        }
        progress.complete = true;
    }

    /// Waits until the next frame, after `sent` others, may be sent, and returns its due time. None: the run has ended.
    async fn next(&self, sent: u64) -> Option<Instant> {
        match self.run.pace {
            Pace::Open { rate_hz } => {
                let due = self.begin + self.run.schedule(rate_hz, self.number).due(sent)?;
                tokio::time::sleep_until(due.into()).await;
                Some(due)
            }
            Pace::Closed { .. } => {
                if matches!(self.run.length, Length::Frames(count) if sent >= count) {
                    return None;
                }
                self.credit.acquire().await.ok()?.forget();
                let now = Instant::now();
                let over = matches!(self.run.length, Length::For(length) if now >= self.begin + length);
                (!over).then_some(now)
            }
        }
    }

    fn frame(&self, sequence: u64) -> v1::Frame {
        let payloads = &self.run.payloads;
        let turn = (sequence as usize + self.number) % payloads.len();
        let tag = [(self.number as u64).to_le_bytes(), sequence.to_le_bytes()].concat();
        v1::Frame { sequence, tag: Bytes::from(tag), payload: Some(payloads[turn].clone()), ..Default::default() }
    }
}
