//! The span of a stream.

use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::stream_policy::Overflow;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::Code;

use super::collector::{Collector, flush, integer, telemetry, text, to};
use super::conversation::{Conversation, open};
use super::images;
use super::server::TestServer;

fn stream_span(collector: &Collector) -> Span {
    let spans = collector.spans();
    let streams: Vec<_> = spans.into_iter().filter(|span| span.name == "camlens.stream").collect();
    let [stream] = &streams[..] else { panic!("one stream, not {}", streams.len()) };
    stream.clone()
}

/// The name, outcome, reason and count of each event.
fn events(stream: &Span) -> Vec<String> {
    let line = |event: &opentelemetry_proto::tonic::trace::v1::span::Event| {
        let words = ["camlens.detail", "camlens.outcome", "camlens.reason"];
        let words = words.into_iter().filter_map(|key| text(&event.attributes, key));
        let count = integer(&event.attributes, "camlens.frames").map(|count| count.to_string());
        [event.name.clone()].into_iter().chain(words).chain(count).collect::<Vec<_>>().join(" ")
    };
    stream.events.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_told_when_it_ends_and_summed_up_by_how_its_frames_ended() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let (mut stream, opened) = Conversation::open(&mut client, open(Overflow::Block)).await;
    for sequence in 1..=3 {
        stream.frame(sequence).await;
        stream.explanation().await;
    }
    stream.send(Request::Frame(images::encoded(4, b"no image".to_vec()))).await;
    stream.frame_error().await;
    let policy = v1::StreamPolicy { overflow: Overflow::Latest as i32, ..Default::default() };
    stream.send(Request::Update(v1::Update { policy: Some(policy), ..Default::default() })).await;
    stream.frame(5).await;
    stream.explanation().await;
    stream.half_close();
    assert_eq!(stream.status().await.code(), Code::Ok);
    drop((client, server));
    flush(&telemetry).await;

    let span = stream_span(&collector);
    assert!(span.parent_span_id.is_empty());
    assert_eq!(text(&span.attributes, "camlens.stream.id").as_deref(), Some(opened.stream_id.as_str()));
    assert_eq!(text(&span.attributes, "camlens.stream.source").as_deref(), Some("a test"));
    assert_eq!(text(&span.attributes, "rpc.response.status_code").as_deref(), Some("OK"));
    assert_eq!(events(&span), ["update latest", "frames answered 4", "frames failed INVALID_ARGUMENT 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_belongs_to_the_trace_of_its_call_and_tells_how_it_failed() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let requests = [Request::Open(open(Overflow::Block)), Request::Open(open(Overflow::Block))];
    let requests = requests.map(|message| v1::ExplainStreamRequest { message: Some(message) });
    let mut call = tonic::Request::new(tokio_stream::iter(requests));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    call.metadata_mut().insert("traceparent", parent.parse().expect("ASCII"));
    let mut responses = client.explain_stream(call).await.expect("the call begins").into_inner();
    let mut ended = Ok(());
    while ended.is_ok() {
        match responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("two Opens are an error"),
            Err(status) => ended = Err(status),
        }
    }
    drop((client, server));
    flush(&telemetry).await;

    let span = stream_span(&collector);
    assert_eq!(span.parent_span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert_eq!(text(&span.attributes, "error.type").as_deref(), Some("INVALID_ARGUMENT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_client_goes_away_was_cancelled_and_so_were_its_frames() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let (server, gate) = TestServer::gated_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let (stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    stream.frame(1).await;
    gate.began().await;
    drop((stream, client));
    // The device is still busy with the frame when the server notices the disconnect.
    collector.wait_until("the end of the stream", |received| !received.traces.is_empty());
    gate.go();
    server.shutdown.request();
    server.ended().await;
    flush(&telemetry).await;

    let span = stream_span(&collector);
    assert_eq!(text(&span.attributes, "rpc.response.status_code").as_deref(), Some("CANCELLED"));
    assert_eq!(events(&span).last().map(String::as_str), Some("frames cancelled 1"));
}
