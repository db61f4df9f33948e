//! Compressed messages, byte by byte: every encoding, every service, and what is none.

use std::io::{Read, Write};

use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http_body_util::{BodyExt, Full};
use prost::Message as _;
use tonic::codec::CompressionEncoding;
use tonic::codegen::{Bytes, http};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1 as reflection;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tower::{Service as _, ServiceExt as _};

use super::conversation::{Conversation, open, predictions};
use super::images;
use super::server::{SMALL, TestServer};

const EXPLAIN: &str = "/camlens.v1.ExplainService/Explain";
const STREAM: &str = "/camlens.v1.ExplainService/ExplainStream";
const GET_MODEL: &str = "/camlens.v1.ModelService/GetModel";
const ENCODINGS: [&str; 3] = ["gzip", "deflate", "zstd"];

fn compress(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(bytes).expect("memory");
            encoder.finish().expect("memory")
        }
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(bytes).expect("memory");
            encoder.finish().expect("memory")
        }
        _ => zstd::stream::encode_all(bytes, 3).expect("memory"),
    }
}

fn inflate(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match encoding {
        "gzip" => GzDecoder::new(bytes).read_to_end(&mut out).expect("gzip"),
        "deflate" => ZlibDecoder::new(bytes).read_to_end(&mut out).expect("zlib"),
        _ => zstd::stream::read::Decoder::new(bytes).expect("memory").read_to_end(&mut out).expect("zstd"),
    };
    out
}

