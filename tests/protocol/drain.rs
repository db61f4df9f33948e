//! Stopping: the server reports NOT_SERVING, tells each stream, and finishes the frames that it has accepted.

use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use camlens::server::Ended;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::conversation::{Conversation, open};
use super::images;
use super::server::{Gate, SMALL, TestServer};

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_says_so_first_finishes_what_was_accepted_and_ends_with_ok() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(ask("")).await.expect("a watch").into_inner();
    assert_eq!(watch.message().await.expect("a status").expect("one").status(), ServingStatus::Serving);
    let mut client = server.explain().await;
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    stream.frame(3).await;
    gate.began().await;

    server.shutdown.request();
    assert_eq!(watch.message().await.expect("a status").expect("one").status(), ServingStatus::NotServing);
    match stream.next().await {
        Response::GoingAway(going) => {
            assert_eq!(going.last_accepted_sequence, Some(3));
            assert_eq!(going.drain_timeout.map(|timeout| timeout.seconds), Some(20));
        }
        other => panic!("GoingAway comes first, not {other:?}"),
    }
    let refused = client.explain(v1::ExplainRequest { frame: Some(images::frame(0)), ..Default::default() }).await;
    assert_eq!(refused.expect_err("it is stopping").code(), Code::Unavailable);
    let status = health.check(ask(SMALL)).await.expect("health still answers").into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);

    gate.go();
    assert_eq!(stream.explanation().await.sequence, 3);
    assert_eq!(stream.status().await.code(), Code::Ok);
    assert!(watch.message().await.is_ok_and(|message| message.is_none()), "the watch ends with the server");
    assert_eq!(server.ended().await, Ended::Drained);
}

/// A server whose drain has ended while the device still works on a batch.
async fn drained_within_a_batch() -> (TestServer, Gate, Conversation) {
    let (server, gate) = TestServer::gated(|config| config.server.drain_timeout_s = 1).await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(1).await;
    gate.began().await;
    server.shutdown.request();
    assert!(matches!(stream.next().await, Response::GoingAway(_)));
    assert_eq!(stream.dropped().await, (1, 1, 1, Reason::Draining));
    (server, gate, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finished_in_time_is_dropped_and_says_so() {
    let (server, gate, mut stream) = drained_within_a_batch().await;
    assert_eq!(stream.status().await.code(), Code::Ok);
    gate.go();
    assert_eq!(server.ended().await, Ended::Drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_end_does_not_hold_up_the_end() {
    let (server, gate, _stream) = drained_within_a_batch().await;
    assert_eq!(server.ended().await, Ended::Drained);
    // The device, which is gone after its batch, still has it.
    gate.go();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_stops_at_once() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(1).await;
    gate.began().await;
    server.shutdown.request();
    assert!(matches!(stream.next().await, Response::GoingAway(_)));
    server.shutdown.request();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.ended()).await.expect("at once");
    assert_eq!(ended, Ended::Forced);
    gate.go();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_not_opened_is_told_to_go_elsewhere() {
    let server = TestServer::start().await;
    let mut stream = Conversation::silent(&mut server.explain().await).await;
    // The server has received the call once it answers a later one on the same connection.
    server.shutdown.request();
    assert_eq!(stream.status().await.code(), Code::Unavailable);
    assert_eq!(server.ended().await, Ended::Drained);
}
