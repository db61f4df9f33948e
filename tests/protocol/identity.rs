//! The built-in model `identity` on the real engine: its results equal those computed by hand.

use camlens::model::import::identity;
use camlens::proto::v1;
use camlens::proto::v1::frame::Payload;
use camlens::proto::v1::target::Kind;

use super::images;
use super::server::TestServer;

/// Rows and columns of the target layer's grid.
const GRID: usize = 7;
const GREEN: u32 = 1;

/// A picture `[3, side, side]` that has one colour in each cell of the grid.
fn squares(side: usize) -> Vec<f32> {
    let shade = |colour: usize, row: usize, column: usize| {
        (colour * 5 + row * GRID / side * 3 + column * GRID / side) as f32 / 64.0 - 0.2
    };
    let places = (0..3).flat_map(|c| (0..side).flat_map(move |y| (0..side).map(move |x| (c, y, x))));
    places.map(|(c, y, x)| shade(c, y, x)).collect()
}

fn frame(side: usize) -> v1::Frame {
    let data: Vec<u8> = squares(side).into_iter().flat_map(f32::to_le_bytes).collect();
    let shape = vec![3, side as u32, side as u32];
    images::with(1, Payload::Tensor(v1::Tensor { shape, data: data.into(), ..Default::default() }))
}

async fn identity_server() -> TestServer {
    TestServer::start_with(|config| config.models.repository = identity::PLACE.into()).await
}

async fn explain(server: &TestServer, precision: v1::Precision, side: usize) -> v1::Explanation {
    let map = |map: v1::Map, resolution: v1::Resolution| v1::TensorOutput {
        map: map as i32,
        resolution: resolution as i32,
        ..Default::default()
    };
    let options = v1::ExplainOptions {
        tensors: vec![
            map(v1::Map::GradCam, v1::Resolution::Layer),
            map(v1::Map::GradCam, v1::Resolution::Model),
            map(v1::Map::GuidedBackprop, v1::Resolution::Model),
            map(v1::Map::GuidedGradCam, v1::Resolution::Model),
        ],
        targets: vec![v1::Target { kind: Some(Kind::Label("green".to_owned())) }],
        precision: precision as i32,
        ..Default::default()
    };
    let request = v1::ExplainRequest { options: Some(options), frame: Some(frame(side)), ..Default::default() };
    let response = server.explain().await.explain(request).await.expect("an answer");
    response.into_inner().explanation.expect("an explanation")
}

fn floats(target: &v1::TargetExplanation, map: usize) -> Vec<f32> {
    let tensor = target.tensors[map].tensor.as_ref().expect("numbers");
    tensor.data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
}

/// Equal within the rounding of a sum of a thousand floats; `scale` is the magnitude of the values.
fn near(got: f32, want: f32, scale: f32, what: &str) {
    assert!((got - want).abs() <= 1e-4 * scale, "{what}: {got} is not {want}");
}

/// With `P` the means of green over the 7 × 7 cells: the logit is their mean, so that `∂y/∂P = 1/49` everywhere,
/// Grad-CAM is `max(P / 49, 0)`, and each green pixel's gradient is `1 / side²`; red and blue have none.
fn check(explanation: &v1::Explanation, side: usize) {
    let pixels = squares(side);
    let green = &pixels[side * side..2 * side * side];
    let [target] = explanation.targets.as_slice() else { panic!("one target") };
    assert_eq!((target.class_index, target.target_layer.as_str()), (GREEN, identity::LAYER));
    let mean = green.iter().map(|&shade| f64::from(shade)).sum::<f64>() / green.len() as f64;
    near(target.score, mean as f32, 0.1, "the logit");

    let (layer_map, cam, guided, fused) = (floats(target, 0), floats(target, 1), floats(target, 2), floats(target, 3));
    assert_eq!((layer_map.len(), cam.len(), fused.len()), (GRID * GRID, side * side, 3 * side * side));
    for (place, got) in layer_map.iter().enumerate() {
        // Any pixel of the cell: all have one colour.
        let (y, x) = (place / GRID * side / GRID, place % GRID * side / GRID);
        near(*got, green[y * side + x].max(0.0) / 49.0, 0.1 / 49.0, "Grad-CAM at the layer");
    }
    assert!(layer_map.contains(&0.0), "some places speak against it");
    let gradient = 1.0 / (side * side) as f32;
    for (index, got) in guided.iter().enumerate() {
        let is_green = index / (side * side) == GREEN as usize;
        near(*got, if is_green { gradient } else { 0.0 }, gradient, "the gradient");
        near(fused[index], got * cam[index % cam.len()], gradient * 0.1 / 49.0, "Guided Grad-CAM");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_gives_the_means_and_gradients_that_mathematics_says_at_any_size() {
    let server = identity_server().await;
    for precision in [v1::Precision::Float32, v1::Precision::Exact] {
        for side in [7, 28, 224] {
            check(&explain(&server, precision, side).await, side);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_says_what_it_is() {
    let server = identity_server().await;
    let explanation = explain(&server, v1::Precision::Float32, 28).await;
    let labels: Vec<&str> = explanation.predictions.iter().map(|prediction| prediction.label.as_str()).collect();
    assert_eq!(labels, ["blue", "green", "red"], "by their logits");
    let notices: Vec<_> = explanation.notices.iter().map(|notice| notice.code()).collect();
    assert!(notices.contains(&v1::notice::Code::NoRectifier), "{notices:?}");
    let response = server.models().await.get_model(v1::GetModelRequest::default()).await.expect("the only model");
    let metadata = response.into_inner().metadata.expect("what it is");
    let model = metadata.identity.expect("a name");
    assert_eq!((model.name.as_str(), model.version, model.digest.len()), (identity::NAME, 1, 64));
    assert_eq!((metadata.rectifier_count, metadata.class_count), (0, Some(3)));
    assert_eq!(metadata.default_target_layers, [identity::LAYER]);
    assert!(metadata.summary.starts_with("No network"), "{}", metadata.summary);
}
