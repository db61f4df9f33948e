//! A stream's policy: rate limit, overflow, time to live, priority.

use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::{Code, Request as Call};

use super::conversation::{Conversation, open, predictions};
use super::images;
use super::server::TestServer;

fn with(overflow: Overflow, change: impl FnOnce(&mut v1::StreamPolicy)) -> v1::Open {
    let mut policy = v1::StreamPolicy { overflow: overflow as i32, ..Default::default() };
    change(&mut policy);
    v1::Open { policy: Some(policy), ..open(overflow) }
}

fn duration(time: Duration) -> Option<prost_types::Duration> {
    Some(time.try_into().expect("it is short"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejecting_stream_refuses_what_finds_no_credit_and_says_when_to_try_again() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let mut client = server.explain().await;
    let request = with(Overflow::Reject, |policy| {
        policy.depth = 2;
        policy.unordered = true;
    });
    let (mut stream, opened) = Conversation::open(&mut client, request).await;
    assert_eq!(opened.max_in_flight, 2);
    for sequence in 1..=3 {
        stream.frame(sequence).await;
    }
    let error = stream.frame_error().await;
    assert_eq!((error.sequence, error.code), (3, Code::ResourceExhausted as i32));
    assert!(error.retry_after.is_some() && error.message.contains("Opened.max_in_flight"), "{error:?}");
    gate.go();
    gate.go();
    // The stream is unordered: frames of one batch are answered in any order.
    let mut answered = [stream.explanation().await.sequence, stream.explanation().await.sequence];
    answered.sort_unstable();
    assert_eq!(answered, [1, 2]);
    stream.frame(4).await;
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 4, "there is credit again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_becomes_too_old_while_it_waits_is_dropped_as_expired_in_its_place() {
    let (server, gate) = TestServer::gated(|config| config.limits.max_batch = 1).await;
    let mut client = server.explain().await;
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    stream.frame(1).await;
    gate.began().await;
    let own = v1::Frame { time_to_live: duration(Duration::from_millis(20)), ..images::frame(2) };
    stream.send(Request::Frame(own)).await;
    stream.frame(3).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 1);
    assert_eq!(stream.dropped().await, (2, 2, 1, Reason::Expired));
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 3);
    assert_eq!(gate.began().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_becomes_too_old_on_the_device_gets_no_reverse_run() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let mut client = server.explain().await;
    let time_to_live = duration(Duration::from_millis(500));
    let request = with(Overflow::Block, |policy| policy.time_to_live = time_to_live);
    let (mut stream, opened) = Conversation::open(&mut client, request).await;
    assert_eq!(opened.effective_policy.expect("a policy").time_to_live, time_to_live);
    stream.frame(1).await;
    gate.began().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    gate.go();
    assert_eq!(stream.dropped().await, (1, 1, 1, Reason::Expired));
    let call = v1::ExplainRequest {
        options: Some(predictions()),
        frame: Some(v1::Frame { time_to_live, ..images::frame(1) }),
        ..Default::default()
    };
    let (refused, ()) = tokio::join!(client.explain(Call::new(call)), async {
        gate.began().await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        gate.go();
    });
    assert_eq!(refused.expect_err("it is too old").code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_beyond_the_rate_are_dropped_and_said_to_be() {
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    let request = with(Overflow::Block, |policy| policy.max_rate_hz = Some(0.01));
    let (mut stream, _) = Conversation::open(&mut client, request).await;
    for sequence in 1..=10 {
        stream.frame(sequence).await;
    }
    stream.half_close();
    assert_eq!(stream.explanation().await.sequence, 1);
    let mut dropped = 0;
    while dropped < 9 {
        let (_, _, count, reason) = stream.dropped().await;
        assert_eq!(reason, Reason::RateLimited);
        dropped += count;
    }
    assert_eq!(stream.status().await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_the_higher_class_goes_first() {
    let (server, gate) = TestServer::gated(|config| {
        config.limits.max_batch = 1;
        config.limits.priority_ageing_ms = 600_000;
    })
    .await;
    let mut client = server.explain().await;
    let class = |class| with(Overflow::Block, |policy| (policy.priority, policy.unordered) = (class, true));
    let (mut first, _) = Conversation::open(&mut client, class(0)).await;
    let (mut low, _) = Conversation::open(&mut client, class(0)).await;
    let (mut high, opened) = Conversation::open(&mut client, class(5)).await;
    assert_eq!(opened.effective_policy.expect("a policy").priority, 5);
    first.frame(1).await;
    gate.began().await;
    // One frame is prepared in advance, before the frames of the stream with the higher priority arrive.
    in_line(&mut first, 3).await;
    in_line(&mut low, 1).await;
    in_line(&mut low, 3).await;
    in_line(&mut high, 1).await;
    let mut order = Vec::new();
    for _ in 0..5 {
        gate.go();
        let (name, answer) = tokio::select! {
            answer = first.next() => ("first", answer),
            answer = low.next() => ("low", answer),
            answer = high.next() => ("high", answer),
        };
        match answer {
            Response::Explanation(explanation) => order.push((name, explanation.sequence)),
            other => panic!("an explanation, not {other:?}"),
        }
    }
    let place = |wanted: (&str, u64)| order.iter().position(|place| *place == wanted).expect("it was answered");
    assert!(place(("high", 1)) < place(("low", 1)), "{order:?}");
}

/// Sends a frame and waits until the server has read it: the error of a bad frame sent after it shows that.
async fn in_line(stream: &mut Conversation, sequence: u64) {
    stream.frame(sequence).await;
    stream.send(Request::Frame(v1::Frame { sequence: sequence + 1, ..Default::default() })).await;
    assert_eq!(stream.frame_error().await.sequence, sequence + 1);
}
