//! The admin port.

use std::net::SocketAddr;

use camlens::config::Config;
use camlens::resources::Machine;
use camlens::telemetry::{Telemetry, TelemetryConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::collector::PATIENCE;
use super::server::TestServer;

/// Status and body.
pub async fn get(server: &TestServer, path: &str) -> (u16, String) {
    ask(server.admin.expect("an admin port"), "GET", path, "").await
}

pub async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await.expect("it reads");
    let mut response = String::new();
    connection.read_to_string(&mut response).await.expect("it answers");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn with_admin(config: &mut Config) {
    config.admin.listen = Some("127.0.0.1:0".to_owned());
}

async fn start() -> TestServer {
    let telemetry = Telemetry::start(&TelemetryConfig::default(), true).expect("no collector is needed");
    TestServer::start_with_telemetry(telemetry, with_admin).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_serves_is_live_and_ready_and_one_that_drains_is_not_ready() {
    let telemetry = Telemetry::start(&TelemetryConfig::default(), true).expect("no collector is needed");
    let (server, gate) = TestServer::gated_with_telemetry(telemetry, with_admin).await;
    assert_eq!(get(&server, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&server, "/readyz").await, (200, "ok\n".to_owned()));
    // A frame on the device delays the end of the drain.
    use super::conversation::{Conversation, open};
    use camlens::proto::v1::stream_policy::Overflow;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(1).await;
    gate.began().await;
    server.shutdown.request();
    while !matches!(stream.next().await, camlens::proto::v1::explain_stream_response::Message::GoingAway(_)) {}
    // The stream may receive the warning first.
    let not_ready = async {
        loop {
            let (status, why) = get(&server, "/readyz").await;
            if status == 503 {
                break why;
            }
        }
    };
    let why = tokio::time::timeout(PATIENCE, not_ready).await.expect("it is not ready any more");
    assert!(why.starts_with("draining"), "{why}");
    assert_eq!(get(&server, "/livez").await.0, 200);
    gate.go();
    drop(stream);
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effective_configuration_can_be_read_back() {
    let server = start().await;
    let (status, text) = get(&server, "/config").await;
    assert_eq!(status, 200);
    let config = Config::parse(&text, "the page".as_ref()).expect("it is a configuration");
    assert_eq!(config.device.frame_threads, 2);
    let memory = Machine::this().resources().memory();
    assert_eq!(config.limits, Config::default().limits.within(memory), "budgets are the real ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_is_told_as_json() {
    let server = start().await;
    let (status, text) = get(&server, "/version").await;
    let version: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, version["version"].as_str()), (200, Some(env!("CARGO_PKG_VERSION"))));
    for fact in ["commit", "rustc", "target", "profile", "libtorch", "cuda_bridge", "protocol", "os", "arch"] {
        assert!(version[fact].as_str().is_some_and(|value| !value.is_empty()), "{fact}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_what_is_too_long_is_refused() {
    let server = start().await;
    assert_eq!(get(&server, "/secrets").await.0, 404);
    let admin = server.admin.expect("an admin port");
    assert_eq!(ask(admin, "PUT", "/log", &"x".repeat(10_000)).await.0, 413);
    assert_eq!(ask(admin, "DELETE", "/log", "").await.0, 405);
    let (status, message) = ask(admin, "PUT", "/log", "camlens=loud").await;
    assert!(status == 400 && message.contains("camlens=loud"), "{status} {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named() {
    let server = start().await;
    let taken = server.admin.expect("an admin port").to_string();
    let mut config = Config::default();
    config.admin.listen = Some(taken.clone());
    let shutdown = camlens::server::Shutdown::new();
    let started = camlens::server::Server::start(&config, Telemetry::disabled(), shutdown).await;
    let error = started.err().expect("it is taken").to_string();
    assert!(error.contains(&taken) && error.contains("admin.listen"), "{error}");
}
