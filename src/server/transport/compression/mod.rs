//! Compression of calls: gzip, deflate and zstd, in both directions.
//!
//! A client names the encoding of its messages in `grpc-encoding`, and marks each message that it has compressed. Such
//! a message is received whole, within the budget of received bytes, and its inflated size is found without keeping
//! it. Only then is the inflated size taken from a budget too, and the message inflated. One that would exceed the
//! limit of messages is refused before memory is allocated for it.
//!
//! Answers are compressed for those who ask: a call that names an encoding gets its answers in it. Announcing in
//! `grpc-accept-encoding` what could be read is not asking, since most clients always do, and maps and pictures shrink
//! little.
//!
//! All of it runs on threads of its own, a few at a time ([`coders`]): a message that takes long to inflate holds up
//! compressed messages alone.

mod answer;
mod coders;
mod encoding;
mod request;

use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};

pub(in crate::server) use self::coders::Coders;

use self::answer::CompressedBody;
use self::encoding::{Encoding, Headers};
use self::request::InflatedBody;
use super::receiving::ReceiveBudget;

/// Inflates the messages of requests, and compresses those of the answers to clients that ask for it. The services see
/// no compression.
#[derive(Debug, Clone)]
pub(in crate::server) struct WithCompression<S> {
    pub(in crate::server) coders: Coders,
    pub(in crate::server) budget: ReceiveBudget,
    /// Named in the error about a message that is too large.
    pub(in crate::server) max_frame_bytes: u64,
    pub(in crate::server) services: S,
}

impl<S> Service<http::Request<Body>> for WithCompression<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let Headers { request: encoding, answer } = match Headers::take(request.headers_mut()) {
            Ok(headers) => headers,
            Err(status) => return Box::pin(ready(Ok(status.into_http()))),
        };
        if let Some(encoding) = encoding {
            let (coders, budget) = (self.coders.clone(), self.budget.clone());
            let max_frame_bytes = self.max_frame_bytes;
            request = request.map(|body| Body::new(InflatedBody::new(body, encoding, coders, budget, max_frame_bytes)));
        }
        let response = self.services.call(request);
        let Some(encoding) = answer else { return Box::pin(response) };
        let coders = self.coders.clone();
        Box::pin(async move { response.await.map(|response| compressed(response, encoding, coders)) })
    }
}

/// The response with compressed messages. One that only has a status stays as it is.
fn compressed(mut response: http::Response<Body>, encoding: Encoding, coders: Coders) -> http::Response<Body> {
    if response.headers().contains_key("grpc-status") {
        return response;
    }
    response.headers_mut().insert("grpc-encoding", http::HeaderValue::from_static(encoding.name()));
    response.map(|body| Body::new(CompressedBody::new(body, encoding, coders)))
}

/// The work on one message.
type Work<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// gRPC's prefix of a message: a byte for compression, and the length as a big-endian u32.
const HEADER_BYTES: usize = 5;

/// The prefix of a message of `length` bytes.
fn header(is_compressed: bool, length: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = length.to_be_bytes();
    [u8::from(is_compressed), a, b, c, d]
}

/// Whether the message is compressed, and its length.
fn parse_header([flag, a, b, c, d]: [u8; HEADER_BYTES]) -> (bool, u32) {
    (flag == 1, u32::from_be_bytes([a, b, c, d]))
}
