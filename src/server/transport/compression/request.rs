//! The body of a request with compressed messages.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::codegen::{Body as HttpBody, Bytes};

use super::coders::Coders;
use super::encoding::{Encoding, InflateError, Measured};
use super::{HEADER_BYTES, Work, header, parse_header};
use crate::server::transport::receiving::ReceiveBudget;
use crate::server::transport::serve::oversized;

/// A body whose messages come out as if they had never been compressed.
pub(super) struct InflatedBody<B> {
    body: B,
    inflating: Inflating,
    /// Received, and not read yet.
    pending: Bytes,
    position: Position,
    /// The message that is being inflated.
    work: Option<Work<Inflated>>,
    /// A message that is passed on: its header, and the message.
    ready: VecDeque<Bytes>,
    /// The part of the budget that this message has taken.
    held: Option<OwnedSemaphorePermit>,
}

/// What is needed to inflate a message.
#[derive(Clone)]
struct Inflating {
    encoding: Encoding,
    coders: Coders,
    budget: ReceiveBudget,
    max_frame_bytes: u64,
}

struct Inflated {
    message: Bytes,
    held: Option<OwnedSemaphorePermit>,
}

/// Where the next received byte lies.
enum Position {
    /// In a header, of which the first `have` bytes have been read.
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    /// In a message that is not compressed, of which `left` bytes remain.
    Plain { left: usize },
    /// In a compressed message, of which `left` bytes remain.
    Compressed { bytes: BytesMut, left: usize },
}

const BEGINNING: Position = Position::Header { bytes: [0; HEADER_BYTES], have: 0 };

impl<B> InflatedBody<B> {
    pub(super) fn new(
        body: B,
        encoding: Encoding,
        coders: Coders,
        budget: ReceiveBudget,
        max_frame_bytes: u64,
    ) -> Self {
        InflatedBody {
            body,
            inflating: Inflating { encoding, coders, budget, max_frame_bytes },
            pending: Bytes::new(),
            position: BEGINNING,
            work: None,
            ready: VecDeque::new(),
            held: None,
        }
    }

    /// Reads pending bytes: up to the end of a header, a message, or the bytes. Returns what passes as it is.
    fn read(&mut self) -> Result<Option<Bytes>, Status> {
        match &mut self.position {
            Position::Header { bytes, have } => {
                let taken = self.pending.split_to(self.pending.len().min(HEADER_BYTES - *have));
                bytes[*have..*have + taken.len()].copy_from_slice(&taken);
                *have += taken.len();
                if *have < HEADER_BYTES {
                    return Ok(None);
                }
                let bytes = *bytes;
                let (is_compressed, length) = parse_header(bytes);
                if !is_compressed {
                    self.position = if length > 0 { Position::Plain { left: length as usize } } else { BEGINNING };
                    return Ok(Some(Bytes::copy_from_slice(&bytes)));
                }
                if u64::from(length) > self.inflating.budget.max_message_bytes() {
                    return Err(oversized(self.inflating.max_frame_bytes));
                }
                self.position =
                    Position::Compressed { bytes: BytesMut::with_capacity(length as usize), left: length as usize };
            }
            Position::Plain { left } => {
                let taken = self.pending.split_to(self.pending.len().min(*left));
                *left -= taken.len();
                if *left == 0 {
                    self.position = BEGINNING;
                }
                return Ok(Some(taken));
            }
            Position::Compressed { bytes, left } => {
                let taken = self.pending.split_to(self.pending.len().min(*left));
                bytes.extend_from_slice(&taken);
                *left -= taken.len();
            }
        }
        if let Position::Compressed { bytes, left: 0 } = &mut self.position {
            let compressed = std::mem::take(bytes).freeze();
            self.position = BEGINNING;
            self.work = Some(Box::pin(self.inflating.clone().inflate(compressed)));
        }
        Ok(None)
    }

    /// Whether a message has begun and not ended.
    fn is_within(&self) -> bool {
        !matches!(self.position, Position::Header { have: 0, .. })
    }
}

impl<B: HttpBody<Data = Bytes, Error = Status> + Unpin> HttpBody for InflatedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(http_body::Frame::data(bytes))));
            }
            // The decoder asks for more once it has the message.
            this.held = None;
            if let Some(work) = &mut this.work {
                let inflated = ready!(work.as_mut().poll(context));
                this.work = None;
                let Inflated { message, held } = match inflated {
                    Ok(inflated) => inflated,
                    Err(status) => return Poll::Ready(Some(Err(status))),
                };
                // The limit of messages is below 4 GiB.
                let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
                this.ready = [Bytes::copy_from_slice(&header(false, length)), message].into();
                this.held = held;
                continue;
            }
            if !this.pending.is_empty() || matches!(this.position, Position::Compressed { left: 0, .. }) {
                match this.read() {
                    Ok(Some(bytes)) => return Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
                    Ok(None) => continue,
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pending = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                None if this.is_within() => {
                    this.position = BEGINNING;
                    return Poll::Ready(Some(Err(Status::internal("the request ended within a message"))));
                }
                end => return Poll::Ready(end),
            }
        }
    }
}

