//! The budget of bytes for messages that are being received.
//!
//! The length that a message's header declares is taken from one budget before the message is read. Clients that begin
//! large messages at the same time therefore hold no more memory than the budget; the others are held back by HTTP/2.
//!
//! What compressed messages inflate to has a budget of its own, of the same size. A message takes from it once it has
//! been received whole, so no message that holds a part of it waits for its client.

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

/// gRPC's prefix of a message: a byte for compression, and the length as a big-endian u32.
const HEADER_BYTES: usize = 5;
/// Messages up to this size take nothing from the budget: HTTP/2's own frames are no smaller.
const SMALL_BYTES: u32 = 16 << 10;
/// Bytes for which one permit stands.
const BYTES_PER_PERMIT: u64 = 1024;

/// The budget that all requests share. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct ReceiveBudget {
    permits: Arc<Semaphore>,
    /// Of what compressed messages inflate to.
    inflated: Arc<Semaphore>,
    /// Permits of each of the two when nothing is being received.
    total: u32,
    /// Larger messages are refused when they are decoded.
    max_message_bytes: u64,
    /// How long a client may pause within a message.
    read_timeout: Duration,
}

impl ReceiveBudget {
    pub(in crate::server) fn new(bytes: u64, max_message_bytes: u64, read_timeout: Duration) -> Self {
        let total = u32::try_from(bytes / BYTES_PER_PERMIT).unwrap_or(u32::MAX).max(1);
        let semaphore = || Arc::new(Semaphore::new(total as usize));
        ReceiveBudget { permits: semaphore(), inflated: semaphore(), total, max_message_bytes, read_timeout }
    }

    /// The size limit of a message, as it was sent and inflated.
    pub(in crate::server) fn max_message_bytes(&self) -> u64 {
        self.max_message_bytes
    }

    /// Takes the `bytes` of a message that is received.
    fn take(&self, bytes: u32) -> Pin<Box<Taking>> {
        self.take_from(&self.permits, bytes.into())
    }

    /// Takes the `bytes` that a compressed message inflates to.
    pub(in crate::server) fn take_inflated(&self, bytes: u64) -> Pin<Box<Taking>> {
        self.take_from(&self.inflated, bytes)
    }

    /// A message larger than the whole budget takes all of it, and so is received alone.
    fn take_from(&self, semaphore: &Arc<Semaphore>, bytes: u64) -> Pin<Box<Taking>> {
        let permits = bytes.div_ceil(BYTES_PER_PERMIT).min(self.total.into()) as u32;
        let semaphore = Arc::clone(semaphore);
        // The semaphore is never closed.
        Box::pin(async move { semaphore.acquire_many_owned(permits).await.ok() })
    }

    /// How many permits for inflated bytes are free.
    #[cfg(test)]
    pub(in crate::server) fn inflated_permits(&self) -> usize {
        self.inflated.available_permits()
    }
}

pub(in crate::server) type Taking = dyn Future<Output = Option<OwnedSemaphorePermit>> + Send;

/// Makes each request's body a [`BudgetedBody`].
#[derive(Debug, Clone)]
pub(in crate::server) struct WithReceiveBudget<S> {
    pub(in crate::server) budget: ReceiveBudget,
    pub(in crate::server) services: S,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for WithReceiveBudget<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let budget = self.budget.clone();
        self.services.call(request.map(|body| Body::new(BudgetedBody::new(body, budget))))
    }
}

/// A body whose large messages wait for the budget.
struct BudgetedBody<B> {
    body: B,
    budget: ReceiveBudget,
    /// Received, and not passed on yet.
    pending: Bytes,
    position: Position,
    /// The part of the budget that the current message has taken.
    held: Option<OwnedSemaphorePermit>,
    /// Whether the message that `held` is for has been passed on whole.
    passed: bool,
    taking: Option<Pin<Box<Taking>>>,
    last_received: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where the next byte to be passed on lies.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// In a header, of which the first `have` bytes were passed on.
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    /// In a message, of which `left` bytes remain.
    Message { left: u32 },
}

