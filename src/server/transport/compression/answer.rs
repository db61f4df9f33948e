//! The body of a response with compressed messages.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tonic::Status;
use tonic::codegen::{Body as HttpBody, Bytes};

use super::coders::Coders;
use super::encoding::Encoding;
use super::{HEADER_BYTES, Work, header, parse_header};

/// Messages of fewer bytes are sent as they are: the packet stays the same.
const SMALL_BYTES: usize = 256;

/// A body whose messages are compressed where that makes them smaller.
pub(super) struct CompressedBody<B> {
    body: B,
    encoding: Encoding,
    coders: Coders,
    /// Messages that have not been compressed yet.
    pending: Bytes,
    /// The message that is being compressed.
    work: Option<Work<Bytes>>,
}

impl<B> CompressedBody<B> {
    pub(super) fn new(body: B, encoding: Encoding, coders: Coders) -> Self {
        CompressedBody { body, encoding, coders, pending: Bytes::new(), work: None }
    }

    /// The first pending message with its header, if it is there whole.
    fn next_message(&mut self) -> Option<Bytes> {
        let (_, length) = parse_header(*self.pending.first_chunk()?);
        let end = HEADER_BYTES + length as usize;
        (end <= self.pending.len()).then(|| self.pending.split_to(end))
    }
}

impl<B: HttpBody<Data = Bytes, Error = Status> + Unpin> HttpBody for CompressedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(work) = &mut this.work {
                let compressed = ready!(work.as_mut().poll(context));
                this.work = None;
                return Poll::Ready(Some(compressed.map(http_body::Frame::data)));
            }
            if let Some(message) = this.next_message() {
                if message.len() < SMALL_BYTES {
                    return Poll::Ready(Some(Ok(http_body::Frame::data(message))));
                }
                let (encoding, coders) = (this.encoding, this.coders.clone());
                this.work = Some(Box::pin(async move { coders.run(move || compressed(message, encoding)).await }));
                continue;
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if this.pending.is_empty() => this.pending = data,
                    Ok(data) => {
                        let mut joined = BytesMut::from(std::mem::take(&mut this.pending));
                        joined.extend_from_slice(&data);
                        this.pending = joined.freeze();
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.work.is_none() && self.pending.is_empty() && self.body.is_end_stream()
    }
}

/// A message with its header, compressed; as it was where that is no larger.
fn compressed(message: Bytes, encoding: Encoding) -> Bytes {
    let Ok(compressed) = encoding.compress(&message[HEADER_BYTES..]) else { return message };
    match u32::try_from(compressed.len()) {
        Ok(length) if compressed.len() + HEADER_BYTES < message.len() => {
            let mut whole = BytesMut::with_capacity(HEADER_BYTES + compressed.len());
            whole.extend_from_slice(&header(true, length));
            whole.extend_from_slice(&compressed);
            whole.freeze()
        }
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tonic::body::Body;
    use tonic::codegen::http;

    use super::*;
    use crate::server::transport::compression::encoding::Measured;

    #[tokio::test]
    async fn each_message_is_compressed_if_that_makes_it_smaller_and_the_trailers_follow() {
        let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        let noise: Vec<u8> = std::iter::successors(Some(1), next).map(|state| (state >> 56) as u8).take(5000).collect();
        let contents = [vec![0; 100], vec![1; 100_000], noise.clone(), vec![2; 3000]];
        let whole: Vec<u8> =
            contents.iter().flat_map(|bytes| [&header(false, bytes.len() as u32)[..], bytes].concat()).collect();
        for piece in [1000, whole.len()] {
            let trailers = http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
            let frames: Vec<Result<_, Status>> = whole
                .chunks(piece)
                .map(|part| Ok(http_body::Frame::data(Bytes::copy_from_slice(part))))
                .chain([Ok(http_body::Frame::trailers(trailers.clone()))])
                .collect();
            let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            let sent = CompressedBody::new(body, Encoding::Zstd, Coders::new(1)).collect().await.expect("no error");
            assert_eq!(sent.trailers(), Some(&trailers));
            let mut sent = sent.to_bytes();
            for (content, is_smaller) in contents.iter().zip([false, true, false, true]) {
                let (is_compressed, length) = parse_header(*sent.first_chunk().expect("a header"));
                assert_eq!(is_compressed, is_smaller);
                let message = sent.split_to(HEADER_BYTES + length as usize).split_off(HEADER_BYTES);
                let read = if is_compressed {
                    match Encoding::Zstd.measure(&message, 200_000).expect("it is sound") {
                        Measured::Whole(whole) => whole,
                        Measured::Larger(size) => Encoding::Zstd.inflate(&message, size).expect("it is sound"),
                    }
                } else {
                    message.to_vec()
                };
                assert_eq!(&read, content);
            }
            assert!(sent.is_empty());
        }
    }
}
