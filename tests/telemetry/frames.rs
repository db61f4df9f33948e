//! The trace of a frame, for each way in which a frame ends, as a collector receives it.

use std::collections::HashSet;
use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::stream_policy::Overflow;
use camlens::telemetry::TelemetryConfig;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::collector::{Collector, flush, integer, telemetry, text, to};
use super::conversation::{Conversation, open, predictions};
use super::images;
use super::server::{SIDE, TestServer};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STAGES: [&str; 13] = [
    "receive",
    "queue",
    "decode",
    "preprocess",
    "batch",
    "copy_in",
    "forward",
    "backward",
    "fuse",
    "copy_out",
    "render",
    "deliver",
    "send",
];

/// A frame's span and the spans of its stages, in the order of their start.
struct Tree {
    frame: Span,
    stages: Vec<Span>,
}

impl Tree {
    fn of(spans: &[Span], sequence: i64) -> Self {
        let is_it = |span: &&Span| {
            span.name == "camlens.frame" && integer(&span.attributes, "camlens.frame.sequence") == Some(sequence)
        };
        let frames: Vec<&Span> = spans.iter().filter(is_it).collect();
        let [frame] = frames[..] else { panic!("frame {sequence} has one span, not {}", frames.len()) };
        let mut stages: Vec<Span> = spans.iter().filter(|span| span.parent_span_id == frame.span_id).cloned().collect();
        stages.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        Tree { frame: frame.clone(), stages }
    }

    fn names(&self) -> Vec<&str> {
        self.stages.iter().map(|stage| stage.name.as_str()).collect()
    }

    fn text(&self, key: &str) -> Option<String> {
        text(&self.frame.attributes, key)
    }

