//! Single calls: `Explain` for one frame, and `ListModels`, `GetModel`.

use camlens::proto::v1;
use camlens::proto::v1::target::Kind;
use tonic::Code;

use super::images;
use super::server::{LABELS, SIDE, SMALL, TestServer};

fn request(options: v1::ExplainOptions, frame: v1::Frame) -> v1::ExplainRequest {
    v1::ExplainRequest { options: Some(options), frame: Some(frame), ..Default::default() }
}

async fn explain(server: &TestServer, options: v1::ExplainOptions, frame: v1::Frame) -> v1::Explanation {
    let response = server.explain().await.explain(request(options, frame)).await.expect("an answer");
    response.into_inner().explanation.expect("an explanation")
}

fn floats(tensor: &v1::Tensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_what_made_it_and_how_long_each_stage_took() {
    let server = TestServer::start().await;
    let explanation = explain(&server, v1::ExplainOptions::default(), images::frame(7)).await;
    assert_eq!(explanation.sequence, 7);
    assert_eq!(explanation.model.as_ref().map(|model| model.name.as_str()), Some(SMALL));
    assert_eq!(explanation.convention(), v1::Convention::Captum);
    assert_eq!(explanation.predictions.len(), 5);
    let top = &explanation.predictions[0];
    assert_eq!(top.label, LABELS[top.class_index as usize]);
    let sum: f32 = explanation.predictions.iter().map(|p| p.probability).sum();
    assert!(top.probability >= 0.1 && sum <= 1.0 + 1e-5);

    let [target] = explanation.targets.as_slice() else { panic!("one target") };
    assert_eq!((target.class_index, target.score), (top.class_index, top.logit));
    assert!(!target.target_layer.is_empty());
    let tensor = target.tensors[0].tensor.as_ref().expect("numbers");
    assert_eq!(tensor.shape, [3, SIDE, SIDE]);
    assert!(floats(tensor).iter().any(|value| *value != 0.0));

    let stages: Vec<v1::Stage> = explanation.timings.iter().map(|timing| timing.stage()).collect();
    let all: Vec<v1::Stage> = (1..=12).map(|n| v1::Stage::try_from(n).expect("a stage")).collect();
    assert_eq!(stages, all);
    let mut at = 0;
    for timing in &explanation.timings {
        assert_eq!(timing.start_ns, at, "without a gap");
        at += timing.duration_ns;
    }
    let to_frame = explanation.model_to_frame.expect("a transform");
    // The input has 33 columns, the frame 40: x' = 40/33·(x + ½) − ½.
    assert!((to_frame.xx - 40.0 / 33.0).abs() < 1e-9 && (to_frame.x0 - (20.0 / 33.0 - 0.5)).abs() < 1e-9);
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_multiply_as_they_should_and_come_in_the_type_asked_for() {
    let server = TestServer::start().await;
    let wish = |map: v1::Map, element_type: v1::ElementType| v1::TensorOutput {
        map: map as i32,
        element_type: element_type as i32,
        ..Default::default()
    };
    use v1::ElementType::{Float16, Float32, Uint8};
    let options = v1::ExplainOptions {
        tensors: vec![
            wish(v1::Map::GuidedGradCam, Float32),
            wish(v1::Map::GradCam, Float32),
            wish(v1::Map::GuidedBackprop, Float32),
            wish(v1::Map::Input, Float32),
            wish(v1::Map::GradCam, Float16),
            wish(v1::Map::GradCam, Uint8),
        ],
        targets: vec![v1::Target { kind: Some(Kind::Label("fox".to_owned())) }],
        precision: v1::Precision::Exact as i32,
        ..Default::default()
    };
    let explanation = explain(&server, options, images::sound_tensor(0)).await;
    assert_eq!(explanation.model.expect("a model").precision, v1::Precision::Exact as i32);
    assert_eq!((explanation.targets[0].class_index, explanation.targets[0].label.as_str()), (5, "fox"));
    let tensors: Vec<&v1::Tensor> =
        explanation.targets[0].tensors.iter().map(|map| map.tensor.as_ref().expect("numbers")).collect();
    let (fused, cam, guided) = (floats(tensors[0]), floats(tensors[1]), floats(tensors[2]));
    for (index, value) in fused.iter().enumerate() {
        let product = guided[index] * cam[index % cam.len()];
        assert!((value - product).abs() <= 1e-6 * product.abs().max(1e-20), "{value} is not {product}");
    }
    assert_eq!(tensors[1].shape, [SIDE, SIDE]);
    assert!(floats(tensors[3]).iter().all(|value| *value == 0.5), "the input that was sent");
    assert_eq!(tensors[4].data.len(), 2 * cam.len());
    let (scale, zero) = (tensors[5].scale.expect("a scale"), tensors[5].zero_point.expect("a zero point"));
    for (byte, value) in tensors[5].data.iter().zip(&cam) {
        assert!((scale * (f32::from(*byte) - zero as f32) - value).abs() <= scale);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_files_of_the_size_promised() {
    let server = TestServer::start().await;
    let wish = |picture: v1::Picture, format: v1::ImageFormat| v1::PictureOutput {
        picture: picture as i32,
        format: format as i32,
        ..Default::default()
    };
    let pictures = vec![
        wish(v1::Picture::Overlay, v1::ImageFormat::Png),
        wish(v1::Picture::HeatMap, v1::ImageFormat::Unspecified),
        wish(v1::Picture::GuidedGradCam, v1::ImageFormat::Png),
        wish(v1::Picture::GuidedBackprop, v1::ImageFormat::Jpeg),
        wish(v1::Picture::Light, v1::ImageFormat::Png),
    ];
    let options = v1::ExplainOptions { pictures, ..Default::default() };
    let explanation = explain(&server, options, images::frame(0)).await;
    let target = &explanation.targets[0];
    assert!(target.tensors.is_empty(), "nobody asked for numbers");
    let sizes = [(40, 30), (SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE), (40, 30)];
    for (picture, size) in target.pictures.iter().zip(sizes) {
        let decoded = image::load_from_memory(&picture.data).expect("a picture");
        assert_eq!((picture.width, picture.height), size);
        assert_eq!((decoded.width(), decoded.height()), size);
    }
    assert_eq!(target.pictures[1].format(), v1::ImageFormat::Jpeg);

    for picture in [v1::Picture::Overlay, v1::Picture::Light] {
        let options = v1::ExplainOptions { pictures: vec![wish(picture, v1::ImageFormat::Png)], ..Default::default() };
        let asked = request(options, images::sound_tensor(0));
        let status = server.explain().await.explain(asked).await.expect_err("nothing to draw on");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_at_several_layers_come_class_by_class() {
    let server = TestServer::start().await;
    let metadata = server.models().await.get_model(v1::GetModelRequest::default()).await.expect("metadata");
    let metadata = metadata.into_inner().metadata.expect("metadata");
    let spatial: Vec<String> =
        metadata.layers.iter().filter(|layer| layer.spatial).map(|layer| layer.names[0].clone()).collect();
    let layers = vec![spatial[spatial.len() - 1].clone(), spatial[0].clone()];
    let options = v1::ExplainOptions {
        targets: vec![v1::Target { kind: Some(Kind::ClassIndex(0)) }, v1::Target { kind: Some(Kind::Top(2)) }],
        target_layers: layers.clone(),
        tensors: vec![v1::TensorOutput {
            map: v1::Map::GradCam as i32,
            resolution: v1::Resolution::Layer as i32,
            ..Default::default()
        }],
        ..Default::default()
    };
    let explanation = explain(&server, options, images::frame(0)).await;
    let got: Vec<(u32, &str)> = explanation.targets.iter().map(|t| (t.class_index, t.target_layer.as_str())).collect();
    assert_eq!(got[0], (0, layers[0].as_str()));
    assert_eq!(got[1], (0, layers[1].as_str()));
    let classes = if explanation.predictions[..2].iter().any(|p| p.class_index == 0) { 2 } else { 3 };
    assert_eq!(got.len(), classes * 2);
    assert_eq!(explanation.targets[0].tensors[0].resolution(), v1::Resolution::Layer);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_or_version_is_not_found_and_the_message_lists_what_is_there() {
    let server = TestServer::start().await;
    let mut client = server.explain().await;
    let model = |name: &str, version| Some(v1::ModelSelector { name: name.to_owned(), version });
    for (selector, says) in [(model("large", None), SMALL), (model(SMALL, Some(0)), "it has 1")] {
        let request =
            v1::ExplainRequest { model: selector.clone(), frame: Some(images::frame(0)), ..Default::default() };
        let status = client.explain(request).await.expect_err("no such model");
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains(says), "{status}");
        let status = server.models().await.get_model(v1::GetModelRequest { model: selector }).await.expect_err("none");
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_and_described() {
    let server = TestServer::start().await;
    let mut client = server.models().await;
    let list = client.list_models(v1::ListModelsRequest {}).await.expect("a list").into_inner().models;
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].name.as_str(), list[0].version, list[0].class_count), (SMALL, 1, Some(10)));
    assert_eq!(list[0].summary, "A small network");
    let metadata = client.get_model(v1::GetModelRequest::default()).await.expect("metadata").into_inner();
    let metadata = metadata.metadata.expect("metadata");
    assert_eq!(metadata.labels, LABELS);
    assert_eq!(metadata.rectifier_count, 9);
    assert_eq!(metadata.input.expect("an input").shape[1].size, 3);
    assert!(metadata.layers.iter().any(|layer| layer.names.contains(&metadata.default_target_layers[0])));
    assert_eq!(metadata.limits.expect("limits").max_batch, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_beyond_the_limits_is_invalid_and_names_the_limit() {
    let server = TestServer::start_with(|config| config.limits.max_targets = 2).await;
    let mut client = server.explain().await;
    let three = (0..3).map(|n| v1::Target { kind: Some(Kind::ClassIndex(n)) }).collect();
    let wish = v1::TensorOutput { map: v1::Map::GradCam as i32, ..Default::default() };
    let picture = v1::PictureOutput { picture: v1::Picture::Overlay as i32, opacity: Some(2.0), ..Default::default() };
    for (options, says) in [
        (v1::ExplainOptions { targets: three, ..Default::default() }, "at most 2"),
        (v1::ExplainOptions { tensors: vec![wish; 17], ..Default::default() }, "at most 16"),
        (v1::ExplainOptions { tensors: vec![v1::TensorOutput::default()], ..Default::default() }, "GUIDED_GRAD_CAM"),
        (v1::ExplainOptions { pictures: vec![picture], ..Default::default() }, "0 to 1"),
        (v1::ExplainOptions { convention: 9, ..Default::default() }, "CAPTUM"),
        (
            v1::ExplainOptions { predictions_only: Some(true), tensors: vec![wish], ..Default::default() },
            "predictions_only",
        ),
    ] {
        let status = client.explain(request(options, images::frame(0))).await.expect_err(says);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(says), "{status}");
    }
}
