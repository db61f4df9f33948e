//! Health, reflection, deadlines, clients that disconnect, other transports.

use std::time::Duration;

use camlens::config::ListenAddress;
use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::stream_policy::Overflow;
use camlens::server::{Server, Shutdown, StartError};
use camlens::telemetry::Telemetry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::{v1 as reflection, v1alpha as old_reflection};

use super::conversation::{Conversation, open};
use super::images;
use super::server::{SMALL, TestServer};

#[tokio::test(flavor = "multi_thread")]
async fn health_knows_the_server_its_services_and_its_models() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in ["", "camlens.v1.ExplainService", "camlens.v1.ModelService", SMALL] {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.expect(service);
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "large".to_owned() }).await;
    let status = unknown.expect_err("no such service");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("there is no \"large\"") && status.message().contains(SMALL), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_an_unknown_name_says_so_and_stays_open_until_the_server_ends() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let watch = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut unknown = health.watch(watch("large")).await.expect("a watch").into_inner();
    let mut known = health.watch(watch(SMALL)).await.expect("a watch").into_inner();
    let first = unknown.message().await.expect("a status").expect("one");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    assert_eq!(known.message().await.expect("a status").expect("one").status(), ServingStatus::Serving);
    let more = tokio::time::timeout(Duration::from_millis(200), unknown.message()).await;
    assert!(more.is_err(), "nothing changes, and nothing ends: {more:?}");
    server.shutdown.request();
    assert_eq!(known.message().await.expect("a status").expect("one").status(), ServingStatus::NotServing);
    assert!(known.message().await.expect("the end").is_none());
    assert!(unknown.message().await.expect("the end").is_none(), "it is as unknown as before");
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_reflection_list_the_services() {
    let server = TestServer::start().await;
    let ask = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(server.channel().await)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("reflection")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("a list") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["camlens.v1.ExplainService", "camlens.v1.ModelService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }

    use old_reflection::server_reflection_client::ServerReflectionClient as OldClient;
    use old_reflection::server_reflection_request::MessageRequest as OldRequest;
    use old_reflection::server_reflection_response::MessageResponse as OldResponse;
    let ask = old_reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(OldRequest::FileContainingSymbol("camlens.v1.Frame".to_owned())),
    };
    let mut answers = OldClient::new(server.channel().await)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("reflection")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    assert!(matches!(answer.message_response, Some(OldResponse::FileDescriptorResponse(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_the_deadline_that_its_client_set() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let mut client = server.explain().await;
    let (requests, outgoing) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.set_timeout(Duration::from_millis(700));
    let say = |message| v1::ExplainStreamRequest { message: Some(message) };
    use v1::explain_stream_request::Message;
    requests.send(say(Message::Open(open(Overflow::Block)))).await.expect("the call takes it");
    requests.send(say(Message::Frame(images::frame(1)))).await.expect("the call takes it");
    let mut responses = client.explain_stream(request).await.expect("the call begins").into_inner();
    responses.message().await.expect("Opened").expect("Opened");
    gate.began().await;
    let dropped = responses.message().await.expect("the frame's ending comes first").expect("a message");
    match dropped.message {
        Some(v1::explain_stream_response::Message::Dropped(run)) => assert_eq!(run.reason(), Reason::StreamEnded),
        other => panic!("a drop, not {other:?}"),
    }
    let status = responses.message().await.expect_err("the deadline has passed");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    gate.go();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_call_past_its_deadline_says_so_and_is_not_worked_on() {
    let (server, gate) = TestServer::gated(|config| config.limits.max_batch = 1).await;
    let request = |timeout| {
        let options = Some(super::conversation::predictions());
        let mut request =
            Request::new(v1::ExplainRequest { options, frame: Some(images::frame(1)), ..Default::default() });
        request.set_timeout(timeout);
        request
    };
    let patient = async || server.explain().await.explain(request(Duration::from_secs(60))).await;
    let (mut client, first) = (server.explain().await, patient());
    let waits = async {
        gate.began().await;
        // It waits behind the frame on the device.
        let late = client.explain(request(Duration::from_millis(500))).await.expect_err("the device is held back");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        gate.go();
    };
    let (answer, ()) = tokio::join!(first, waits);
    answer.expect("its deadline is far away");
    let next = async {
        gate.began().await;
        gate.go();
    };
    let (answer, ()) = tokio::join!(patient(), next);
    answer.expect("the device went on with this one: nothing was left of the late one");

    let runs = async {
        gate.began().await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        gate.go();
    };
    let (late, ()) = tokio::join!(client.explain(request(Duration::from_millis(500))), runs);
    assert_eq!(late.expect_err("the device is slower").code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_frames_along() {
    let (server, gate) = TestServer::gated(|config| config.limits.max_batch = 1).await;
    let (leaving, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    let (mut staying, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    leaving.frame(1).await;
    gate.began().await;
    for sequence in 2..=5 {
        leaving.frame(sequence).await;
    }
    // They wait behind the frame that runs when their stream is cut.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(leaving);
    tokio::time::sleep(Duration::from_millis(300)).await;
    staying.frame(1).await;
    gate.go();
    gate.began().await;
    gate.go();
    assert_eq!(staying.explanation().await.sequence, 1, "the device went on with the other stream at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_a_unix_socket_serve_at_the_same_time() {
    let server =
        TestServer::start_with(|config| config.server.listen.push(ListenAddress::Tcp("127.0.0.1:0".to_owned()))).await;
    let Some(ListenAddress::Tcp(address)) = server.addresses.last() else { panic!("an address") };
    assert!(!address.ends_with(":0"), "the port that was taken: {address}");
    let mut client = ExplainServiceClient::connect(format!("http://{address}")).await.expect("it listens");
    let request = || v1::ExplainRequest { frame: Some(images::frame(1)), ..Default::default() };
    client.explain(request()).await.expect("over TCP");
    server.explain().await.explain(request()).await.expect("over the socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = camlens::config::Config::default();
    config.server.listen = vec![ListenAddress::Unix(folder.path().join("s"))];
    config.models.repository = folder.path().join("nowhere");
    let start = |config: camlens::config::Config| async move {
        Server::start(&config, Telemetry::disabled(), Shutdown::new()).await.err().expect("it cannot start")
    };
    assert!(matches!(start(config.clone()).await, StartError::Repository(_)));
    std::fs::create_dir_all(folder.path().join("nowhere/m/1")).expect("a folder");
    std::fs::write(folder.path().join("nowhere/m/1/model.pt2"), b"no model").expect("a file");
    let error = start(config.clone()).await.to_string();
    assert!(error.starts_with("model m version 1: "), "{error}");
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance/resnet_basic/1");
    std::fs::copy(fixture.join("model.pt2"), folder.path().join("nowhere/m/1/model.pt2"))
        .expect("the fixture is there");
    // The model is sound, but its target layer is no map.
    let description = "[explain]\ntarget_layers = [\"fc\"]\n";
    std::fs::write(folder.path().join("nowhere/m/1/model.toml"), description).expect("a file");
    let error = start(config.clone()).await.to_string();
    assert!(error.starts_with("model m version 1: ") && error.contains("layer fc: it holds no positions"), "{error}");
    assert!(error.contains("layers that are spatial: layer4, "), "{error}");
    config.limits.max_batch = 0;
    assert!(matches!(start(config).await, StartError::Config(_)));
}
