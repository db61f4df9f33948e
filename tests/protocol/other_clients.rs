//! Clients of other protocols and of other servers, and heads of all sizes.

use std::net::SocketAddr;

use camlens::config::ListenAddress;
use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use http_body_util::{BodyExt, Empty};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codegen::{Bytes, http};
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tower::{Service as _, ServiceExt as _};

use super::conversation::predictions;
use super::images;
use super::server::{PATIENCE, TestServer};

const EXPLAIN: &str = "/camlens.v1.ExplainService/Explain";

async fn server(admin: bool) -> (TestServer, SocketAddr) {
    let server = TestServer::start_with(|config| {
        config.server.listen.push(ListenAddress::Tcp("127.0.0.1:0".to_owned()));
        config.admin.listen = admin.then(|| "127.0.0.1:0".to_owned());
    })
    .await;
    let port = server.addresses.iter().find_map(|address| match address {
        ListenAddress::Tcp(address) => address.parse().ok(),
        ListenAddress::Unix(_) => None,
    });
    (server, port.expect("a port"))
}

/// What a server answers to these bytes until it closes the connection.
async fn said(port: SocketAddr, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(port).await.expect("it listens");
    connection.write_all(bytes).await.expect("it reads");
    let mut answer = String::new();
    let whole = connection.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, whole).await.expect("it closes the connection").expect("text, and no reset");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_is_answered_with_a_sentence_and_closed() {
    let (server, port) = server(true).await;
    let admin = format!("http://{}/", server.admin.expect("an admin port"));
    let post = |content_type: &str| {
        format!("POST {EXPLAIN} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n";
    for (request, status, text) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "426 Upgrade Required", admin.as_str()),
        (upgrade.to_owned(), "426 Upgrade Required", "gRPC over HTTP/2"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404 Not Found", admin.as_str()),
        ("GET /healthz HTTP/1.0\r\n\r\n".to_owned(), "404 Not Found", admin.as_str()),
        (post("application/json"), "415 Unsupported Media Type", "application/json is not spoken here"),
        (post("application/connect+json"), "415 Unsupported Media Type", "application/connect+json is not spoken"),
        (post("application/grpc-web-text"), "415 Unsupported Media Type", "a proxy that translates gRPC-Web"),
        (post("application/grpc-web+proto"), "415 Unsupported Media Type", "a proxy that translates gRPC-Web"),
        (post("application/grpc"), "426 Upgrade Required", "HTTP/1.1 is not spoken here"),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000)), "431", "more than 16384 bytes"),
        ("hello\r\n".to_owned(), "400 Bad Request", "this is no HTTP"),
    ] {
        let answer = said(port, request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
        assert!(head.contains("Connection: close") && head.contains("Content-Type: text/plain"), "{answer}");
        assert!(body.contains(text) && body.ends_with('\n') && body.lines().count() == 1, "{request}: {answer}");
    }
    server.explain().await.explain(request(&[])).await.expect("others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_http_2_that_are_no_calls_are_answered_with_a_sentence() {
    let (server, _) = server(false).await;
    let mut channel = server.channel().await;
    for (method, path, content_type, status, text) in [
        ("POST", EXPLAIN, Some("application/json"), 415, "application/json is not spoken"),
        ("POST", EXPLAIN, Some("application/grpc-web"), 415, "translates gRPC-Web"),
        ("POST", EXPLAIN, Some("application/grpc+json"), 415, "application/grpc+json"),
        ("POST", EXPLAIN, None, 415, "this is no call of gRPC"),
        ("GET", EXPLAIN, Some("application/grpc"), 415, "this is no call of gRPC"),
        ("GET", "/", None, 415, "--admin-listen"),
        ("GET", "/metrics", None, 404, "--admin-listen"),
        ("HEAD", "/metrics", None, 404, ""),
    ] {
        let mut request = http::Request::builder().method(method).uri(path);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(tonic::body::Body::new(Empty::<Bytes>::new())).expect("a request");
        let response = channel.ready().await.expect("connected").call(request).await.expect("an answer");
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        assert!(body.contains(text), "{method} {path}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_there_are_not_are_told_what_there_is() {
    let (server, _) = server(false).await;
    let mut channel = server.channel().await;
    for (path, text) in [
        ("/inference.GRPCInferenceService/ServerLive", "no service inference.GRPCInferenceService here; there is"),
        ("/tensorflow.serving.PredictionService/Predict", "there is camlens.v1.ExplainService, camlens."),
        ("/camlens.v1.ExplainService/Explode", "has no method \"Explode\"; it has Explain, ExplainStream"),
        ("/grpc.health.v1.Health/List", "has no method \"List\"; it has Check, Watch"),
        ("/", "there is no service"),
    ] {
        let request = http::Request::post(path).header("content-type", "application/grpc");
        let request = request.body(tonic::body::Body::empty()).expect("a request");
        let response = channel.ready().await.expect("connected").call(request).await.expect("an answer");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status}");
        assert!(status.message().contains(text), "{path}: {status}");
    }
}

fn request(metadata: &[(&'static str, usize)]) -> Request<v1::ExplainRequest> {
    let request =
        v1::ExplainRequest { frame: Some(images::frame(1)), options: Some(predictions()), ..Default::default() };
    let mut request = Request::new(request);
    for (name, bytes) in metadata {
        let value: MetadataValue<_> = "v".repeat(*bytes).parse().expect("text");
        request.metadata_mut().append(MetadataKey::from_static(name), value);
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_read_up_to_its_limit_and_more_is_refused_by_name() {
    let (server, _) = server(false).await;
    let mut client = server.explain().await;
    for fits in [
        &[("x-large", 60_000)][..],
        &[("tracestate", 60_000)],
        &[("traceparent", 60_000)],
        &[("x-many", 10); 1200],
        &[("traceparent", 55), ("tracestate", 500)],
    ] {
        client.explain(request(fits)).await.unwrap_or_else(|status| panic!("{:?}: {status}", fits[0]));
    }
    for too_much in [&[("x-large", 66_000)][..], &[("tracestate", 200_000)], &[("x-many", 1); 2000]] {
        let status = client.explain(request(too_much)).await.expect_err("too much");
        assert_eq!(status.code(), Code::ResourceExhausted, "{:?}: {status}", too_much[0]);
        assert!(status.message().contains("at most 65536 are read"), "{status}");
    }
    client.explain(request(&[])).await.expect("the connection lives");
}

/// Metadata beyond what HTTP/2 keeps costs the call, not the connection.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_far_beyond_the_limit_is_431() {
    let (server, _) = server(false).await;
    let mut channel: Channel = server.channel().await;
    // A client that has not read the server's settings sends small frames; so many cost the connection.
    ExplainServiceClient::new(channel.clone()).explain(request(&[])).await.expect("it is explained");
    let request = http::Request::post(EXPLAIN)
        .header("content-type", "application/grpc")
        .header("x-large", "x".repeat(300_000))
        .body(tonic::body::Body::empty())
        .expect("a request");
    let response = channel.ready().await.expect("connected").call(request).await.expect("an answer");
    assert_eq!(response.status().as_u16(), 431);
}