impl Inflating {
    /// Inflates one message. Its size is known before memory is allocated for it.
    async fn inflate(self, compressed: Bytes) -> Result<Inflated, Status> {
        let Inflating { encoding, coders, budget, max_frame_bytes } = self;
        let limit = usize::try_from(budget.max_message_bytes()).unwrap_or(usize::MAX);
        let refuse = |error| match error {
            InflateError::TooLarge { .. } => oversized(max_frame_bytes),
            InflateError::Window => Status::resource_exhausted(format!("the {} message: {error}", encoding.name())),
            InflateError::Corrupt(_) => {
                Status::internal(format!("the message is no sound {}: {error}", encoding.name()))
            }
        };
        let bytes = compressed.clone();
        let size = match coders.run(move || encoding.measure(&bytes, limit)).await?.map_err(refuse)? {
            Measured::Whole(message) => return Ok(Inflated { message: message.into(), held: None }),
            Measured::Larger(size) => size,
        };
        // Twice: as it is inflated, and as the decoder takes it.
        let held = budget.take_inflated(size as u64 * 2).await;
        let message = coders.run(move || encoding.inflate(&compressed, size)).await?.map_err(refuse)?;
        Ok(Inflated { message: message.into(), held })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, StreamBody};
    use tonic::body::Body;

    use super::*;

    const LIMIT: u64 = 1 << 20;

    fn budget() -> ReceiveBudget {
        ReceiveBudget::new(LIMIT, LIMIT, Duration::from_secs(60))
    }

    /// A message with its header.
    fn message(is_compressed: bool, bytes: &[u8]) -> Vec<u8> {
        [&header(is_compressed, bytes.len() as u32)[..], bytes].concat()
    }

    /// What comes out of a request whose bytes arrive in pieces of `piece` bytes.
    async fn inflated(sent: &[u8], piece: usize, budget: &ReceiveBudget) -> Result<Bytes, Status> {
        let frames: Vec<Result<_, Status>> =
            sent.chunks(piece).map(|part| Ok(http_body::Frame::data(Bytes::copy_from_slice(part)))).collect();
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let body = InflatedBody::new(body, Encoding::Gzip, Coders::new(1), budget.clone(), 1000);
        body.collect().await.map(|all| all.to_bytes())
    }

    #[tokio::test]
    async fn compressed_and_other_messages_come_out_alike_however_they_are_cut() {
        let contents = [vec![], vec![1; 10], vec![2; 90_000], vec![3; 400_000]];
        let plain: Vec<u8> = contents.iter().flat_map(|bytes| message(false, bytes)).collect();
        let compressed = contents.iter().map(|bytes| Encoding::Gzip.compress(bytes).expect("memory"));
        let sent: Vec<u8> = compressed
            .zip(&contents)
            .flat_map(|(compressed, bytes)| [message(true, &compressed), message(false, bytes)].concat())
            .collect();
        let twice: Vec<u8> =
            contents.iter().flat_map(|bytes| [message(false, bytes), message(false, bytes)].concat()).collect();
        let budget = budget();
        for piece in [1, 7, 5000, usize::MAX] {
            if piece > 1 {
                assert_eq!(inflated(&plain, piece.min(plain.len()), &budget).await.expect("it is sound"), plain);
            }
            assert_eq!(inflated(&sent, piece.min(sent.len()), &budget).await.expect("it is sound"), twice);
        }
        assert_eq!(budget.inflated_permits(), LIMIT as usize / 1024, "all of it is free again");
    }

    #[tokio::test]
    async fn bombs_damage_and_half_messages_are_told_apart() {
        let bomb = Encoding::Gzip.compress(&vec![0; LIMIT as usize + 1]).expect("memory");
        let sound = message(true, &Encoding::Gzip.compress(&[5; 100]).expect("memory"));
        let cases = [
            (message(true, &bomb), tonic::Code::ResourceExhausted, "limits.max_frame_bytes"),
            (header(true, LIMIT as u32 + 1).to_vec(), tonic::Code::ResourceExhausted, "limits.max_frame_bytes"),
            (message(true, b"zzzz"), tonic::Code::Internal, "no sound gzip"),
            (message(true, b""), tonic::Code::Internal, "it is empty"),
            (sound[..sound.len() - 3].to_vec(), tonic::Code::Internal, "ended within a message"),
            (sound[..3].to_vec(), tonic::Code::Internal, "ended within a message"),
        ];
        for (sent, code, said) in cases {
            let status = inflated(&sent, sent.len(), &budget()).await.expect_err(said);
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(said), "{status}");
        }
    }

    #[tokio::test]
    async fn a_large_message_waits_for_the_budget_of_inflated_bytes() {
        let budget = budget();
        let all = budget.take_inflated(LIMIT).await;
        let sent = message(true, &Encoding::Gzip.compress(&vec![4; 200_000]).expect("memory"));
        let mut waiting = Box::pin(inflated(&sent, sent.len(), &budget));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
        drop(all);
        assert_eq!(waiting.await.expect("it is sound").len(), 200_005);
    }
}
