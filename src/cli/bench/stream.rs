//! One stream of a run, from its opening to its account.

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

/// A frame of an open loop that has not been sent this long after the end is not sent any more.
const GRACE: Duration = Duration::from_millis(100);
/// How often a stream is looked at for getting on.
const LOOK: Duration = Duration::from_millis(100);
/// How long a server may take to open a stream.
const OPENING: Duration = Duration::from_secs(30);

/// A stream that the server has opened.
pub struct OpenStream {
    pub opened: v1::Opened,
    requests: mpsc::Sender<v1::ExplainStreamRequest>,
    responses: Streaming<v1::ExplainStreamResponse>,
}

/// What became of a stream.
#[derive(Debug)]
pub struct StreamOutcome {
    pub tally: Tally,
    /// Sent, accepted, and without an ending.
    pub missing: BTreeSet<u64>,
    /// Frames of the measured time that were to be sent.
    pub offered: u64,
    /// Frames that were due and that the transport did not take before the end.
    pub unsent: u64,
    /// Answers that came within the measured time.
    pub answered: u64,
    /// From the beginning.
    pub sending_ended: Duration,
    /// The stream ended with an error.
    pub trouble: Option<Status>,
}

impl OpenStream {
    pub async fn open(mut client: ExplainServiceClient<Link>, open: v1::Open) -> Result<Self, Failure> {
        let refused = |status: Status| Failure::from_status("open a stream", &status);
        let broke = || Failure::failed("the stream broke before it was open");
        let (requests, outgoing) = mpsc::channel(1);
        let opening = async {
            let first = v1::ExplainStreamRequest { message: Some(Request::Open(open)) };
            requests.send(first).await.map_err(|_| broke())?;
            let mut responses =
                client.explain_stream(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
            match responses.message().await.map_err(refused)?.and_then(|response| response.message) {
                Some(Response::Opened(opened)) => Ok((opened, responses)),
                _ => Err(broke()),
            }
        };
        let (opened, responses) = tokio::time::timeout(OPENING, opening).await.unwrap_or_else(|_| {
            Err(Failure::failed(format!("the server did not open a stream within {} s", OPENING.as_secs())))
        })?;
        Ok(OpenStream { opened, requests, responses })
    }

    /// Sends and reads to the end.
    pub async fn run(self, run: &Run, number: usize, begin: Instant) -> StreamOutcome {
        let credit = match run.pace {
            Pace::Open { .. } => Semaphore::MAX_PERMITS,
            Pace::Closed { in_flight } => in_flight as usize,
        };
        // Ends with the run's own, or with the stream.
        let live = Live::new(run, number, begin, credit, run.stop.child_token());
        let OpenStream { requests, mut responses, .. } = self;
        let all_sent = CancellationToken::new();
        let sending = async {
            let progress = live.send(requests).await;
            all_sent.cancel();
            let ended = begin.elapsed();
            // The last frame is sent somewhat before the end.
            match run.length {
                Length::For(length) if progress.complete => (progress, ended.max(length)),
                _ => (progress, ended),
            }
        };
        let reading = async {
            let mut answered = 0;
            let trouble = tokio::select! {
                read = live.read(&mut responses, &mut answered) => read.err(),
                () = live.stalls(&all_sent) => None,
            };
            // Nobody would answer what is still to be sent.
            live.stop.cancel();
            (answered, trouble)
        };
        let ((progress, sending_ended), (answered, trouble)) = tokio::join!(sending, reading);
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
        StreamOutcome { tally, missing, offered, unsent, answered, sending_ended, trouble }
    }

    /// Sends and never reads, until `end`. Gives the number of frames that the transport took.
    pub async fn run_without_reading(self, run: &Run, number: usize, begin: Instant, end: &CancellationToken) -> u64 {
        let OpenStream { requests, responses, .. } = self;
        let live = Live::new(run, number, begin, Semaphore::MAX_PERMITS, end.clone());
        let progress = live.send(requests).await;
        end.cancelled().await;
        drop(responses);
        progress.sent
    }
}

/// A stream while it runs; one side sends, the other reads.
struct Live<'a> {
    run: &'a Run,
    number: usize,
    begin: Instant,
    tally: Mutex<Tally>,
    /// Of a closed loop: frames that may be sent.
    credit: Semaphore,
    /// When a frame was last taken or a message read, in milliseconds from the beginning.
    last_progress_ms: AtomicU64,
    stop: CancellationToken,
}

/// How far a sender has come.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    sent: u64,
    /// Of these, those of the measured time.
    measured: u64,
    /// It came to its end, and was not stopped before.
    complete: bool,
}

impl<'a> Live<'a> {
    fn new(run: &'a Run, number: usize, begin: Instant, credit: usize, stop: CancellationToken) -> Self {
        let credit = Semaphore::new(credit);
        Live { run, number, begin, tally: Mutex::default(), credit, last_progress_ms: AtomicU64::new(0), stop }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counting does not panic half-way; what was counted stands.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the time.
    fn progress(&self) -> Instant {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.begin).as_millis() as u64;
        self.last_progress_ms.store(since, Ordering::Relaxed);
        now
    }

    /// Returns when frames wait for their ending and nothing has happened for too long.
    async fn stalls(&self, all_sent: &CancellationToken) {
        loop {
            tokio::time::sleep(LOOK).await;
            let last = Duration::from_millis(self.last_progress_ms.load(Ordering::Relaxed));
            let waits = all_sent.is_cancelled() || self.tally().outstanding() > 0;
            if waits && self.begin.elapsed().saturating_sub(last) > self.run.patience {
                return;
            }
        }
    }

    /// Counts answers of the measured time into `answered`.
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
                // Never more than are on their way, whatever the server says.
                self.credit.add_permits(ended.frames.min(in_flight.into()) as usize);
            }
            match &message {
                Response::GoingAway(_) => self.stop.cancel(),
                Response::Explanation(answer) => {
                    let came = now.saturating_duration_since(self.begin);
                    *answered += u64::from(self.run.measures(came));
                    if let Some(due) = ended.answered
                        && self.run.measures(due.saturating_duration_since(self.begin))
                    {
                        self.run.meter().answer(answer, now.saturating_duration_since(due), came);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends until the end, then closes the request stream: the server finishes what it has and ends the call.
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
            let Ok(place) = requests.reserve().await else { return };
            let taken = self.progress();
            progress.sent += 1;
            let frame = self.frame(progress.sent);
            self.tally().sent(frame.sequence, Echo { tag: frame.tag.clone(), capture_time: None }, due);
            if self.run.measures(due.saturating_duration_since(self.begin)) {
                progress.measured += 1;
                let mut meter = self.run.meter();
                meter.send_delay.record(taken.saturating_duration_since(due));
                meter.sent_bytes += frame.payload.as_ref().map_or(0, payloads::length);
            }
            place.send(v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) });
        }
        progress.complete = true;
    }

    /// Waits for the time of the frame after `sent` others; none: there is no more.
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
