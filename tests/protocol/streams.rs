//! What a stream guarantees: one ending for each frame, in order, according to its policy.

use camlens::proto::v1;
use camlens::proto::v1::dropped::Reason;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::explain_stream_response::Message as Response;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;

use super::conversation::{Conversation, open, predictions};
use super::images;
use super::server::{SIDE, SMALL, TestServer};

#[tokio::test(flavor = "multi_thread")]
async fn opening_tells_what_the_stream_got() {
    let server = TestServer::start().await;
    let (_stream, opened) = Conversation::open(&mut server.explain().await, v1::Open::default()).await;
    let model = opened.model.expect("a model");
    assert_eq!((model.name.as_str(), model.version, model.digest.len()), (SMALL, 1, 64));
    assert_eq!(model.precision, v1::Precision::Float32 as i32);
    let policy = opened.effective_policy.expect("a policy");
    assert_eq!((policy.overflow(), policy.depth), (Overflow::Latest, 1));
    let options = opened.effective_options.expect("options");
    assert_eq!(options.tensors[0].map(), v1::Map::GuidedGradCam);
    assert_eq!(options.target_layers.len(), 1);
    assert_eq!(options.top_predictions, Some(5));
    assert!(!opened.stream_id.is_empty() && opened.max_in_flight > 0);
    assert_eq!((opened.max_frame_bytes, opened.max_frame_pixels), (32 << 20, 64_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_stream_answers_every_frame_in_order_and_echoes_it() {
    let server = TestServer::start().await;
    let block = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
    let request = v1::Open { policy: Some(block), ..Default::default() };
    let (mut stream, opened) = Conversation::open(&mut server.explain().await, request).await;
    let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 };
    // More than the credit: the transport holds the rest back.
    let count = u64::from(opened.max_in_flight) * 2 + 3;
    for n in 0..count {
        let tag = n.to_string().into_bytes().into();
        let frame = v1::Frame { capture_time: Some(time), tag, ..images::frame(n * 10) };
        stream.send(Request::Frame(frame)).await;
    }
    stream.half_close();
    for n in 0..count {
        let explanation = stream.explanation().await;
        assert_eq!(explanation.sequence, n * 10);
        assert_eq!((explanation.tag, explanation.capture_time), (n.to_string().into_bytes().into(), Some(time)));
        assert_eq!(explanation.trace_id.len(), 32);
    }
    assert_eq!(stream.status().await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_on_several_workers_give_what_one_worker_gives_in_order() {
    let answers = async |threads: usize| {
        let server = TestServer::start_with(|config| {
            (config.device.threads, config.limits.max_batch) = (threads, 1);
        })
        .await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            let request = v1::Open {
                options: Some(v1::ExplainOptions { precision: v1::Precision::Exact as i32, ..Default::default() }),
                ..open(Overflow::Block)
            };
            let (mut stream, _) = Conversation::open(&mut server.explain().await, request).await;
            for n in 0..12 {
                stream.send(Request::Frame(images::tensor(n, [3, SIDE, SIDE], n as f32 / 12.0))).await;
            }
            stream.half_close();
            streams.push(stream);
        }
        let mut answers = Vec::new();
        for mut stream in streams {
            for n in 0..12 {
                let explanation = stream.explanation().await;
                assert_eq!(explanation.sequence, n);
                answers.push((explanation.predictions[0].class_index, explanation.predictions[0].logit));
            }
            assert_eq!(stream.status().await.code(), Code::Ok);
        }
        answers
    };
    let (one, many) = (answers(1).await, answers(3).await);
    for ((class, logit), (wanted_class, wanted_logit)) in many.into_iter().zip(one) {
        assert_eq!(class, wanted_class);
        assert!((logit - wanted_logit).abs() < 1e-4 * wanted_logit.abs(), "{logit} {wanted_logit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_frame_replaces_the_waiting_one_and_says_so() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    // Unordered, so that drops are reported while the device is busy.
    let policy = v1::StreamPolicy { overflow: Overflow::Latest as i32, unordered: true, ..Default::default() };
    let request = v1::Open { policy: Some(policy), ..open(Overflow::Latest) };
    let (mut stream, _) = Conversation::open(&mut server.explain().await, request).await;
    stream.frame(1).await;
    assert_eq!(gate.began().await, 1);
    for sequence in [2, 3, 5] {
        stream.frame(sequence).await;
    }
    // The third is replaced when the last one is read: then all have been read.
    let mut replaced = 0;
    while replaced < 2 {
        let (first, last, count, reason) = stream.dropped().await;
        assert!(first >= 2 && last <= 3 && reason == Reason::Replaced, "{first} to {last}: {reason:?}");
        replaced += count;
    }
    assert_eq!(replaced, 2);
    stream.half_close();
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 1);
    gate.began().await;
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 5);
    assert_eq!(stream.status().await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_refused_on_arrival_does_not_replace_the_waiting_one() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    // Unordered, so that errors are reported while the device is busy.
    let policy = v1::StreamPolicy { overflow: Overflow::Latest as i32, unordered: true, ..Default::default() };
    let request = v1::Open { policy: Some(policy), ..open(Overflow::Latest) };
    let (mut stream, _) = Conversation::open(&mut server.explain().await, request).await;
    stream.frame(1).await;
    assert_eq!(gate.began().await, 1);
    stream.frame(2).await;
    let layers = vec!["nowhere".to_owned()];
    let tensors = vec![v1::TensorOutput { map: v1::Map::GradCam as i32, ..Default::default() }];
    let options = v1::ExplainOptions { target_layers: layers, tensors, ..Default::default() };
    let bad = [
        images::encoded(3, b"GIF89a".to_vec()),
        images::encoded(4, images::huge_png()),
        images::tensor(5, [3, 1, 1], 0.0),
        v1::Frame { options: Some(options), ..images::frame(6) },
        v1::Frame { sequence: 7, ..Default::default() },
    ];
    for frame in bad {
        let sequence = frame.sequence;
        stream.send(Request::Frame(frame)).await;
        assert_eq!(stream.frame_error().await.sequence, sequence);
    }
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 1);
    gate.began().await;
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 2, "it was still waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_is_what_opening_says_and_a_cancel_behind_it_is_read_at_once() {
    let (server, gate) = TestServer::gated(|config| config.limits.max_batch = 1).await;
    let policy = v1::StreamPolicy { overflow: Overflow::Block as i32, depth: 2, ..Default::default() };
    let request = v1::Open { policy: Some(policy), ..open(Overflow::Block) };
    let (mut stream, opened) = Conversation::open(&mut server.explain().await, request).await;
    assert_eq!(opened.max_in_flight, 2);
    stream.frame(1).await;
    assert_eq!(gate.began().await, 1);
    stream.frame(2).await;
    stream.send(Request::Cancel(v1::Cancel { sequence: 2 })).await;
    stream.send(Request::Cancel(v1::Cancel { sequence: 1 })).await;
    // Both were answered before the device finished.
    assert_eq!(stream.dropped().await, (1, 2, 2, Reason::Cancelled));
    gate.go();
    stream.frame(3).await;
    assert_eq!(gate.began().await, 1);
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_two_streams_share_a_batch_and_each_gets_its_own_answer() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let (mut one, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    let (mut other, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    one.frame(1).await;
    assert_eq!(gate.began().await, 1);
    one.frame(2).await;
    other.frame(70).await;
    // Both frames must be prepared before the device is free; how long that takes depends on the machine.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    gate.go();
    assert_eq!(gate.began().await, 2);
    gate.go();
    assert_eq!(one.explanation().await.batch_size, 1);
    for (stream, sequence) in [(&mut one, 2), (&mut other, 70)] {
        let explanation = stream.explanation().await;
        assert_eq!((explanation.sequence, explanation.batch_size), (sequence, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unordered_stream_tells_an_error_before_the_answer_that_is_still_made() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let policy = v1::StreamPolicy { overflow: Overflow::Block as i32, unordered: true, ..Default::default() };
    let request = v1::Open { policy: Some(policy), ..open(Overflow::Block) };
    let (mut stream, _) = Conversation::open(&mut server.explain().await, request).await;
    stream.frame(1).await;
    gate.began().await;
    stream.send(Request::Frame(v1::Frame { sequence: 2, ..Default::default() })).await;
    assert_eq!(stream.frame_error().await.sequence, 2);
    gate.go();
    assert_eq!(stream.explanation().await.sequence, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_holds_for_the_frames_that_follow_it() {
    let server = TestServer::start().await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(1).await;
    let options = v1::ExplainOptions { top_predictions: Some(2), ..Default::default() };
    stream.send(Request::Update(v1::Update { options: Some(options), policy: None })).await;
    stream.frame(2).await;
    let own = v1::ExplainOptions { top_predictions: Some(0), ..Default::default() };
    stream.send(Request::Frame(v1::Frame { options: Some(own), ..images::frame(3) })).await;
    stream.frame(4).await;
    for count in [5, 2, 0, 2] {
        assert_eq!(stream.explanation().await.predictions.len(), count);
    }
    let bad = v1::ExplainOptions { target_layers: vec!["nowhere".to_owned()], ..Default::default() };
    let maps = vec![v1::TensorOutput { map: v1::Map::GradCam as i32, ..Default::default() }];
    let update = v1::Update { options: Some(v1::ExplainOptions { tensors: maps, ..bad }), policy: None };
    stream.send(Request::Update(update)).await;
    let status = stream.status().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("nowhere"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_does_not_increase_ends_the_stream_after_what_is_pending() {
    let (server, gate) = TestServer::gated(|_| {}).await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    stream.frame(7).await;
    gate.began().await;
    stream.frame(8).await;
    stream.frame(8).await;
    assert_eq!(stream.dropped().await, (7, 8, 2, Reason::StreamEnded));
    let status = stream.status().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("sequence 8"), "{status}");
    gate.go();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_ends_the_stream_and_says_why() {
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    let frame_first = Request::Frame(images::frame(1));
    let empty = v1::ExplainStreamRequest { message: None };
    for (first, then, says) in [
        (None, v1::ExplainStreamRequest { message: Some(frame_first) }, "Open"),
        (None, empty.clone(), "Open"),
        (Some(()), empty, "Cancel or an Update"),
        (Some(()), v1::ExplainStreamRequest { message: Some(Request::Open(open(Overflow::Block))) }, "one Open"),
    ] {
        let mut stream = match first {
            Some(()) => Conversation::open(&mut client, open(Overflow::Block)).await.0,
            None => Conversation::silent(&mut client).await,
        };
        stream.send_raw(then).await;
        let status = stream.status().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(says), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_says_nothing_ends_with_nothing() {
    let server = TestServer::start().await;
    let mut stream = Conversation::silent(&mut server.explain().await).await;
    stream.half_close();
    assert_eq!(stream.status().await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_is_refused_at_open_by_name() {
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    let options = |options: v1::ExplainOptions| v1::Open { options: Some(options), ..Default::default() };
    for (request, field) in [
        (
            options(v1::ExplainOptions { condition: Some(v1::Condition::default()), ..Default::default() }),
            "options.condition",
        ),
        (
            options(v1::ExplainOptions { precision: v1::Precision::Float16 as i32, ..Default::default() }),
            "options.precision",
        ),
        (
            options(v1::ExplainOptions { cam_method: v1::CamMethod::LayerCam as i32, ..Default::default() }),
            "options.cam_method",
        ),
    ] {
        let mut stream = Conversation::silent(&mut client).await;
        stream.send(Request::Open(request)).await;
        let status = stream.status().await;
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().starts_with(&format!("open.{field}")), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_the_client_cannot_take_are_refused_at_open_or_at_the_frame() {
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    let policy = v1::StreamPolicy { overflow: Overflow::Block as i32, max_response_bytes: 3000, ..Default::default() };
    let mut stream = Conversation::silent(&mut client).await;
    stream.send(Request::Open(v1::Open { policy: Some(policy), ..Default::default() })).await;
    let status = stream.status().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("max_response_bytes"), "{status}");

    let request = v1::Open { policy: Some(policy), options: Some(predictions()), ..Default::default() };
    let (mut stream, _) = Conversation::open(&mut client, request).await;
    let pictures = vec![v1::PictureOutput {
        picture: v1::Picture::Overlay as i32,
        format: v1::ImageFormat::Png as i32,
        ..Default::default()
    }];
    let own = v1::ExplainOptions { pictures, ..Default::default() };
    stream.send(Request::Frame(v1::Frame { options: Some(own), ..images::encoded(1, images::jpeg()) })).await;
    let error = stream.frame_error().await;
    assert_eq!((error.sequence, error.code), (1, Code::ResourceExhausted as i32));
    stream.frame(2).await;
    assert_eq!(stream.explanation().await.sequence, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_costs_its_own_answers_and_is_told() {
    let server = TestServer::start_with(|config| {
        config.limits.max_in_flight = 4;
        config.limits.max_unsent_bytes = 64 << 10;
    })
    .await;
    // A window of a few answers: 33 × 33 × 3 floats are 13 kB.
    let narrow = server.channel_with(|endpoint| endpoint.initial_stream_window_size(65_535)).await;
    let mut client = v1::explain_service_client::ExplainServiceClient::new(narrow);
    let (mut stream, _) = Conversation::open(&mut client, v1::Open::default()).await;
    for sequence in 1..=60 {
        stream.frame(sequence).await;
        // Slow enough for the device to keep up, so that few frames are replaced.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    stream.half_close();
    let (mut told, mut slow) = (0, 0);
    let mut last = 0;
    while told < 60 {
        let (first, end, count) = match stream.next().await {
            Response::Explanation(explanation) => (explanation.sequence, explanation.sequence, 1),
            Response::Dropped(run) => {
                slow += if run.reason() == Reason::SlowReader { run.count } else { 0 };
                (run.first_sequence, run.last_sequence, run.count)
            }
            other => panic!("an ending, not {other:?}"),
        };
        assert!(first > last || told == 0, "in order");
        last = first.max(last);
        assert!(end >= first);
        told += count;
    }
    assert!(slow > 0, "some answers were given up");
    assert_eq!(stream.status().await.code(), Code::Ok);
}