const BEGINNING: Position = Position::Header { bytes: [0; HEADER_BYTES], have: 0 };

/// What to do with the pending bytes.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Pass on the first bytes: how many.
    Pass(usize),
    /// First take a message's length, in bytes, from the budget. Its header comes next.
    Take(u32),
}

impl<B> BudgetedBody<B> {
    fn new(body: B, budget: ReceiveBudget) -> Self {
        BudgetedBody {
            body,
            budget,
            pending: Bytes::new(),
            position: BEGINNING,
            held: None,
            passed: false,
            taking: None,
            last_received: Instant::now(),
            timer: None,
        }
    }

    /// Parses the pending bytes. Small messages and those that are pending whole pass. A step ends with the message
    /// that has taken from the budget, so that it gives its part back before the next one takes some.
    fn step(&mut self) -> Step {
        let mut at = 0;
        loop {
            let rest = self.pending.len() - at;
            match &mut self.position {
                Position::Message { left } => {
                    let now = (*left as usize).min(rest);
                    at += now;
                    *left -= now as u32;
                    if *left > 0 {
                        return Step::Pass(at);
                    }
                    self.position = BEGINNING;
                    if self.held.is_some() {
                        self.passed = true;
                        return Step::Pass(at);
                    }
                }
                Position::Header { bytes, have } => {
                    let now = (HEADER_BYTES - *have).min(rest);
                    let mut header = *bytes;
                    header[*have..*have + now].copy_from_slice(&self.pending[at..at + now]);
                    if *have + now < HEADER_BYTES {
                        (*bytes, *have) = (header, *have + now);
                        return Step::Pass(at + now);
                    }
                    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
                    let is_all_there = length as usize <= rest - now;
                    let is_too_large = u64::from(length) > self.budget.max_message_bytes;
                    if !(is_all_there || is_too_large || length <= SMALL_BYTES || self.held.is_some()) {
                        return if at > 0 { Step::Pass(at) } else { Step::Take(length) };
                    }
                    at += now;
                    self.position = Position::Message { left: length };
                }
            }
        }
    }

    /// Whether a message has begun and not ended.
    fn is_within(&self) -> bool {
        match self.position {
            Position::Header { have, .. } => have > 0,
            Position::Message { .. } => true,
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error = Status> + Unpin> HttpBody for BudgetedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // The decoder asks for more once it has the message.
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
                        this.taking = Some(this.budget.take(bytes));
                        continue;
                    }
                }
            }
            match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.last_received = Instant::now();
                    match frame.into_data() {
                        Ok(data) => this.pending = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    }
                }
                Poll::Ready(end) => return Poll::Ready(end),
                Poll::Pending => return this.poll_timeout(context),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.body.is_end_stream()
    }
}

impl<B> BudgetedBody<B> {
    /// Nothing has come. Within a message, that is an error after the read timeout.
    fn poll_timeout(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if !self.is_within() {
            return Poll::Pending;
        }
        let until = self.last_received + self.budget.read_timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                let seconds = self.budget.read_timeout.as_secs();
                let message = format!("nothing was received for {seconds} s within a message (server.read_timeout_s)");
                return Poll::Ready(Some(Err(Status::deadline_exceeded(message))));
            }
            // Something was received since the timer was set.
            timer.as_mut().reset(until);
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

    fn budget(kib: u64) -> ReceiveBudget {
        ReceiveBudget::new(kib << 10, 1 << 20, Duration::from_secs(60))
    }

    type Fed = mpsc::Sender<Result<http_body::Frame<Bytes>, Status>>;

    /// A body that a test feeds.
    fn fed(budget: &ReceiveBudget) -> (Fed, BudgetedBody<Body>) {
        let (feed, frames) = mpsc::channel(16);
        (feed, BudgetedBody::new(Body::new(StreamBody::new(ReceiverStream::new(frames))), budget.clone()))
    }

