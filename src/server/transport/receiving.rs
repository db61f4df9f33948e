//! Room for messages while they are received. What a message's header declares is taken from one budget before the rest of it
//! is read, so that many clients who begin large messages at once hold no more memory than the budget; the others wait, held
//! back by HTTP/2.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, http};

/// gRPC's prefix of a message: whether it is compressed, and its length, big-endian.
const HEADER_BYTES: usize = 5;
/// Messages up to this size need no room: HTTP/2's own frames are no smaller.
const SMALL_BYTES: u32 = 16 << 10;
/// A permit stands for this many bytes.
const BYTES_PER_PERMIT: u64 = 1024;

/// What all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Room {
    permits: Arc<Semaphore>,
    whole: u32,
    /// Larger ones are refused by whoever decodes them.
    max_message_bytes: u64,
    /// How long a client may pause within a message.
    patience: Duration,
}

impl Room {
    pub(in crate::server) fn new(bytes: u64, max_message_bytes: u64, patience: Duration) -> Self {
        let whole = u32::try_from(bytes / BYTES_PER_PERMIT).unwrap_or(u32::MAX).max(1);
        Room { permits: Arc::new(Semaphore::new(whole as usize)), whole, max_message_bytes, patience }
    }

    /// A message larger than all the room takes all of it, and so comes alone instead of never.
    fn take(&self, bytes: u32) -> Pin<Box<Taking>> {
        let permits = u64::from(bytes).div_ceil(BYTES_PER_PERMIT).min(self.whole.into()) as u32;
        let semaphore = Arc::clone(&self.permits);
        // The semaphore is never closed.
        Box::pin(async move { semaphore.acquire_many_owned(permits).await.ok() })
    }
}

type Taking = dyn Future<Output = Option<OwnedSemaphorePermit>> + Send;

/// Gives each request's body a [`Metered`] one.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithRoom<S> {
    pub(in crate::server) room: Room,
    pub(in crate::server) services: S,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for WithRoom<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let room = self.room.clone();
        self.services.call(request.map(|body| Body::new(Metered::new(body, room))))
    }
}

/// A body whose large messages wait for room.
struct Metered<B> {
    body: B,
    room: Room,
    /// Received, and not passed on.
    pending: Bytes,
    place: Place,
    /// Of the message that is being passed on.
    held: Option<OwnedSemaphorePermit>,
    /// The message that `held` is for has been passed on.
    passed: bool,
    taking: Option<Pin<Box<Taking>>>,
    heard: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Where in the flow of messages the next byte to be passed on lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    Message { left: u32 },
}

const BEGINNING: Place = Place::Header { bytes: [0; HEADER_BYTES], have: 0 };

/// What can be done with what is pending.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Pass on so many bytes.
    Pass(usize),
    /// Take room for a message of so many bytes first; its header comes next.
    Take(u32),
}

impl<B> Metered<B> {
    fn new(body: B, room: Room) -> Self {
        Metered {
            body,
            room,
            pending: Bytes::new(),
            place: BEGINNING,
            held: None,
            passed: false,
            taking: None,
            heard: Instant::now(),
            alarm: None,
        }
    }

    /// Walks through what is pending. Messages that are all there, and small ones, pass; the end of one that has room ends a
    /// step, so that its room is free before the next one asks for some.
    fn step(&mut self) -> Step {
        let mut at = 0;
        loop {
            let rest = self.pending.len() - at;
            match &mut self.place {
                Place::Message { left } => {
                    let now = (*left as usize).min(rest);
                    at += now;
                    *left -= now as u32;
                    if *left > 0 {
                        return Step::Pass(at);
                    }
                    self.place = BEGINNING;
                    if self.held.is_some() {
                        self.passed = true;
                        return Step::Pass(at);
                    }
                }
                Place::Header { bytes, have } => {
                    let now = (HEADER_BYTES - *have).min(rest);
                    let mut header = *bytes;
                    header[*have..*have + now].copy_from_slice(&self.pending[at..at + now]);
                    if *have + now < HEADER_BYTES {
                        (*bytes, *have) = (header, *have + now);
                        return Step::Pass(at + now);
                    }
                    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
                    let is_all_there = length as usize <= rest - now;
                    let is_too_large = u64::from(length) > self.room.max_message_bytes;
                    if !(is_all_there || is_too_large || length <= SMALL_BYTES || self.held.is_some()) {
                        return if at > 0 { Step::Pass(at) } else { Step::Take(length) };
                    }
                    at += now;
                    self.place = Place::Message { left: length };
                }
            }
        }
    }

