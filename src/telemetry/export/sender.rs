//! Sends encoded traces as OTLP over gRPC or over HTTP.
//!
//! What a collector's answer means, and after which one a message may be sent again:
//! <https://opentelemetry.io/docs/specs/otlp/>.

use std::io::Write as _;

use bytes::{BufMut as _, Bytes};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use prost::Message as _;
use thiserror::Error;
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, CompressionEncoding, EncodeBuf, Encoder};
use tonic::codegen::http::uri::{InvalidUri, PathAndQuery};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::settings::Destination;

/// The user agent that collectors log.
pub(super) const CLIENT_NAME: &str = concat!("camlens/", env!("CARGO_PKG_VERSION"));
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The most bytes that are read of an answer.
const ANSWER_BYTES: usize = 64 * 1024;

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A connection to a collector.
#[derive(Debug)]
pub(super) enum Sender {
    Grpc(Box<OverGrpc>),
    Http(Box<OverHttp>),
}

#[derive(Debug)]
pub(super) struct OverGrpc {
    client: Grpc<Channel>,
    headers: MetadataMap,
}

#[derive(Debug)]
pub(super) struct OverHttp {
    client: HttpClient,
    uri: Uri,
    headers: HeaderMap,
    gzip: bool,
}

/// The part of a message that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) spans: u64,
    pub(super) reason: String,
}

/// The message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{cause}")]
pub(super) struct SendError {
    cause: String,
    /// The same message may be taken later.
    pub(super) is_temporary: bool,
}

impl SendError {
    pub(super) fn temporary(cause: impl Into<String>) -> Self {
        SendError { cause: cause.into(), is_temporary: true }
    }
}

impl Sender {
    pub(super) fn grpc(channel: Channel, to: &Destination) -> Self {
        // Collectors answer in the compression of the request.
        let mut client = Grpc::new(channel).accept_compressed(CompressionEncoding::Gzip);
        if to.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        Sender::Grpc(Box::new(OverGrpc { client, headers: MetadataMap::from_headers(to.headers.clone()) }))
    }

    /// # Errors
    /// When the endpoint is no URI.
    pub(super) fn http(client: HttpClient, to: &Destination) -> Result<Self, InvalidUri> {
        let mut headers = to.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(USER_AGENT, HeaderValue::from_static(CLIENT_NAME));
        if to.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Sender::Http(Box::new(OverHttp { client, uri: to.endpoint.parse()?, headers, gzip: to.gzip })))
    }

    /// Sends an `ExportTraceServiceRequest`. Sets no limit to the time.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<Option<Refused>, SendError> {
        let answer = match self {
            Sender::Grpc(way) => over_grpc(way, message).await?,
            Sender::Http(way) => over_http(way, message).await?,
        };
        Ok(refused(answer))
    }
}

fn refused(answer: ExportTraceServiceResponse) -> Option<Refused> {
    let ExportTracePartialSuccess { rejected_spans, error_message } = answer.partial_success?;
    let spans = u64::try_from(rejected_spans).ok().filter(|&spans| spans > 0)?;
    Some(Refused { spans, reason: error_message })
}

async fn over_grpc(way: &mut OverGrpc, message: Bytes) -> Result<ExportTraceServiceResponse, SendError> {
    let OverGrpc { client, headers } = way;
    client.ready().await.map_err(|error| SendError::temporary(in_full(&error)))?;
    let mut request = tonic::Request::new(message);
    *request.metadata_mut() = headers.clone();
    match client.unary(request, PathAndQuery::from_static(METHOD), Written).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(SendError { cause: in_full(&status), is_temporary: is_temporary(status.code()) }),
    }
}

fn is_temporary(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

async fn over_http(way: &OverHttp, message: Bytes) -> Result<ExportTraceServiceResponse, SendError> {
    let OverHttp { client, uri, headers, gzip } = way;
    let body = if *gzip { compressed(&message)? } else { message };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    let answer = client.request(request).await.map_err(|error| SendError::temporary(in_full(&error)))?;
    let status = answer.status();
    // To its end, so that the connection can be used again.
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
    if !status.is_success() {
        let is_temporary = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        return Err(SendError { cause: format!("{uri} answers {status}"), is_temporary });
    }
    // A collector that answers anything else has taken the message all the same.
    Ok(body.ok().and_then(|body| ExportTraceServiceResponse::decode(body.to_bytes()).ok()).unwrap_or_default())
}

fn compressed(message: &[u8]) -> Result<Bytes, SendError> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
    let written = encoder.write_all(message).and_then(|()| encoder.finish());
    written.map(Bytes::from).map_err(|error| SendError { cause: error.to_string(), is_temporary: false })
}

/// A codec of requests that are encoded already.
#[derive(Debug, Clone, Copy)]
struct Written;

impl Codec for Written {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = ProstDecoder<ExportTraceServiceResponse>;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<(), ExportTraceServiceResponse>::raw_decoder(BufferSettings::default())
    }
}

impl Encoder for Written {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

/// The error and its causes: transports say little by themselves.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_refuses_of_a_message_is_told() {
        let answer = |rejected_spans| ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess { rejected_spans, error_message: "too old".to_owned() }),
        };
        assert_eq!(refused(answer(3)), Some(Refused { spans: 3, reason: "too old".to_owned() }));
        assert_eq!(refused(answer(0)), None, "only a warning");
        assert_eq!(refused(answer(-1)), None);
        assert_eq!(refused(ExportTraceServiceResponse::default()), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (code, expected) in [(Code::Unavailable, true), (Code::InvalidArgument, false), (Code::Internal, false)] {
            assert_eq!(is_temporary(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_compressed_message_is_the_message() {
        use std::io::Read as _;
        let message = b"camlens".repeat(1_000);
        let compressed = compressed(&message).expect("it fits in memory");
        assert!(compressed.len() < message.len() / 10);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut read).expect("gzip");
        assert_eq!(read, message);
    }
}