fn prefixed(flag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[flag][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A message as it is sent in an encoding.
fn sent(encoding: &str, message: &impl prost::Message) -> Vec<u8> {
    prefixed(1, &compress(encoding, &message.encode_to_vec()))
}

/// What came back: the headers, the messages with their flags, and the status.
struct Answer {
    headers: http::HeaderMap,
    messages: Vec<(u8, Vec<u8>)>,
    status: Status,
}

impl Answer {
    /// The messages, inflated where they are compressed in this encoding; whether any was.
    fn read<M: prost::Message + Default>(&self, encoding: &str) -> (Vec<M>, bool) {
        let read = |(flag, bytes): &(u8, Vec<u8>)| match flag {
            0 => M::decode(&bytes[..]).expect("protobuf"),
            _ => M::decode(&inflate(encoding, bytes)[..]).expect("protobuf"),
        };
        (self.messages.iter().map(read).collect(), self.messages.iter().any(|(flag, _)| *flag == 1))
    }
}

/// Calls a method with these headers and bytes.
async fn call(channel: &mut Channel, method: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let request = http::Request::post(method).header("content-type", "application/grpc").header("te", "trailers");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(tonic::body::Body::new(Full::new(Bytes::from(body)))).expect("a request");
    let response = channel.ready().await.expect("connected").call(request).await.expect("the connection lives");
    let (head, body) = response.into_parts();
    let collected = body.collect().await.expect("the connection lives");
    let status = [collected.trailers(), Some(&head.headers)].into_iter().flatten().find_map(Status::from_header_map);
    let (mut messages, bytes) = (Vec::new(), collected.to_bytes());
    let mut rest = &bytes[..];
    while let [flag, a, b, c, d, more @ ..] = rest {
        let (message, more) = more.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        messages.push((*flag, message.to_vec()));
        rest = more;
    }
    assert!(rest.is_empty(), "whole messages");
    Answer { headers: head.headers, messages, status: status.expect("a status") }
}

/// Asks for ten maps that are alike, so that compression makes the answer smaller.
fn options() -> v1::ExplainOptions {
    let (map, element_type) = (v1::Map::GradCam as i32, v1::ElementType::Uint8 as i32);
    v1::ExplainOptions {
        targets: vec![v1::Target { kind: Some(v1::target::Kind::Top(10)) }],
        tensors: vec![v1::TensorOutput { map, element_type, ..Default::default() }],
        ..Default::default()
    }
}

fn explain_request() -> v1::ExplainRequest {
    v1::ExplainRequest { frame: Some(images::frame(1)), options: Some(options()), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_reads_every_encoding_and_answers_in_it() {
    let server = TestServer::start().await;
    let mut channel = server.channel().await;
    let plain = call(&mut channel, EXPLAIN, &[], prefixed(0, &explain_request().encode_to_vec())).await;
    assert_eq!(plain.status.code(), Code::Ok, "{}", plain.status);
    let tensors = |answer: &v1::ExplainResponse| {
        answer.explanation.clone().expect("an explanation").targets.into_iter().map(|t| t.tensors).collect::<Vec<_>>()
    };
    let expected = tensors(&plain.read("").0[0]);
    for encoding in ENCODINGS {
        let headers = [("grpc-encoding", encoding), ("grpc-accept-encoding", "identity,gzip,deflate,zstd")];
        let answer = call(&mut channel, EXPLAIN, &headers, sent(encoding, &explain_request())).await;
        assert_eq!(answer.status.code(), Code::Ok, "{encoding}: {}", answer.status);
        assert_eq!(answer.headers.get("grpc-encoding").expect("compressed"), encoding);
        let (read, was_compressed) = answer.read::<v1::ExplainResponse>(encoding);
        assert!(was_compressed);
        assert_eq!(tensors(&read[0]), expected);

        let selector = v1::ModelSelector { name: SMALL.to_owned(), version: None };
        let model = v1::GetModelRequest { model: Some(selector) };
        let answer = call(&mut channel, GET_MODEL, &headers, sent(encoding, &model)).await;
        let (read, was_compressed) = answer.read::<v1::GetModelResponse>(encoding);
        assert!(was_compressed && read[0].metadata.is_some(), "{encoding}: {}", answer.status);

        let health = HealthCheckRequest { service: SMALL.to_owned() };
        let answer = call(&mut channel, "/grpc.health.v1.Health/Check", &headers, sent(encoding, &health)).await;
        assert_eq!(answer.read::<HealthCheckResponse>(encoding).0[0].status, 1, "{encoding}: {}", answer.status);

        let symbol = MessageRequest::FileContainingSymbol("camlens.v1.Frame".to_owned());
        let ask = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
        let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let answer = call(&mut channel, path, &headers, sent(encoding, &ask)).await;
        let (read, was_compressed) = answer.read::<reflection::ServerReflectionResponse>(encoding);
        assert!(was_compressed && read[0].message_response.is_some(), "{encoding}: {}", answer.status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_mixes_compressed_and_other_messages() {
    let server = TestServer::start().await;
    let mut channel = server.channel().await;
    let message = |message: Request| v1::ExplainStreamRequest { message: Some(message) };
    let opening = v1::Open { options: Some(options()), ..open(Overflow::Block) };
    for encoding in ENCODINGS {
        let body = [
            sent(encoding, &message(Request::Open(opening.clone()))),
            prefixed(0, &message(Request::Frame(images::frame(1))).encode_to_vec()),
            sent(encoding, &message(Request::Frame(images::frame(2)))),
        ];
        let headers = [("grpc-encoding", encoding), ("grpc-accept-encoding", encoding)];
        let answer = call(&mut channel, STREAM, &headers, body.concat()).await;
        assert_eq!(answer.status.code(), Code::Ok, "{encoding}: {}", answer.status);
        assert_eq!(answer.headers.get("grpc-encoding").expect("compressed"), encoding);
        let (read, was_compressed) = answer.read::<v1::ExplainStreamResponse>(encoding);
        assert!(was_compressed);
        let sequences: Vec<u64> = read
            .into_iter()
            .filter_map(|response| match response.message {
                Some(Response::Explanation(explanation)) => Some(explanation.sequence),
                _ => None,
            })
            .collect();
        assert_eq!(sequences, [1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_compresses_converses_as_any_other() {
    let server = TestServer::start().await;
    let mut client =
        server.explain().await.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    for sequence in 1..=20 {
        stream.frame(sequence).await;
        assert_eq!(stream.explanation().await.sequence, sequence);
    }
    stream.half_close();
    assert_eq!(stream.status().await.code(), Code::Ok);
    // 6.75 MB of pixels, which take far more than one inflated piece.
    let side = 1500;
    let data = vec![100; (side * side * 3) as usize].into();
    let raw = v1::RawImage { data, width: side, height: side, pixel_format: 1, ..Default::default() };
    let frame = images::with(0, v1::frame::Payload::Raw(raw));
    let request = v1::ExplainRequest { frame: Some(frame), options: Some(predictions()), ..Default::default() };
    client.explain(request).await.expect("it is explained");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_for_those_who_ask_alone() {
    let server = TestServer::start().await;
    let mut channel = server.channel().await;
    let request = prefixed(0, &explain_request().encode_to_vec());
    for headers in [
        &[("grpc-accept-encoding", "identity, deflate, gzip")][..],
        &[("grpc-encoding", "identity"), ("grpc-accept-encoding", "gzip")],
        &[("grpc-encoding", "gzip")],
        &[("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity")],
    ] {
        let answer = call(&mut channel, EXPLAIN, headers, request.clone()).await;
        assert_eq!(answer.status.code(), Code::Ok, "{headers:?}: {}", answer.status);
        assert!(answer.headers.get("grpc-encoding").is_none(), "{headers:?}");
        assert_eq!(answer.messages[0].0, 0, "{headers:?}");
    }
    // Naming an encoding asks for it, whether or not the messages of the request are compressed.
    let headers = [("grpc-encoding", "zstd"), ("grpc-accept-encoding", "zstd")];
    let answer = call(&mut channel, EXPLAIN, &headers, request).await;
    assert_eq!(answer.messages[0].0, 1);
    // A call that fails has nothing to compress.
    let answer = call(&mut channel, EXPLAIN, &headers, prefixed(0, &[])).await;
    assert_eq!(answer.status.code(), Code::InvalidArgument, "{}", answer.status);
    assert!(answer.headers.get("grpc-encoding").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_damage_and_other_encodings_are_refused_by_name() {
    let server = TestServer::start_with(|config| config.limits.max_frame_bytes = 1 << 20).await;
    let mut channel = server.channel().await;
    for method in [EXPLAIN, STREAM] {
        for encoding in ENCODINGS {
            let headers = [("grpc-encoding", encoding)];
            let bomb = prefixed(1, &compress(encoding, &vec![0; 64 << 20]));
            let answer = call(&mut channel, method, &headers, bomb).await;
            assert_eq!(answer.status.code(), Code::ResourceExhausted, "{encoding}: {}", answer.status);
            assert!(answer.status.message().contains("1048576 bytes (limits.max_frame_bytes)"), "{}", answer.status);
            let mut damaged = compress(encoding, &explain_request().encode_to_vec());
            damaged.truncate(damaged.len() - 10);
            for wrong in [&damaged[..], b"zzzz", b""] {
                let answer = call(&mut channel, method, &headers, prefixed(1, wrong)).await;
                assert_eq!(answer.status.code(), Code::Internal, "{encoding}: {}", answer.status);
                let said = format!("the message is no sound {encoding}: ");
                assert!(answer.status.message().starts_with(&said), "{}", answer.status);
            }
        }
        let answer = call(&mut channel, method, &[("grpc-encoding", "snappy")], prefixed(1, b"zzzz")).await;
        assert_eq!(answer.status.code(), Code::Unimplemented, "{}", answer.status);
        assert!(answer.status.message().contains("`snappy` is not spoken here"), "{}", answer.status);
        assert_eq!(answer.headers.get("grpc-accept-encoding").expect("a list"), "gzip,deflate,zstd,identity");
    }
}
