//! Invalid gRPC messages in valid HTTP/2.

use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use http_body_util::{BodyExt, Full};
use prost::Message as _;
use tonic::codegen::{Bytes, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

use super::conversation::open;
use super::ground::{Ground, alone};
use super::images;

const EXPLAIN: &str = "/camlens.v1.ExplainService/Explain";
const STREAM: &str = "/camlens.v1.ExplainService/ExplainStream";

async fn connect(ground: &Ground) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", ground.tcp)).expect("an address");
    endpoint.connect().await.expect("the server listens")
}

/// Calls a method with these bytes as its body; returns the body of the response and the status.
async fn call(channel: &mut Channel, method: &str, encoding: &str, body: Vec<u8>) -> (Bytes, Status) {
    let request = http::Request::post(method)
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
        .expect("a request");
    let response = channel.ready().await.expect("connected").call(request).await.expect("the connection lives");
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("the connection lives");
    let status = [collected.trailers(), Some(&head.headers)].into_iter().flatten().find_map(Status::from_header_map);
    (collected.to_bytes(), status.expect("a status"))
}

/// A message with its gRPC prefix.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    prefixed(0, message.encode_to_vec().len() as u32, &message.encode_to_vec())
}

fn prefixed(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[flag][..], &length.to_be_bytes(), bytes].concat()
}

fn request(message: Request) -> Vec<u8> {
    framed(&v1::ExplainStreamRequest { message: Some(message) })
}

/// The messages in the body of a response.
fn responses(mut body: &[u8]) -> Vec<Response> {
    let mut all = Vec::new();
    while let [0, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let message = v1::ExplainStreamResponse::decode(&rest[..length]).expect("the server speaks protobuf");
        all.extend(message.message);
        body = &rest[length..];
    }
    assert!(body.is_empty(), "whole messages, uncompressed");
    all
}

/// Invalid bodies, and the code that the call must end with.
fn broken() -> Vec<(&'static str, &'static str, Vec<u8>, Code)> {
    let sound = request(Request::Frame(images::frame(2)));
    let half = sound[..sound.len() / 2].to_vec();
    let frame = v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() }.encode_to_vec();
    vec![
        ("a length of 4 GiB", "identity", prefixed(0, u32::MAX, b"some"), Code::ResourceExhausted),
        ("a length of 1 GiB", "identity", prefixed(0, 1 << 30, &[]), Code::ResourceExhausted),
        ("a compressed message without an encoding", "identity", prefixed(1, 4, b"zzzz"), Code::Internal),
        ("a message that is no gzip", "gzip", prefixed(1, 4, b"zzzz"), Code::Internal),
        ("half a message of zstd", "zstd", prefixed(1, 100, &[0x28, 0xb5, 0x2f, 0xfd]), Code::Internal),
        ("a compressed length of 1 GiB", "deflate", prefixed(1, 1 << 30, &[]), Code::ResourceExhausted),
        ("an encoding that there is not", "morse", prefixed(1, 4, b"zzzz"), Code::Unimplemented),
        ("a flag that there is not", "identity", prefixed(7, 4, b"zzzz"), Code::Internal),
        ("half a message", "identity", half, Code::Internal),
        ("half a prefix", "identity", vec![0, 0, 0], Code::Internal),
        ("bytes that are no protobuf", "identity", prefixed(0, 4, &[0xff; 4]), Code::Internal),
        ("a group that never ends", "identity", prefixed(0, 300, &[0x0b; 300]), Code::Internal),
        ("a field cut short", "identity", prefixed(0, 40, &frame[..40]), Code::Internal),
    ]
}

#[test]
fn what_is_no_message_ends_its_call_with_a_status_and_no_other_call_of_the_connection() {
    alone(async || {
        let ground = Ground::new().await;
        let mut channel = connect(&ground).await;
        for method in [EXPLAIN, STREAM] {
            for (name, encoding, body, code) in broken() {
                let (_, status) = call(&mut channel, method, encoding, body).await;
                assert_eq!(status.code(), code, "{name} to {method}: {status}");
                if code == Code::ResourceExhausted {
                    assert!(status.message().contains("limits.max_frame_bytes"), "{name} to {method}: {status}");
                }
            }
            let frame = v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() };
            let (_, status) = call(&mut channel, EXPLAIN, "identity", framed(&frame)).await;
            assert_eq!(status.code(), Code::Ok, "{status}");
        }
        drop(channel);
        ground.is_as_before().await;
    });
}

#[test]
fn frames_before_what_is_no_message_get_their_endings() {
    alone(async || {
        let ground = Ground::new().await;
        let mut channel = connect(&ground).await;
        for (name, encoding, body, code) in broken() {
            if encoding != "identity" {
                continue;
            }
            let before = [Request::Open(open(Overflow::Block)), Request::Frame(images::frame(1))];
            let whole = [before.map(request).concat(), body].concat();
            let (body, status) = call(&mut channel, STREAM, encoding, whole).await;
            assert_eq!(status.code(), code, "{name}: {status}");
            match responses(&body).as_slice() {
                [Response::Opened(_), Response::Explanation(explanation)] => {
                    assert_eq!(explanation.sequence, 1, "{name}")
                }
                [Response::Opened(_), Response::Dropped(run)] => {
                    assert_eq!((run.first_sequence, run.last_sequence, run.count), (1, 1, 1), "{name}");
                }
                other => panic!("{name}: an ending of one frame, not {other:?}"),
            }
        }
        drop(channel);
        ground.is_as_before().await;
    });
}

#[test]
fn a_head_that_is_too_large_costs_its_call_alone() {
    alone(async || {
        let ground = Ground::new().await;
        let mut channel = connect(&ground).await;
        // Beyond the limit of metadata, beyond what HTTP/2 keeps, and beyond what it reads.
        for bytes in [70_000, 300_000, 2 << 20] {
            let request = http::Request::post(EXPLAIN)
                .header("content-type", "application/grpc")
                .header("x-large", "x".repeat(bytes))
                .body(tonic::body::Body::empty())
                .expect("a request");
            match channel.ready().await.expect("connected").call(request).await {
                Ok(response) if bytes < 100_000 => {
                    let status = Status::from_header_map(response.headers()).expect("a status");
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                }
                Ok(response) => assert!(!response.status().is_success(), "{:?}", response.status()),
                // After the largest one the server may close the connection.
                Err(_) if bytes > 1 << 20 => channel = connect(&ground).await,
                Err(error) => panic!("{bytes} bytes: {error}"),
            }
            let frame = v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() };
            let (_, status) = call(&mut channel, EXPLAIN, "identity", framed(&frame)).await;
            assert_eq!(status.code(), Code::Ok, "{status}");
        }
        drop(channel);
        ground.is_as_before().await;
    });
}
