//! Limits on streams, connections, and answers that a client does not read.

use std::time::Duration;

use camlens::config::ListenAddress;
use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::conversation::{Conversation, open};
use super::server::{PATIENCE, TestServer};

/// Repeats `attempt` until it succeeds: a slot becomes free a moment after its client has closed.
async fn soon<T, E: std::fmt::Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(tokio::time::Instant::now() < end, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_more_than_the_limit_is_refused_and_its_place_becomes_free() {
    let server = TestServer::start_with(|config| config.limits.max_streams = 2).await;
    let mut client = server.explain().await;
    let (mut first, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    let (_second, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    let refused = Conversation::attempt(&mut client).await.err().expect("two are open");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.max_streams is 2"), "{refused}");
    first.frame(1).await;
    assert_eq!(first.explanation().await.sequence, 1, "the others go on");
    drop(first);
    soon(async || Conversation::attempt(&mut client).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_no_more_streams_than_its_own_limit() {
    let server = TestServer::start_with(|config| {
        config.limits.max_streams_per_peer = 1;
        config.server.listen.push(ListenAddress::Tcp("127.0.0.1:0".to_owned()));
    })
    .await;
    let mut client = ExplainServiceClient::new(tcp(&server).connect().await.expect("a connection"));
    let (_first, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    let refused = Conversation::attempt(&mut client).await.err().expect("the address has one");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.max_streams_per_peer is 1"), "{refused}");
    let mut local = server.explain().await;
    let (_one, _) = Conversation::open(&mut local, open(Overflow::Block)).await;
    let (_two, _) = Conversation::open(&mut local, open(Overflow::Block)).await;
}

fn tcp(server: &TestServer) -> Endpoint {
    let address = server.addresses.iter().find_map(|address| match address {
        ListenAddress::Tcp(address) => Some(format!("http://{address}")),
        ListenAddress::Unix(_) => None,
    });
    Endpoint::from_shared(address.expect("a TCP address")).expect("a URI")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_more_than_the_limit_is_closed_and_the_others_live() {
    let server = TestServer::start_with(|config| {
        config.server.max_connections = 1;
        config.server.listen.push(ListenAddress::Tcp("127.0.0.1:0".to_owned()));
    })
    .await;
    let ask = || HealthCheckRequest::default();
    let mut first = HealthClient::new(tcp(&server).connect().await.expect("a connection"));
    first.check(ask()).await.expect("it is served");
    // Depending on timing, the refusal is seen while connecting or at the first call.
    let second = match tcp(&server).connect().await {
        Ok(channel) => HealthClient::new(channel).check(ask()).await.map(drop).map_err(|status| status.code()),
        Err(_) => Err(Code::Unavailable),
    };
    assert!(matches!(second, Err(Code::Unavailable | Code::Unknown | Code::Cancelled)), "{second:?}");
    first.check(ask()).await.expect("the first one is still served");
    drop(first);
    soon(async || HealthClient::new(tcp(&server).connect_lazy()).check(ask()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_age_tells_its_streams_finishes_what_was_accepted_and_closes() {
    let (server, gate) = TestServer::gated(|config| config.server.max_connection_age_s = 1).await;
    let channel = server.channel().await;
    let mut watch = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.expect("a watch");
    let mut client = ExplainServiceClient::new(channel);
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    let mut silent = Conversation::silent(&mut client).await;
    stream.frame(7).await;
    gate.began().await;
    match stream.next().await {
        Response::GoingAway(going) => {
            assert_eq!(going.last_accepted_sequence, Some(7));
            assert!(going.reason.contains("max_connection_age_s"), "{}", going.reason);
        }
        other => panic!("GoingAway comes first, not {other:?}"),
    }
    assert_eq!(silent.status().await.code(), Code::Unavailable, "a stream that is not open yet may go elsewhere");
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 7);
    assert_eq!(stream.status().await.code(), Code::Ok);
    let messages = watch.get_mut();
    messages.message().await.expect("a status").expect("one");
    assert!(messages.message().await.is_ok_and(|message| message.is_none()), "the watch ends");
    let (mut again, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    again.frame(1).await;
    gate.go();
    assert_eq!(again.explanation().await.sequence, 1, "a new connection is served as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_given_up_and_its_place_is_free() {
    let server = TestServer::start_with(|config| {
        config.server.write_timeout_s = 1;
        config.limits.max_streams = 1;
        config.limits.max_in_flight = 4;
    })
    .await;
    // A window of a few answers: 33 × 33 × 3 floats are 13 kB.
    let narrow = server.channel_with(|endpoint| endpoint.initial_stream_window_size(65_535)).await;
    let mut client = ExplainServiceClient::new(narrow);
    let request = v1::Open { options: None, ..open(Overflow::Block) };
    let (mut stuck, _) = Conversation::open(&mut client, request).await;
    for sequence in 1..=20 {
        stuck.frame(sequence).await;
    }
    let mut other = server.explain().await;
    assert_eq!(
        Conversation::attempt(&mut other).await.err().expect("the place is taken").code(),
        Code::ResourceExhausted
    );
    let mut next = soon(async || Conversation::attempt(&mut other).await).await;
    next.send(Request::Open(open(Overflow::Block))).await;
    assert!(matches!(next.next().await, Response::Opened(_)));
    next.frame(1).await;
    assert_eq!(next.explanation().await.sequence, 1);

    // A client that reads at last receives the answers that the transport had buffered, then the status with the
    // reason.
    let status = loop {
        match stuck.read().await {
            Ok(Some(Response::Explanation(_))) => {}
            Ok(other) => panic!("an explanation or the status, not {other:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("server.write_timeout_s"), "{status}");
}
