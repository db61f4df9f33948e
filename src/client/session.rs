//! One stream, from the client's side: frames out at their pace, endings in, and the account of both.

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

/// How frames are sent.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Frames per second; none: as fast as they are taken.
    pub rate_hz: Option<f64>,
    /// Whether to keep within the credit that the server grants. A camera does not.
    pub within_credit: bool,
    /// Within the credit, at most so many frames that are not answered yet.
    pub in_flight: Option<u32>,
}

/// What a stream's client counts and measures.
#[derive(Debug, Default)]
pub struct Account {
    pub tally: Tally,
    /// From sending a frame to reading its answer.
    pub round_trip: Latencies,
    /// The server's, of each answer.
    pub stages: Stages,
}

impl Account {
    /// Counts and measures a message; gives the number of frames that it ends, and the round trip of one that it answers.
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

/// Sees each message of the server after it was counted, with the round trip of a frame that it answers.
pub type Event<'a, E> = dyn FnMut(&Response, Option<Duration>) -> Result<(), E> + 'a;

/// A stream and what is needed to run it.
pub struct Session {
    pub client: ExplainServiceClient<Link>,
    pub open: v1::Open,
    pub pace: Pace,
    /// Ends the sending; what was sent is still waited for.
    pub stop: CancellationToken,
}

impl Session {
    /// Runs the stream to its end.
    ///
    /// # Errors
    /// A [`ClientError::Status`] of the server, or an error of `event`.
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
        // Its channel has no reader any more: it ends by itself.
        if let Err(error) = sending.await {
            tracing::warn!(%error, "the sending side of the stream broke");
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
            .map_err(|status| ClientError::Status { asked: "go on with the stream", status: Box::new(status) })?;
        let Some(response) = response else { return Ok(()) };
        let Some(message) = response.message else { continue };
        let (ended, round_trip) = lock(account).take(&message);
        match &message {
            Response::Opened(opened) if pace.within_credit => {
                let most = pace.in_flight.unwrap_or(u32::MAX).min(opened.max_in_flight);
                credit.add_permits(most.max(1) as usize);
            }
            Response::Opened(_) if credit.available_permits() == 0 => credit.add_permits(Semaphore::MAX_PERMITS),
            Response::GoingAway(_) => stop.cancel(),
            // Never more than a server could have granted, whatever it says.
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
        // Dropping the channel ends the request stream: the server finishes what it has and ends the call.
    }

    async fn send(&self, open: v1::Open, frames: &mut mpsc::Receiver<OutgoingFrame>) {
        if self.requests.send(v1::ExplainStreamRequest { message: Some(Request::Open(open)) }).await.is_err() {
            return;
        }
        let period = self.pace.rate_hz.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut due = tokio::time::Instant::now();
        let mut sequence = 0;
        while let Some(frame) = frames.recv().await {
            // Granted by Opened, returned by each ending.
            let Ok(permit) = self.credit.acquire().await else { return };
            if self.pace.within_credit {
                permit.forget();
            }
            if let Some(period) = period {
                tokio::time::sleep_until(due).await;
                // A source that fell behind goes on from now: cameras do not catch up.
                due = (due + period).max(tokio::time::Instant::now());
            }
            let Ok(place) = self.requests.reserve().await else { return };
            sequence += 1;
            let frame = message(sequence, frame);
            let echo = Echo { tag: frame.tag.clone(), capture_time: frame.capture_time };
            lock(&self.account).tally.sent(sequence, echo, Instant::now());
            place.send(v1::ExplainStreamRequest { message: Some(Request::Frame(frame)) });
        }
    }
}

/// Bytes of a stream's name that the protocol takes.
const MAX_NAME_BYTES: usize = 256;

/// A name for a stream, cut to what the protocol takes.
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
    // Counting does not panic half-way; what was counted stands.
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