    /// Whether a message has begun and not ended.
    fn is_within(&self) -> bool {
        match self.place {
            Place::Header { have, .. } => have > 0,
            Place::Message { .. } => true,
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Status> + Unpin> HttpBody for Metered<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // Whoever asks for more has what it got before.
        if std::mem::take(&mut this.passed) {
            this.held = None;
        }
        loop {
            if let Some(taking) = &mut this.taking {
                this.held = ready!(taking.as_mut().poll(context));
                this.taking = None;
            }
            if !this.pending.is_empty() {
                match this.step() {
                    Step::Pass(bytes) => {
                        return Poll::Ready(Some(Ok(http_body::Frame::data(this.pending.split_to(bytes)))));
                    }
                    Step::Take(bytes) => {
                        this.taking = Some(this.room.take(bytes));
                        continue;
                    }
                }
            }
            match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.heard = Instant::now();
                    match frame.into_data() {
                        Ok(data) => this.pending = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    }
                }
                Poll::Ready(end) => return Poll::Ready(end),
                Poll::Pending => return this.poll_patience(context),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.body.is_end_stream()
    }
}

impl<B> Metered<B> {
    /// Nothing comes. Within a message, that is borne for a while only.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if !self.is_within() {
            return Poll::Pending;
        }
        let until = self.heard + self.room.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        while alarm.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                let seconds = self.room.patience.as_secs();
                let message = format!("nothing came for {seconds} s in the midst of a message (server.read_timeout_s)");
                return Poll::Ready(Some(Err(Status::deadline_exceeded(message))));
            }
            // Something has come since it was set.
            alarm.as_mut().reset(until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tokio_stream::{StreamExt, once};

    use super::*;

    fn message(bytes: usize) -> Vec<u8> {
        let content = (0..bytes).map(|n| (n % 251) as u8);
        [0].into_iter().chain((bytes as u32).to_be_bytes()).chain(content).collect()
    }

    fn room(kib: u64) -> Room {
        Room::new(kib << 10, 1 << 20, Duration::from_secs(60))
    }

    type Fed = mpsc::Sender<Result<http_body::Frame<Bytes>, Status>>;

    /// A body that a test feeds.
    fn fed(room: &Room) -> (Fed, Metered<Body>) {
        let (feed, frames) = mpsc::channel(16);
        (feed, Metered::new(Body::new(StreamBody::new(ReceiverStream::new(frames))), room.clone()))
    }

    async fn feed(feed: &Fed, data: &[u8]) {
        feed.send(Ok(http_body::Frame::data(Bytes::copy_from_slice(data)))).await.expect("it is read");
    }

    async fn next(body: &mut Metered<Body>) -> Option<Bytes> {
        body.frame().await.map(|frame| frame.expect("no error").into_data().expect("data"))
    }

    async fn waits(body: &mut Metered<Body>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), body.frame()).await.is_err()
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_however_it_is_cut(
            sizes in prop::collection::vec(prop_oneof![0usize..40, 16_000usize..17_000, 40_000usize..90_000], 0..8),
            cuts in prop::collection::vec(1usize..40_000, 0..30),
        ) {
            let whole: Vec<u8> = sizes.iter().flat_map(|&size| message(size)).collect();
            let mut rest = Bytes::from(whole.clone());
            let mut frames = Vec::new();
            for cut in cuts {
                frames.push(rest.split_to(cut.min(rest.len())));
            }
            frames.push(rest);
            let frames = frames.into_iter().filter(|data| !data.is_empty());
            let stream = tokio_stream::iter(frames.map(|data| Ok::<_, Status>(http_body::Frame::data(data))));
            let room = room(64);
            let metered = Metered::new(Body::new(StreamBody::new(stream)), room.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let got = runtime.block_on(metered.collect()).expect("no error").to_bytes();
            prop_assert_eq!(&got[..], &whole[..]);
            prop_assert_eq!(room.permits.available_permits(), 64);
        }
    }

    #[tokio::test]
    async fn a_second_large_message_waits_until_the_first_has_been_received() {
        let room = room(100);
        let ((one_feed, mut one), (two_feed, mut two)) = (fed(&room), fed(&room));
        let large = message(70_000);
        feed(&one_feed, &large[..1000]).await;
        assert_eq!(next(&mut one).await.map(|data| data.len()), Some(1000));
        feed(&two_feed, &large[..20_000]).await;
        assert!(waits(&mut two).await, "not even its header is passed on");
        let small = message(100);
        let (three_feed, mut three) = fed(&room);
        feed(&three_feed, &small).await;
        assert_eq!(next(&mut three).await.as_deref(), Some(&small[..]), "small ones need no room");
        feed(&one_feed, &large[1000..]).await;
        assert_eq!(next(&mut one).await.map(|data| data.len()), Some(large.len() - 1000));
        assert!(waits(&mut one).await, "its decoder asks for more: it has the message");
        assert_eq!(next(&mut two).await.map(|data| data.len()), Some(20_000));
        drop(two);
        assert_eq!(room.permits.available_permits(), 100, "what a client leaves behind is free");
    }

    #[tokio::test]
    async fn a_message_larger_than_the_room_comes_alone_and_one_beyond_the_limit_is_left_to_the_decoder() {
        let room = Room::new(10 << 10, 60_000, Duration::from_secs(60));
        let (feeding, mut body) = fed(&room);
        feed(&feeding, &message(50_000)[..100]).await;
        assert_eq!(next(&mut body).await.map(|data| data.len()), Some(100));
        assert_eq!(room.permits.available_permits(), 0);
        let (feeding, mut body) = fed(&room);
        feed(&feeding, &message(70_000)[..100]).await;
        assert_eq!(next(&mut body).await.map(|data| data.len()), Some(100));
    }

    #[tokio::test]
    async fn a_client_that_stops_within_a_message_is_given_up_and_one_between_messages_is_not() {
        let patience = Duration::from_millis(300);
        let (feeding, mut body) = fed(&Room::new(100 << 10, 1 << 20, patience));
        feed(&feeding, &message(10)).await;
        next(&mut body).await;
        assert!(tokio::time::timeout(patience * 2, body.frame()).await.is_err());
        let large = message(70_000);
        for part in large[..40].chunks(10) {
            feed(&feeding, part).await;
            next(&mut body).await;
            tokio::time::sleep(patience / 3).await;
        }
        let error = body.frame().await.expect("an end").expect_err("nothing came");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(error.message().contains("server.read_timeout_s"), "{error}");
    }

    #[tokio::test]
    async fn trailers_pass() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let stream = once(Ok::<_, Status>(http_body::Frame::trailers(trailers.clone()))).map(|frame| frame);
        let mut metered = Metered::new(Body::new(StreamBody::new(stream)), room(1));
        let frame = metered.frame().await.expect("one").expect("no error");
        assert_eq!(frame.into_trailers().ok(), Some(trailers));
    }
}
