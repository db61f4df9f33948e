//! The client's side of one stream: sends frames at a pace, reads the server's messages, and keeps the account.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Link;
use super::error::ClientError;
use super::frame::{OutgoingFrame, Payload};
use super::latency::{Latencies, Stages};
use super::names;
use super::tally::{Echo, Tally};
use crate::proto::v1;
use crate::proto::v1::explain_service_client::ExplainServiceClient;
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

/// Counts and latencies of a stream.
#[derive(Debug, Default)]
pub struct Account {
    pub tally: Tally,
    /// Time from sending a frame to reading its answer.
    pub round_trip: Latencies,
    /// Stage timings of the server, from each answer.
    pub stages: Stages,
}

impl Account {
    /// Counts a message. Returns the number of frames that it ends, and the round trip of the frame that it answers.
    fn take(&mut self, message: &Response) -> (u64, Option<Duration>) {
        let ended = self.tally.take(message);
        let round_trip = ended.answered.map(|sent| sent.elapsed());
        if let Some(round_trip) = round_trip {
            self.round_trip.record(round_trip);
        }
        if let Response::Explanation(answer) = message {
            for timing in &answer.timings {
                self.stages.record(&names::stage(timing.stage), Duration::from_nanos(timing.duration_ns));
            }
        }
        (ended.frames, round_trip)
    }
}

/// Called with each message of the server after it is counted, and the round trip of the frame that it answers.
pub type Event<'a, E> = dyn FnMut(&Response, Option<Duration>) -> Result<(), E> + 'a;

/// One stream that is to be run.
pub struct Session {
    pub client: ExplainServiceClient<Link>,
    pub open: v1::Open,
    pub pace: Pace,
    /// Ends the sending of frames. The frames that were sent are still answered.
    pub stop: CancellationToken,
}

impl Session {
    /// Runs the stream to its end.
    ///
    /// # Errors
    /// [`ClientError::Status`] from the server, or an error of `event`.
    pub async fn run<E: From<ClientError>>(
        mut self,
        frames: mpsc::Receiver<OutgoingFrame>,
        event: &mut Event<'_, E>,
    ) -> (Account, Result<(), E>) {
        let account = Arc::<Mutex<Account>>::default();
        let credit = Arc::new(Semaphore::new(0));
        let (requests, outgoing) = mpsc::channel(1);
        let sender = Sender {
            requests,
            credit: credit.clone(),
            account: account.clone(),
            pace: self.pace,
            stop: self.stop.clone(),
        };
        let sending = tokio::spawn(sender.run(self.open, frames));
        let result = match self.client.explain_stream(ReceiverStream::new(outgoing)).await {
            Ok(response) => receive(response.into_inner(), &account, &credit, self.pace, &self.stop, event).await,
            Err(status) => Err(ClientError::Status { asked: "open the stream", status: Box::new(status) }.into()),
        };
        self.stop.cancel();
        credit.close();
        // The task ends by itself: its channel is closed.
        if let Err(error) = sending.await {
            tracing::warn!(%error, "the task that sends the frames panicked");
        }
        let account = std::mem::take(&mut *lock(&account));
        (account, result)
    }
}

async fn receive<E: From<ClientError>>(
    mut responses: tonic::Streaming<v1::ExplainStreamResponse>,
    account: &Mutex<Account>,
    credit: &Semaphore,
    pace: Pace,
    stop: &CancellationToken,
    event: &mut Event<'_, E>,
) -> Result<(), E> {
    loop {
        let response = responses
            .message()
            .await
            .map_err(|status| ClientError::Status { asked: "continue the stream", status: Box::new(status) })?;
        let Some(response) = response else { return Ok(()) };
        let Some(message) = response.message else { continue };
        let (ended, round_trip) = lock(account).take(&message);
        match &message {
            Response::Opened(opened) if pace.within_credit => {
                let credit_limit = pace.in_flight.unwrap_or(u32::MAX).min(opened.max_in_flight);
                credit.add_permits(credit_limit.max(1) as usize);
            }
            Response::Opened(_) if credit.available_permits() == 0 => credit.add_permits(Semaphore::MAX_PERMITS),
            Response::GoingAway(_) => stop.cancel(),
            // Bounded, so that a wrong count from a server cannot overflow the semaphore.
            _ if pace.within_credit => credit.add_permits(ended.min(u64::from(u32::MAX)) as usize),
            _ => {}
        }
        event(&message, round_trip)?;
    }
}

struct Sender {
    requests: mpsc::Sender<v1::ExplainStreamRequest>,
    credit: Arc<Semaphore>,
    account: Arc<Mutex<Account>>,
    pace: Pace,
    stop: CancellationToken,
}

impl Sender {
    async fn run(self, open: v1::Open, mut frames: mpsc::Receiver<OutgoingFrame>) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.send(open, &mut frames) => {}
        }
        // Dropping the channel ends the request stream. The server answers the frames that it has and ends the call.
    }

    async fn send(&self, open: v1::Open, frames: &mut mpsc::Receiver<OutgoingFrame>) {
        if self.requests.send(v1::ExplainStreamRequest { message: Some(Request::Open(open)) }).await.is_err() {
            return;
        }
        let period = self.pace.rate_hz.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut due = tokio::time::Instant::now();
        let mut sequence = 0;
        while let Some(frame) = frames.recv().await {
            // Opened grants the credit; each answered, failed or dropped frame returns its part.
            let Ok(permit) = self.credit.acquire().await else { return };
            if self.pace.within_credit {
                permit.forget();
            }
            if let Some(period) = period {
                tokio::time::sleep_until(due).await;
                // A source that is late continues from now, as a camera does; it does not catch up.
                due = (due + period).max(tokio::time::Instant::now());
            }
            let Ok(slot) = self.requests.reserve().await else { return };
            sequence += 1;
            let frame = message(sequence, frame);
            let echo = Echo { tag: frame.tag.clone(), capture_time: frame.capture_time };
            lock(&self.account).tally.sent(sequence, echo, Instant::now());
            slot.send(v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) });
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

fn message(sequence: u64, frame: OutgoingFrame) -> v1::Frame {
    use v1::frame::Payload as Wire;
    let payload = match frame.payload {
        Payload::Encoded(data) => Wire::Encoded(v1::EncodedImage { data, ..Default::default() }),
        Payload::Rgb { width, height, data } => Wire::Raw(v1::RawImage {
            data,
            width,
            height,
            pixel_format: v1::PixelFormat::Rgb8 as i32,
            ..Default::default()
        }),
    };
    v1::Frame {
        sequence,
        capture_time: Some(SystemTime::now().into()),
        tag: frame.name.into_bytes().into(),
        payload: Some(payload),
        ..Default::default()
    }
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    // A panic cannot leave the counts half updated.
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
