//! The probe port: what the kubelet and Prometheus see.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use camlens::config::Config;
use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::model_service_client::ModelServiceClient;
use camlens::telemetry::{Telemetry, TelemetryConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use super::admin::ask;
use super::collector::PATIENCE;
use super::images;
use super::process::Process;
use super::server::{SMALL, TestServer};

fn with_probes(config: &mut Config) {
    config.probes.listen = Some("127.0.0.1:0".to_owned());
}

/// A server with a probe port and no admin port, and the port.
async fn start() -> (TestServer, SocketAddr) {
    let telemetry = Telemetry::start(&TelemetryConfig::default(), true).expect("no collector is needed");
    let server = TestServer::start_with_telemetry(telemetry, with_probes).await;
    let port = server.probes.expect("a probe port");
    (server, port)
}

async fn dial(port: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{port}")).expect("an address").connect().await.expect("it listens")
}

async fn check(port: SocketAddr, service: &str) -> Result<ServingStatus, Status> {
    let mut health = HealthClient::new(dial(port).await);
    let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await?;
    Ok(answer.into_inner().status())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_over_http_and_grpc_and_metrics_share_one_port() {
    let (_server, port) = start().await;
    assert_eq!(ask(port, "GET", "/livez", "").await, (200, "ok\n".to_owned()));
    assert_eq!(ask(port, "GET", "/readyz", "").await, (200, "ok\n".to_owned()));
    let (status, page) = ask(port, "GET", "/metrics", "").await;
    assert!(status == 200 && page.contains("# TYPE camlens_connection_active gauge\n"), "{page}");
    for service in ["", "camlens.v1.ExplainService", "camlens.v1.ModelService", SMALL] {
        assert_eq!(check(port, service).await.expect("it is known"), ServingStatus::Serving, "{service}");
    }
    let status = check(port, "large").await.expect_err("no such service");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("there is no \"large\"") && status.message().contains(SMALL), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_there() {
    let (server, port) = start().await;
    for (method, path) in
        [("GET", "/"), ("GET", "/config"), ("GET", "/log"), ("PUT", "/log"), ("GET", "/version"), ("GET", "/x")]
    {
        let (status, sentence) = ask(port, method, path, "").await;
        assert_eq!(status, 404, "{method} {path}");
        assert!(sentence.contains("/livez, /readyz, /metrics") && sentence.contains("admin.listen"), "{sentence}");
    }
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        assert!(status.message().contains("grpc.health.v1.Health") && status.message().contains("server.listen"));
    };
    let request = v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() };
    let channel = dial(port).await;
    refused(ExplainServiceClient::new(channel.clone()).explain(request).await.expect_err("no frames"));
    let models = ModelServiceClient::new(channel.clone()).list_models(v1::ListModelsRequest {}).await;
    refused(models.expect_err("no models"));
    let question = tokio_stream::once(reflection::ServerReflectionRequest::default());
    let reflected = ServerReflectionClient::new(channel).server_reflection_info(question).await;
    refused(reflected.map(drop).expect_err("no reflection"));
    server
        .explain()
        .await
        .explain(v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() })
        .await
        .expect("frames are explained where they belong");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_hears_that_the_server_drains_and_ends_with_it() {
    let (server, port) = start().await;
    let mut health = HealthClient::new(dial(port).await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("a status").expect("one").status(), ServingStatus::Serving);
    server.shutdown.request();
    assert_eq!(watch.message().await.expect("a status").expect("one").status(), ServingStatus::NotServing);
    assert!(watch.message().await.expect("the end").is_none());
    server.ended().await;
}

/// A model that cannot be read before the test writes its labels.
struct HeldBack {
    folder: tempfile::TempDir,
}

impl HeldBack {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let version = folder.path().join("small/1");
        std::fs::create_dir_all(&version).expect("a folder");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance/resnet_basic/1/model.pt2");
        std::fs::copy(fixture, version.join("model.pt2")).expect("the fixture is there");
        std::fs::write(version.join("model.toml"), "[output]\nlabels_file = \".labels\"\n").expect("a file");
        // Reading a named pipe waits for its writer.
        let made = Command::new("mkfifo").arg(version.join(".labels")).status();
        assert!(made.is_ok_and(|made| made.success()), "a named pipe");
        HeldBack { folder }
    }

    async fn go(&self) {
        let pipe = self.folder.path().join("small/1/.labels");
        tokio::fs::write(pipe, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n").await.expect("the server reads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_beyond_loopback_while_models_load_although_frames_need_a_token() {
    let models = HeldBack::new();
    let tokens = models.folder.path().join("tokens");
    std::fs::write(&tokens, "a-token-0123456789\n").expect("a file");
    let arguments = ["--probe-listen", "0.0.0.0:0", "--token-file", tokens.to_str().expect("UTF-8")];
    let process = Process::launch(models.folder.path(), &[], &arguments);
    let address = process.logged("probe port")["address"].as_str().expect("an address").to_owned();
    let port: SocketAddr = address.replace("0.0.0.0", "127.0.0.1").parse().expect("an address");
    let mut health = HealthClient::new(dial(port).await);
    let mut watch = health.watch(HealthCheckRequest { service: SMALL.to_owned() }).await.expect("one").into_inner();
    let mut next = async || watch.message().await.expect("a status").expect("one").status();
    assert_eq!(next().await, ServingStatus::NotServing);
    for service in ["", SMALL, "a model of later"] {
        assert_eq!(
            check(port, service).await.expect("which models there will be is not known"),
            ServingStatus::NotServing
        );
    }
    let (status, why) = ask(port, "GET", "/readyz", "").await;
    assert!(status == 503 && why.starts_with("starting"), "{status} {why}");
    assert_eq!(ask(port, "GET", "/livez", "").await.0, 200);
    assert_eq!(ask(port, "GET", "/metrics", "").await.0, 200);
    models.go().await;
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(ask(port, "GET", "/readyz", "").await.0, 200);
    process.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_one_client_are_bounded_and_leave_others_theirs() {
    let (_server, port) = start().await;
    let mut open = Vec::new();
    // 32 of one address: one more is closed.
    for _ in 0..32 {
        open.push(TcpStream::connect(port).await.expect("it listens"));
    }
    let mut one_more = TcpStream::connect(port).await.expect("it listens");
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, one_more.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(closed.is_err() || answer.is_empty(), "{answer:?}");
    let other = tokio::net::TcpSocket::new_v4().expect("a socket");
    other.bind("127.0.0.2:0".parse().expect("an address")).expect("all of 127/8 is loopback");
    let mut other = other.connect(port).await.expect("it listens");
    other.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named() {
    let (_server, port) = start().await;
    let mut config = Config::default();
    config.probes.listen = Some(port.to_string());
    let shutdown = camlens::server::Shutdown::new();
    let started = camlens::server::Server::start(&config, Telemetry::disabled(), shutdown).await;
    let error = started.err().expect("it is taken").to_string();
    assert!(error.contains(&port.to_string()) && error.contains("probes.listen"), "{error}");
}
