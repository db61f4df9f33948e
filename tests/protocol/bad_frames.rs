//! An invalid frame gets an error: a canonical code, the field, what is allowed. The stream continues.

use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::frame::Payload;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;

use super::conversation::Conversation;
use super::images;
use super::server::{SIDE, TestServer};

struct BadFrame {
    frame: v1::Frame,
    code: Code,
    field: &'static str,
    says: &'static str,
}

fn with_options(options: v1::ExplainOptions) -> v1::Frame {
    v1::Frame { options: Some(options), ..images::frame(0) }
}

fn with_target(kind: v1::target::Kind) -> v1::Frame {
    with_options(v1::ExplainOptions { targets: vec![v1::Target { kind: Some(kind) }], ..Default::default() })
}

fn bad_frames() -> Vec<BadFrame> {
    let case = |frame, code, field, says| BadFrame { frame, code, field, says };
    let torn = images::jpeg()[..200].to_vec();
    let raw = |image: v1::RawImage| images::with(0, Payload::Raw(image));
    let rgb = v1::PixelFormat::Rgb8 as i32;
    vec![
        case(images::encoded(0, torn), Code::InvalidArgument, "frame.encoded.data", "truncated JPEG"),
        case(
            images::encoded(0, images::damaged_jpeg()),
            Code::InvalidArgument,
            "frame.encoded.data",
            "% of the picture was lost; with options.allow_damaged_frames",
        ),
        case(images::encoded(0, images::huge_png()), Code::ResourceExhausted, "frame.encoded.data", "64000000 pixels"),
        case(images::encoded(0, b"GIF89a".to_vec()), Code::InvalidArgument, "frame.encoded.data", "JPEG, PNG and WebP"),
        case(images::encoded(0, Vec::new()), Code::InvalidArgument, "frame.encoded.data", "empty"),
        case(
            images::tensor(0, [3, SIDE, SIDE + 7], 0.0),
            Code::InvalidArgument,
            "frame.tensor.shape",
            "the model takes [3,",
        ),
        case(
            images::tensor(0, [1, SIDE, SIDE], 0.0),
            Code::InvalidArgument,
            "frame.tensor.shape",
            "the model takes [3,",
        ),
        case(
            images::tensor(0, [3, SIDE, SIDE], f32::NAN),
            Code::InvalidArgument,
            "frame.tensor.data",
            "must be finite",
        ),
        case(
            raw(v1::RawImage {
                data: vec![0; 10].into(),
                width: 4,
                height: 4,
                pixel_format: rgb,
                ..Default::default()
            }),
            Code::InvalidArgument,
            "frame.raw.data",
            "need 48",
        ),
        case(v1::Frame::default(), Code::InvalidArgument, "frame.payload", "encoded, raw or tensor"),
        case(
            with_options(v1::ExplainOptions { target_layers: vec!["layer9".to_owned()], ..Default::default() }),
            Code::InvalidArgument,
            "frame.options.target_layers",
            "layers that are spatial",
        ),
        case(
            with_target(v1::target::Kind::Label("catt".to_owned())),
            Code::InvalidArgument,
            "frame.options.targets[0].label",
            "cat",
        ),
        case(
            with_target(v1::target::Kind::ClassIndex(10)),
            Code::InvalidArgument,
            "frame.options.targets[0].class_index",
            "10 classes, 0 to 9",
        ),
        case(with_target(v1::target::Kind::Top(0)), Code::InvalidArgument, "frame.options.targets[0].top", "1 to 10"),
        case(
            v1::Frame { region: Some(v1::Region::default()), ..images::frame(0) },
            Code::Unimplemented,
            "frame.region",
            "not built yet",
        ),
        case(
            v1::Frame { time_to_live: Some(prost_types::Duration::default()), ..images::frame(0) },
            Code::InvalidArgument,
            "frame.time_to_live",
            "more than 0 s is allowed",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_frame_gets_its_code_its_field_and_what_is_allowed_and_the_stream_lives_on() {
    let server = TestServer::start().await;
    let block = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
    let request = v1::Open { policy: Some(block), ..Default::default() };
    let (mut stream, _) = Conversation::open(&mut server.explain().await, request).await;
    let mut sequence = 0;
    for BadFrame { frame, code, field, says } in bad_frames() {
        sequence += 1;
        stream.send(Request::Frame(v1::Frame { sequence, tag: "bad".into(), ..frame })).await;
        let error = stream.frame_error().await;
        assert_eq!((error.sequence, &error.tag[..]), (sequence, &b"bad"[..]));
        assert_eq!((Code::from(error.code), error.field.as_str()), (code, field), "{}", error.message);
        assert!(error.message.contains(says) && error.message.contains(field), "{field}: {}", error.message);
        sequence += 1;
        stream.frame(sequence).await;
        assert_eq!(stream.explanation().await.sequence, sequence, "after {field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_limit_is_its_own_error_and_a_message_over_it_ends_the_stream() {
    let server = TestServer::start_with(|config| config.limits.max_frame_bytes = 100_000).await;
    let mut client = server.explain().await;
    let block = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
    let request = v1::Open { policy: Some(block), ..Default::default() };
    let (mut stream, opened) = Conversation::open(&mut client, request).await;
    assert_eq!(opened.max_frame_bytes, 100_000);
    stream.send(Request::Frame(images::encoded(1, vec![0; 100_001]))).await;
    let error = stream.frame_error().await;
    assert_eq!((Code::from(error.code), error.field.as_str()), (Code::ResourceExhausted, "frame"));
    assert!(error.message.contains("limits.max_frame_bytes"), "{}", error.message);
    stream.send(Request::Frame(images::encoded(2, vec![0; 3_000_000]))).await;
    let status = stream.status().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limits.max_frame_bytes"), "{status}");

    let frame = Some(images::encoded(3, vec![0; 3_000_000]));
    let status = client.explain(v1::ExplainRequest { frame, ..Default::default() }).await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limits.max_frame_bytes"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_that_comes_alone_is_the_calls_status_with_the_field() {
    use tonic_types::StatusExt;
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    for BadFrame { frame, code, field, .. } in bad_frames() {
        let frame = v1::Frame { options: frame.options.clone(), ..frame };
        let request = v1::ExplainRequest { frame: Some(frame), ..Default::default() };
        let status = client.explain(request).await.expect_err(field);
        assert_eq!(status.code(), code, "{status}");
        let violations = status.get_details_bad_request().expect("a bad request").field_violations;
        // In a single call, options belong to the call, whether they were sent with the frame or not.
        assert_eq!(violations[0].field, field.replace("frame.options", "options"), "{status}");
    }
}
