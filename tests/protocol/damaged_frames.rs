//! JPEGs that were damaged on their way: an error that says how much was lost, or an explanation with a notice.

use camlens::model::import::identity;
use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message as Request;
use camlens::proto::v1::notice::Code;
use camlens::proto::v1::stream_policy::Overflow;

use super::conversation::Conversation;
use super::images;
use super::server::TestServer;

/// What the model got.
fn input() -> v1::ExplainOptions {
    let input = v1::TensorOutput { map: v1::Map::Input as i32, ..Default::default() };
    v1::ExplainOptions { tensors: vec![input], ..Default::default() }
}

fn allowing(options: v1::ExplainOptions) -> v1::ExplainOptions {
    v1::ExplainOptions { allow_damaged_frames: Some(true), ..options }
}

fn damage(explanation: &v1::Explanation) -> Option<&str> {
    explanation.notices.iter().find(|notice| notice.code() == Code::DamagedFrame).map(|notice| notice.message.as_str())
}

/// The rows of `[3, H, W]` floats in which two results agree, counted from above.
fn equal_rows(a: &v1::Explanation, b: &v1::Explanation) -> (usize, usize) {
    let tensor = |explanation: &v1::Explanation| explanation.targets[0].tensors[0].tensor.clone().expect("numbers");
    let (a, b) = (tensor(a), tensor(b));
    assert_eq!(a.shape, b.shape);
    let [_, height, width] = a.shape[..] else { panic!("three axes") };
    let row = |data: &[u8], y: usize| data[y * width as usize * 4..(y + 1) * width as usize * 4].to_vec();
    let equal = (0..height as usize).take_while(|&y| row(&a.data, y) == row(&b.data, y)).count();
    (equal, height as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_frame_is_explained_with_a_notice_when_the_request_allows_it() {
    let server = TestServer::start_with(|config| config.models.repository = identity::PLACE.into()).await;
    let mut client = server.explain().await;
    let mut explain = async |data: Vec<u8>, options: v1::ExplainOptions| {
        let frame = Some(images::encoded(0, data));
        let request = v1::ExplainRequest { frame, options: Some(options), ..Default::default() };
        client.explain(request).await.map(|response| response.into_inner().explanation.expect("an explanation"))
    };
    let whole = explain(images::jpeg(), allowing(input())).await.expect("a sound frame");
    assert_eq!(damage(&whole), None, "nothing was lost");
    let part = explain(images::damaged_jpeg(), allowing(input())).await.expect("it is allowed");
    let message = damage(&part).expect("a notice");
    assert!(message.contains("it ends early, and ") && message.contains("% of the picture was lost"), "{message}");
    let (equal, height) = equal_rows(&whole, &part);
    assert!((height / 4..height * 3 / 4).contains(&equal), "{equal} of {height} rows are those of the whole picture");

    let status = explain(images::damaged_jpeg(), input()).await.expect_err("it is not allowed");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("% of the picture was lost"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streams_option_holds_for_its_frames_until_one_says_otherwise() {
    let server = TestServer::start_with(|config| config.models.repository = identity::PLACE.into()).await;
    let block = v1::StreamPolicy { overflow: Overflow::Block as i32, ..Default::default() };
    let request = v1::Open { policy: Some(block), options: Some(allowing(Default::default())), ..Default::default() };
    let (mut stream, opened) = Conversation::open(&mut server.explain().await, request).await;
    assert_eq!(opened.effective_options.expect("effective options").allow_damaged_frames, Some(true));
    stream.send(Request::Frame(images::encoded(1, images::damaged_jpeg()))).await;
    assert!(damage(&stream.explanation().await).is_some());
    let strict = v1::ExplainOptions { allow_damaged_frames: Some(false), ..Default::default() };
    let frame = v1::Frame { options: Some(strict), ..images::encoded(2, images::damaged_jpeg()) };
    stream.send(Request::Frame(frame)).await;
    let error = stream.frame_error().await;
    assert_eq!((error.sequence, error.field.as_str()), (2, "frame.encoded.data"));
    stream.send(Request::Frame(images::encoded(3, images::jpeg()))).await;
    assert_eq!(damage(&stream.explanation().await), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_whose_samples_use_few_bits_is_explained_with_a_notice() {
    let server = TestServer::start_with(|config| config.models.repository = identity::PLACE.into()).await;
    let mut client = server.explain().await;
    let mut notice = async |most: u16| {
        let samples = image::ImageBuffer::from_fn(40, 30, |x, y| image::Luma([((x * y) as u16).min(most)]));
        let mut file = std::io::Cursor::new(Vec::new());
        image::DynamicImage::ImageLuma16(samples).write_to(&mut file, image::ImageFormat::Png).expect("a PNG");
        let frame = Some(images::encoded(0, file.into_inner()));
        let request = v1::ExplainRequest { frame, options: Some(input()), ..Default::default() };
        let explanation = client.explain(request).await.expect("an answer").into_inner().explanation.expect("one");
        explanation.notices.into_iter().find(|notice| notice.code() == Code::UnusedBits).map(|notice| notice.message)
    };
    let message = notice(1000).await.expect("a notice");
    assert!(message.contains("the lower 10 bits alone") && message.contains("input.sample_bits"), "{message}");
    assert_eq!(notice(0).await, None, "a lens cap is no camera of few bits");
}