    async fn feed(feed: &Fed, data: &[u8]) {
        feed.send(Ok(http_body::Frame::data(Bytes::copy_from_slice(data)))).await.expect("it is read");
    }

    async fn next(body: &mut BudgetedBody<Body>) -> Option<Bytes> {
        body.frame().await.map(|frame| frame.expect("no error").into_data().expect("data"))
    }

    async fn waits(body: &mut BudgetedBody<Body>) -> bool {
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
            let budget = budget(64);
            let body = BudgetedBody::new(Body::new(StreamBody::new(stream)), budget.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let got = runtime.block_on(body.collect()).expect("no error").to_bytes();
            prop_assert_eq!(&got[..], &whole[..]);
            prop_assert_eq!(budget.permits.available_permits(), 64);
        }
    }

    #[tokio::test]
    async fn a_second_large_message_waits_until_the_first_has_been_received() {
        let budget = budget(100);
        let ((one_feed, mut one), (two_feed, mut two)) = (fed(&budget), fed(&budget));
        let large = message(70_000);
        feed(&one_feed, &large[..1000]).await;
        assert_eq!(next(&mut one).await.map(|data| data.len()), Some(1000));
        feed(&two_feed, &large[..20_000]).await;
        assert!(waits(&mut two).await, "not even its header is passed on");
        let small = message(100);
        let (three_feed, mut three) = fed(&budget);
        feed(&three_feed, &small).await;
        assert_eq!(next(&mut three).await.as_deref(), Some(&small[..]), "small ones take nothing");
        feed(&one_feed, &large[1000..]).await;
        assert_eq!(next(&mut one).await.map(|data| data.len()), Some(large.len() - 1000));
        assert!(waits(&mut one).await, "its decoder asks for more: it has the message");
        assert_eq!(next(&mut two).await.map(|data| data.len()), Some(20_000));
        drop(two);
        assert_eq!(budget.permits.available_permits(), 100, "what a client leaves behind is free");
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_comes_alone_and_one_beyond_the_limit_is_left_to_the_decoder() {
        let budget = ReceiveBudget::new(10 << 10, 60_000, Duration::from_secs(60));
        let (feeding, mut body) = fed(&budget);
        feed(&feeding, &message(50_000)[..100]).await;
        assert_eq!(next(&mut body).await.map(|data| data.len()), Some(100));
        assert_eq!(budget.permits.available_permits(), 0);
        let (feeding, mut body) = fed(&budget);
        feed(&feeding, &message(70_000)[..100]).await;
        assert_eq!(next(&mut body).await.map(|data| data.len()), Some(100));
    }

    #[tokio::test]
    async fn a_client_that_stops_within_a_message_is_given_up_and_one_between_messages_is_not() {
        let read_timeout = Duration::from_millis(300);
        let (feeding, mut body) = fed(&ReceiveBudget::new(100 << 10, 1 << 20, read_timeout));
        feed(&feeding, &message(10)).await;
        next(&mut body).await;
        assert!(tokio::time::timeout(read_timeout * 2, body.frame()).await.is_err());
        let large = message(70_000);
        for part in large[..40].chunks(10) {
            feed(&feeding, part).await;
            next(&mut body).await;
            tokio::time::sleep(read_timeout / 3).await;
        }
        let error = body.frame().await.expect("an end").expect_err("nothing came");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(error.message().contains("server.read_timeout_s"), "{error}");
    }

    #[tokio::test]
    async fn trailers_pass() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let stream = once(Ok::<_, Status>(http_body::Frame::trailers(trailers.clone()))).map(|frame| frame);
        let mut body = BudgetedBody::new(Body::new(StreamBody::new(stream)), budget(1));
        let frame = body.frame().await.expect("one").expect("no error");
        assert_eq!(frame.into_trailers().ok(), Some(trailers));
    }
}