    /// Checks what holds for every frame: its stages follow each other without a gap and fill its time.
    fn check(&self) {
        let frame = &self.frame;
        assert_eq!(frame.kind, SpanKind::Server as i32);
        let mut ids = HashSet::from([&frame.span_id]);
        let mut end = frame.start_time_unix_nano;
        for stage in &self.stages {
            assert_eq!(stage.trace_id, frame.trace_id, "{}", stage.name);
            assert_eq!(stage.trace_state, frame.trace_state, "{}", stage.name);
            assert_eq!(stage.kind, SpanKind::Internal as i32, "{}", stage.name);
            assert_eq!(stage.start_time_unix_nano, end, "{} begins where the one before ended", stage.name);
            assert!(ids.insert(&stage.span_id), "{} has an id of its own", stage.name);
            end = stage.end_time_unix_nano;
        }
        assert_eq!(frame.end_time_unix_nano, end, "the stages add up to the frame");
        assert_eq!(self.text("rpc.system.name").as_deref(), Some("grpc"));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Each stage of a response, in nanoseconds.
fn told(timings: &[v1::StageTiming]) -> Vec<(u64, u64)> {
    timings.iter().map(|timing| (timing.start_ns, timing.duration_ns)).collect()
}

/// Each span of a stage, in nanoseconds from the frame's start.
fn measured(tree: &Tree) -> Vec<(u64, u64)> {
    let start = tree.frame.start_time_unix_nano;
    let of = |span: &Span| (span.start_time_unix_nano - start, span.end_time_unix_nano - span.start_time_unix_nano);
    tree.stages.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_answered_is_one_tree_with_every_stage_and_the_responses_own_times() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let policy = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
    let request = v1::Open { policy: Some(policy), source: "gate 7".to_owned(), ..Default::default() };
    let (mut stream, opened) = Conversation::open(&mut server.explain().await, request).await;
    let with_parent = v1::Frame { traceparent: PARENT.to_owned(), tracestate: "rojo=1".to_owned(), ..images::frame(7) };
    let payload = match with_parent.payload.as_ref().expect("an image") {
        v1::frame::Payload::Raw(image) => image.data.len(),
        other => panic!("raw pixels, not {other:?}"),
    };
    stream.send(Request::Frame(with_parent)).await;
    stream.frame(8).await;
    let (joined, own) = (stream.explanation().await, stream.explanation().await);
    stream.half_close();
    assert_eq!(stream.status().await.code(), tonic::Code::Ok);
    drop(server);
    flush(&telemetry).await;

    let spans = collector.spans();
    let tree = Tree::of(&spans, 7);
    tree.check();
    assert_eq!(tree.names(), STAGES);
    assert_eq!(
        (hex(&tree.frame.trace_id), hex(&tree.frame.parent_span_id)),
        (PARENT[3..35].into(), PARENT[36..52].into())
    );
    assert_eq!((tree.frame.trace_state.as_str(), joined.trace_id.as_str()), ("rojo=1", &PARENT[3..35]));
    assert_eq!(told(&joined.timings), measured(&tree)[..12], "all but the sending, which a message cannot contain");
    for (key, value) in [
        ("camlens.outcome", "answered"),
        ("rpc.method", "camlens.v1.ExplainService/ExplainStream"),
        ("rpc.response.status_code", "OK"),
        ("camlens.model.name", "small"),
        ("camlens.stream.id", &opened.stream_id),
        ("camlens.stream.source", "gate 7"),
        ("camlens.stream.policy", "block"),
    ] {
        assert_eq!(tree.text(key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(integer(&tree.frame.attributes, "camlens.frame.payload.size"), Some(payload as i64));
    assert_eq!(integer(&tree.frame.attributes, "camlens.batch.size"), Some(joined.batch_size.into()));
    let target = &joined.targets[0];
    let list = |key: &str| format!("{:?}", super::collector::attribute(&tree.frame.attributes, key).expect("a list"));
    assert!(list("camlens.target.classes").contains(&format!("IntValue({})", target.class_index)));
    assert!(list("camlens.target.layers").contains(&target.target_layer));

    // A trace of its own, linked to the stream and not below it.
    let alone = Tree::of(&spans, 8);
    alone.check();
    assert_eq!((alone.names(), alone.frame.parent_span_id.len()), (STAGES.to_vec(), 0));
    assert_eq!((hex(&alone.frame.trace_id), alone.frame.trace_state.as_str()), (own.trace_id, ""));
    let stream_span = spans.iter().find(|span| span.name == "camlens.stream").expect("the stream has ended");
    let linked = |frame: &Span| frame.links.iter().any(|link| link.span_id == stream_span.span_id);
    assert!(linked(&alone.frame) && !linked(&tree.frame));
    assert_ne!(alone.frame.trace_id, stream_span.trace_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_a_trace_of_its_own_that_knows_its_frames_and_they_know_it() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let (server, gate) =
        TestServer::gated_with_telemetry(telemetry.clone(), |config| config.limits.max_batch = 2).await;
    let mut client = server.explain().await;
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    for sequence in 1..=3 {
        stream.frame(sequence).await;
    }
    for _ in 0..3 {
        gate.go();
    }
    for sequence in 1..=3 {
        assert_eq!(stream.explanation().await.sequence, sequence);
    }
    stream.half_close();
    stream.status().await;
    drop(server);
    flush(&telemetry).await;

    let spans = collector.spans();
    let batches: Vec<&Span> = spans.iter().filter(|span| span.name == "camlens.batch").collect();
    let mut linked = 0;
    for batch in &batches {
        assert!(batch.parent_span_id.is_empty());
        let frames = batch.links.len();
        assert_eq!(integer(&batch.attributes, "camlens.batch.size"), Some(frames as i64), "all of them are kept");
        assert_eq!(text(&batch.attributes, "camlens.batch.outcome").as_deref(), Some("done"));
        for link in &batch.links {
            let frame = spans.iter().find(|span| span.span_id == link.span_id).expect("the frame is there as well");
            assert_eq!((frame.name.as_str(), &frame.trace_id), ("camlens.frame", &link.trace_id));
            assert!(frame.links.iter().any(|back| back.span_id == batch.span_id), "and it knows its batch");
            let forward = spans.iter().find(|span| span.parent_span_id == frame.span_id && span.name == "forward");
            let forward = forward.expect("it was on the device");
            // Each frame reads the wall clock separately.
            let slack = 20_000_000;
            assert!(batch.start_time_unix_nano <= forward.start_time_unix_nano + slack);
            assert!(batch.end_time_unix_nano + slack >= forward.end_time_unix_nano);
            linked += 1;
        }
    }
    assert_eq!(linked, 3, "each frame was in one batch");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_dropped_expired_or_cancelled_are_visible_with_reason_and_code() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let (server, gate) =
        TestServer::gated_with_telemetry(telemetry.clone(), |config| config.limits.max_batch = 1).await;
    let mut client = server.explain().await;
    let policy = v1::StreamPolicy { overflow: Overflow::Latest as i32, unordered: true, ..Default::default() };
    let request = v1::Open { policy: Some(policy), ..open(Overflow::Latest) };
    let (mut stream, _) = Conversation::open(&mut client, request).await;
    stream.frame(1).await;
    gate.began().await;
    stream.frame(2).await;
    // It replaces the waiting frame, and expires itself afterwards.
    let time_to_live = Some(Duration::from_millis(30).try_into().expect("it is short"));
    stream.send(Request::Frame(v1::Frame { time_to_live, ..images::frame(3) })).await;
    assert_eq!(stream.dropped().await, (2, 2, 1, Reason::Replaced));
    assert_eq!(stream.dropped().await, (3, 3, 1, Reason::Expired));
    // Cancelled while it is on the device.
    stream.send(Request::Cancel(v1::Cancel { sequence: 1 })).await;
    assert_eq!(stream.dropped().await, (1, 1, 1, Reason::Cancelled));
    gate.go();
    stream.half_close();
    stream.status().await;
    drop(server);
    flush(&telemetry).await;

    let spans = collector.spans();
    for (sequence, outcome, reason, code, last_stage) in [
        (1, "cancelled", None, "CANCELLED", "copy_in"),
        (2, "dropped", Some("replaced"), "ABORTED", "batch"),
        (3, "dropped", Some("expired"), "DEADLINE_EXCEEDED", "batch"),
    ] {
        let tree = Tree::of(&spans, sequence);
        tree.check();
        assert_eq!(tree.text("camlens.outcome").as_deref(), Some(outcome));
        assert_eq!(tree.text("camlens.drop.reason").as_deref(), reason);
        assert_eq!(tree.text("rpc.response.status_code").as_deref(), Some(code));
        assert!(tree.frame.status.as_ref().is_none_or(|status| status.code != StatusCode::Error as i32));
        let names = tree.names();
        assert_eq!(names, STAGES[..names.len()], "the stages that it got to, in order");
        assert!(names.len() <= STAGES.iter().position(|stage| *stage == last_stage).expect("a stage") + 1, "{names:?}");
    }
    // The gated device reports no stage before its forward run, so the cancelled frame ends in the device's first
    // stage.
    assert_eq!(Tree::of(&spans, 1).names().last(), Some(&"copy_in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_fail_are_errors_and_kept_although_nothing_is_sampled() {
    let collector = Collector::start();
    let config = TelemetryConfig { trace_ratio: Some(0.0), ..to(collector.endpoint()) };
    let telemetry = telemetry(&config);
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    stream.frame(1).await;
    // The first error is found when the frame is decoded, the second when it arrives.
    stream.send(Request::Frame(images::tensor(2, [3, SIDE, SIDE], f32::NAN))).await;
    stream.send(Request::Frame(images::encoded(3, b"no image".to_vec()))).await;
    stream.explanation().await;
    let errors = [stream.frame_error().await, stream.frame_error().await];
    stream.half_close();
    stream.status().await;
    let refused = client
        .explain(v1::ExplainRequest { frame: Some(images::encoded(4, b"no image".to_vec())), ..Default::default() })
        .await
        .expect_err("it is none");
    drop(server);
    flush(&telemetry).await;

    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.name == "camlens.frame").count(), 3, "and not the one that succeeded");
    for (sequence, message, stages) in [
        (2, errors[0].message.as_str(), vec!["receive", "queue", "decode", "deliver", "send"]),
        (3, errors[1].message.as_str(), vec!["receive", "deliver", "send"]),
        (4, refused.message(), vec!["receive", "deliver"]),
    ] {
        let tree = Tree::of(&spans, sequence);
        tree.check();
        assert_eq!(tree.names(), stages, "frame {sequence}");
        assert_eq!(tree.text("camlens.outcome").as_deref(), Some("failed"));
        assert_eq!(tree.text("error.type").as_deref(), Some("INVALID_ARGUMENT"));
        let status = tree.frame.status.as_ref().expect("a status");
        assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, message));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_slow_is_kept_whatever_its_client_thinks_of_it() {
    let collector = Collector::start();
    let config =
        TelemetryConfig { trace_ratio: Some(0.0), trace_slower_than_ms: Some(200), ..to(collector.endpoint()) };
    let telemetry = telemetry(&config);
    let (server, gate) =
        TestServer::gated_with_telemetry(telemetry.clone(), |config| config.limits.max_batch = 1).await;
    let mut client = server.explain().await;
    let (mut stream, _) = Conversation::open(&mut client, open(Overflow::Block)).await;
    gate.go();
    stream.frame(1).await;
    stream.explanation().await;
    gate.began().await;
    let unwanted = v1::Frame { traceparent: PARENT.replace("-01", "-00"), ..images::frame(2) };
    stream.send(Request::Frame(unwanted)).await;
    gate.began().await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    gate.go();
    stream.explanation().await;
    stream.half_close();
    stream.status().await;
    drop(server);
    flush(&telemetry).await;

    let spans = collector.spans();
    let tree = Tree::of(&spans, 2);
    tree.check();
    assert_eq!(hex(&tree.frame.trace_id), PARENT[3..35]);
    assert_eq!(spans.iter().filter(|span| span.name == "camlens.frame").count(), 1);
    assert!(spans.iter().any(|span| span.name == "camlens.batch"), "its batch comes with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_calls_frame_joins_the_trace_of_the_call_unless_it_names_one_itself() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (sequence, traceparent) in [(1, ""), (2, own)] {
        let frame = v1::Frame { traceparent: traceparent.to_owned(), ..images::frame(sequence) };
        let asked = v1::ExplainRequest { options: Some(predictions()), frame: Some(frame), ..Default::default() };
        let mut call = tonic::Request::new(asked);
        call.metadata_mut().insert("traceparent", PARENT.parse().expect("ASCII"));
        let explanation = client.explain(call).await.expect("an answer").into_inner().explanation.expect("one");
        let expected = if traceparent.is_empty() { PARENT } else { own };
        assert_eq!(explanation.trace_id, expected[3..35]);
    }
    drop((client, server));
    flush(&telemetry).await;

    let spans = collector.spans();
    for (sequence, parent) in [(1, PARENT), (2, own)] {
        let tree = Tree::of(&spans, sequence);
        tree.check();
        assert_eq!(tree.names(), STAGES, "its sending included");
        assert_eq!(hex(&tree.frame.parent_span_id), parent[36..52]);
        assert_eq!(tree.text("rpc.method").as_deref(), Some("camlens.v1.ExplainService/Explain"));
        assert_eq!(tree.text("camlens.stream.id"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_traceparents_of_a_call_are_none_and_several_tracestates_are_one_list() {
    let collector = Collector::start();
    let telemetry = telemetry(&to(collector.endpoint()));
    let server = TestServer::start_with_telemetry(telemetry.clone(), |_| {}).await;
    let mut client = server.explain().await;
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let joined = format!("{PARENT},{other}");
    let mut trace_ids = Vec::new();
    // The second is what a proxy sends that appends one of its own, the third what one sends that joins them.
    for (sequence, traceparents) in [(1, &[PARENT][..]), (2, &[PARENT, other]), (3, &[&joined])] {
        let frame = Some(images::frame(sequence));
        let asked = v1::ExplainRequest { options: Some(predictions()), frame, ..Default::default() };
        let mut call = tonic::Request::new(asked);
        let traceparents = traceparents.iter().map(|parent| ("traceparent", *parent));
        let tracestates = [("tracestate", "rojo=1,tall=2"), ("tracestate", "congo=t61rcWkgMzE")];
        for (name, value) in traceparents.chain(tracestates) {
            call.metadata_mut().append(name, value.parse().expect("ASCII"));
        }
        let explanation = client.explain(call).await.expect("an answer").into_inner().explanation.expect("one");
        trace_ids.push(explanation.trace_id);
    }
    drop((client, server));
    flush(&telemetry).await;

    assert_eq!(trace_ids[0], PARENT[3..35]);
    let spans = collector.spans();
    let frame = |sequence| Tree::of(&spans, sequence).frame;
    assert_eq!(frame(1).trace_state, "rojo=1,tall=2,congo=t61rcWkgMzE");
    for (sequence, trace_id) in [(2, &trace_ids[1]), (3, &trace_ids[2])] {
        assert!(![&PARENT[3..35], &other[3..35]].contains(&trace_id.as_str()), "{trace_id} is a new trace");
        let frame = frame(sequence);
        assert_eq!((&hex(&frame.trace_id), frame.parent_span_id.len()), (trace_id, 0));
        assert_eq!(frame.trace_state, "", "it belongs to the traceparent");
    }
}
