//! `Frame.expected`: whether the model predicts what the server beside camlens has predicted.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use camlens::proto::v1;
use camlens::proto::v1::expected_prediction::Kind;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::notice::Code as Notice;
use camlens::proto::v1::stream_policy::Overflow;
use tonic::Code;

use super::conversation::{Conversation, open, predictions};
use super::images;
use super::server::{LABELS, TestServer};

fn expecting(frame: v1::Frame, class: u32, probability: Option<f32>) -> v1::Frame {
    let expected = v1::ExpectedPrediction { kind: Some(Kind::ClassIndex(class)), probability, tolerance: None };
    v1::Frame { expected: Some(expected), ..frame }
}

async fn explain(server: &TestServer, frame: v1::Frame) -> v1::Explanation {
    let request = v1::ExplainRequest { options: Some(predictions()), frame: Some(frame), ..Default::default() };
    server.explain().await.explain(request).await.expect("an answer").into_inner().explanation.expect("one")
}

fn notice(explanation: &v1::Explanation, code: Notice) -> Option<&v1::Notice> {
    explanation.notices.iter().find(|notice| notice.code() == code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_without_an_expectation_has_no_agreement() {
    let server = TestServer::start().await;
    let explanation = explain(&server, images::frame(1)).await;
    assert_eq!(explanation.agreement, None);
    assert_eq!(notice(&explanation, Notice::Disagrees), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_prediction_agrees_by_index_and_by_label_in_a_call_and_on_a_stream() {
    let server = TestServer::start().await;
    let top = explain(&server, images::frame(1)).await.predictions[0].clone();
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    for kind in [Kind::ClassIndex(top.class_index), Kind::Label(LABELS[top.class_index as usize].to_owned())] {
        let expected =
            v1::ExpectedPrediction { kind: Some(kind), probability: Some(top.probability), tolerance: Some(0.001) };
        let frame = v1::Frame { expected: Some(expected), ..images::frame(1) };
        let called = explain(&server, frame.clone()).await;
        let sequence = stream_sequence(&frame);
        stream.send(Request::Frame(v1::Frame { sequence, ..frame })).await;
        for explanation in [called, stream.explanation().await] {
            let agreement = explanation.agreement.clone().expect("something was expected");
            assert!(agreement.agrees && agreement.compares_probabilities, "{agreement:?}");
            assert_eq!((agreement.expected_probability, agreement.tolerance), (Some(top.probability), 0.001));
            assert_eq!(agreement.top, agreement.own);
            assert_eq!(notice(&explanation, Notice::Disagrees), None);
        }
    }
}

/// A sequence of its own for each way to name the class.
fn stream_sequence(frame: &v1::Frame) -> u64 {
    match frame.expected.as_ref().and_then(|expected| expected.kind.as_ref()) {
        Some(Kind::ClassIndex(_)) => 1,
        _ => 2,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_class_or_another_probability_disagrees_with_both_figures() {
    let server = TestServer::start().await;
    let before = explain(&server, images::frame(1)).await;
    let (top, last) = (before.predictions[0].clone(), before.predictions[4].clone());
    let far = if top.probability > 0.5 { top.probability - 0.25 } else { top.probability + 0.25 };
    for (class, probability) in [(last.class_index, None), (last.class_index, Some(0.75)), (top.class_index, Some(far))]
    {
        let explanation = explain(&server, expecting(images::frame(1), class, probability)).await;
        let agreement = explanation.agreement.clone().expect("something was expected");
        assert!(!agreement.agrees && agreement.compares_probabilities == probability.is_some(), "{agreement:?}");
        let (own, its_top) = (agreement.own.expect("a prediction"), agreement.top.expect("a prediction"));
        assert_eq!((own.class_index, its_top.class_index), (class, top.class_index));
        assert!((its_top.probability - top.probability).abs() < 1e-4);
        assert!((agreement.tolerance - 0.01).abs() < 1e-6, "the default that is documented");
        let notice = notice(&explanation, Notice::Disagrees).expect("a notice");
        assert_eq!(notice.class_index, Some(class));
        for figure in [
            LABELS[class as usize].to_owned(),
            LABELS[top.class_index as usize].to_owned(),
            its_top.probability.to_string(),
            own.probability.to_string(),
            probability.map_or(String::new(), |probability| probability.to_string()),
        ] {
            assert!(notice.message.contains(&figure), "{figure}: {}", notice.message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_that_cannot_be_is_refused_by_its_field() {
    let server = TestServer::start().await;
    let (mut stream, _) = Conversation::open(&mut server.explain().await, open(Overflow::Block)).await;
    let class = |class| Some(Kind::ClassIndex(class));
    let label = |label: &str| Some(Kind::Label(label.to_owned()));
    let cases = [
        (None, None, None, "frame.expected", "give class_index or label"),
        (class(10), None, None, "frame.expected.class_index", "10 classes, 0 to 9"),
        (label("foxx"), None, None, "frame.expected.label", "fox"),
        (class(1), Some(1.5), None, "frame.expected.probability", "0 to 1 is allowed"),
        (class(1), Some(-0.1), None, "frame.expected.probability", "0 to 1 is allowed"),
        (class(1), Some(f32::NAN), None, "frame.expected.probability", "0 to 1 is allowed"),
        (class(1), None, Some(-0.01), "frame.expected.tolerance", "0 to 1 is allowed"),
        (class(1), None, Some(2.0), "frame.expected.tolerance", "0 to 1 is allowed"),
    ];
    for (sequence, (kind, probability, tolerance, field, allowed)) in (1..).zip(cases) {
        let expected = v1::ExpectedPrediction { kind, probability, tolerance };
        let frame = v1::Frame { expected: Some(expected), ..images::frame(sequence) };
        let request = v1::ExplainRequest { frame: Some(frame.clone()), ..Default::default() };
        let status = server.explain().await.explain(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(field) && status.message().contains(allowed), "{status}");
        stream.send(Request::Frame(frame)).await;
        let error = stream.frame_error().await;
        assert_eq!((error.code, error.field.as_str()), (Code::InvalidArgument as i32, field), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_model_without_probabilities_classes_alone_are_compared_and_it_says_so() {
    let server = TestServer::start_with(|config| {
        let description = config.models.repository.join("small/1/model.toml");
        std::fs::write(description, "[output]\nactivation = \"none\"\n").expect("a file");
    })
    .await;
    let top = explain(&server, images::frame(1)).await.predictions[0].clone();
    let explanation = explain(&server, expecting(images::frame(1), top.class_index, Some(0.9))).await;
    let agreement = explanation.agreement.clone().expect("something was expected");
    assert!(agreement.agrees && !agreement.compares_probabilities, "{agreement:?}");
    assert_eq!(agreement.expected_probability, Some(0.9));
    assert!(notice(&explanation, Notice::ProbabilityIgnored).is_some(), "{:?}", explanation.notices);
    let other = explain(&server, expecting(images::frame(1), (top.class_index + 1) % 10, None)).await;
    assert!(!other.agreement.as_ref().expect("something was expected").agrees);
    assert_eq!(notice(&other, Notice::ProbabilityIgnored), None, "none was expected");
    assert!(notice(&other, Notice::Disagrees).is_some_and(|notice| notice.message.contains("logit")));
}

/// The bundled network, as another server might run it.
struct Lite0(tempfile::TempDir);

impl Lite0 {
    fn bundled() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/models/efficientnet-lite0/1")
    }

    /// With its description, and the classifier's weights `[1000, 1280]`, changed.
    fn changed(description: impl Fn(String) -> String, weights: impl Fn(Vec<u8>) -> Vec<u8>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let version = folder.path().join("lite0/1");
        std::fs::create_dir_all(&version).expect("a folder");
        let text = |name: &str| std::fs::read_to_string(Self::bundled().join(name)).expect(name);
        std::fs::write(version.join("model.toml"), description(text("model.toml"))).expect("a file");
        std::fs::write(version.join("labels.txt"), text("labels.txt")).expect("a file");
        let file = std::fs::File::open(Self::bundled().join("model.pt2")).expect("the bundled model");
        let mut archive = zip::ZipArchive::new(file).expect("an archive");
        let mut out = zip::ZipWriter::new(std::fs::File::create(version.join("model.pt2")).expect("a file"));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            let name = entry.name().expect("a name").into_owned();
            let is_classifier = name.contains("data/weights/") && bytes.len() == 1000 * 1280 * 4;
            let bytes = if is_classifier { weights(bytes) } else { bytes };
            out.start_file(name, stored.with_alignment(64)).expect("room");
            out.write_all(&bytes).expect("room");
        }
        out.finish().expect("room");
        Lite0(folder)
    }

    async fn serve(&self) -> TestServer {
        TestServer::start_with(|config| config.models.repository = self.0.path().to_owned()).await
    }
}

/// Each weight times 1.25.
fn scaled(weights: Vec<u8>) -> Vec<u8> {
    let scale = |four: &[u8]| (f32::from_le_bytes([four[0], four[1], four[2], four[3]]) * 1.25).to_le_bytes();
    weights.chunks_exact(4).flat_map(scale).collect()
}

/// Each class in the next one's place, as in a version with one label more.
fn shifted(mut weights: Vec<u8>) -> Vec<u8> {
    weights.rotate_right(1280 * 4);
    weights
}

#[tokio::test(flavor = "multi_thread")]
async fn other_weights_and_other_preprocessing_are_found_on_the_first_frame() {
    let cup = |expected| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo-assets/photographs/coffee.png");
        v1::Frame { expected, ..images::encoded(1, std::fs::read(file).expect("a photograph")) }
    };
    let same = |text: String| text;
    let bundled = Lite0::changed(same, |weights| weights).serve().await;
    let own = explain(&bundled, cup(None)).await.predictions[0].clone();
    let replaced = |from: &'static str, to: &'static str| {
        move |text: String| {
            assert!(text.contains(from), "{text}");
            text.replace(from, to)
        }
    };
    let servers: [(&str, Lite0); 5] = [
        ("other weights", Lite0::changed(same, scaled)),
        ("another order of the classes", Lite0::changed(same, shifted)),
        ("BGR", Lite0::changed(replaced("[input]", "[input]\ncolor = \"bgr\""), |weights| weights)),
        ("no mean", Lite0::changed(replaced("mean = [0.498]\n", ""), |weights| weights)),
        (
            "the whole picture, squeezed",
            Lite0::changed(replaced("resize = 256", "resize = [224, 224]"), |weights| weights),
        ),
    ];
    let agrees = async |prediction: v1::Prediction| {
        let expected = v1::ExpectedPrediction {
            kind: Some(Kind::Label(prediction.label.clone())),
            probability: Some(prediction.probability),
            tolerance: None,
        };
        explain(&bundled, cup(Some(expected))).await.agreement.expect("something was expected")
    };
    let with_itself = agrees(own.clone()).await;
    assert!(with_itself.agrees, "{with_itself:?}");
    for (what, other) in servers {
        let other = other.serve().await;
        let prediction = explain(&other, cup(None)).await.predictions[0].clone();
        let agreement = agrees(prediction.clone()).await;
        assert!(!agreement.agrees, "{what}: {prediction:?} and {own:?}");
    }
}
