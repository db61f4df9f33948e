//! Models whose inputs may have some sizes and not others: what the exported program declares, and what its operators
//! cannot compute.

use std::path::Path;

use camlens::proto::v1;
use camlens::proto::v1::frame::Payload;
use camlens::server::{Server, Shutdown};
use camlens::telemetry::Telemetry;
use tonic::{Code, Status};

use super::images;
use super::server::TestServer;

/// `tests/fixtures/sizes` (`tests/reference/sizes.py`).
async fn start() -> TestServer {
    TestServer::start_with(|config| {
        config.models.repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sizes/models");
    })
    .await
}

async fn explain(server: &TestServer, model: &str, frame: v1::Frame) -> Result<v1::Explanation, Status> {
    let model = Some(v1::ModelSelector { name: model.to_owned(), version: None });
    let request = v1::ExplainRequest { model, frame: Some(frame), ..Default::default() };
    Ok(server.explain().await.explain(request).await?.into_inner().explanation.expect("an explanation"))
}

fn tensor(height: u32, width: u32) -> v1::Frame {
    images::tensor(0, [3, height, width], 0.5)
}

fn picture(height: u32, width: u32) -> v1::Frame {
    let data = vec![90; (3 * height * width) as usize].into();
    let pixel_format = v1::PixelFormat::Rgb8 as i32;
    images::with(0, Payload::Raw(v1::RawImage { data, width, height, pixel_format, ..Default::default() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_the_program_excludes_is_refused_with_what_is_allowed() {
    let server = start().await;
    let range = "[3, a height of 32 to 128, a width of at least 32]";
    let multiple = "[3, a height that is a multiple of 4, a width that is a multiple of 4]";
    let square = "[3, any height, the same width]";
    type SizesOf<'a> = &'a [(u32, u32)];
    let cases: [(&str, SizesOf<'_>, SizesOf<'_>, &str); 3] = [
        ("ranged", &[(32, 32), (128, 300)], &[(31, 64), (129, 64), (64, 16)], range),
        ("multiple_of_4", &[(4, 8), (60, 88)], &[(65, 64), (50, 50), (66, 67)], multiple),
        ("square", &[(20, 20), (65, 65)], &[(20, 21)], square),
    ];
    for (model, good, bad, allowed) in cases {
        for &(height, width) in good {
            for frame in [tensor(height, width), picture(height, width)] {
                let answer = explain(&server, model, frame).await;
                answer.unwrap_or_else(|status| panic!("{model} {height}×{width}: {status}"));
            }
        }
        for &(height, width) in bad {
            for frame in [tensor(height, width), picture(height, width)] {
                let status = explain(&server, model, frame).await.expect_err("it is not allowed");
                assert_eq!(status.code(), Code::InvalidArgument, "{model} {height}×{width}: {status}");
                assert!(status.message().contains(allowed), "{model} {height}×{width}: {status}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_fails_on_a_size_is_the_frames_error_and_names_the_size() {
    let server = start().await;
    explain(&server, "undeclared", tensor(60, 88)).await.expect("both maps agree");
    for _ in 0..2 {
        let status = explain(&server, "undeclared", tensor(50, 88)).await.expect_err("its maps do not agree");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("an input of 50×88 (height × width)"), "{status}");
        assert!(status.message().contains("exported with 64×64"), "{status}");
    }
    explain(&server, "undeclared", tensor(60, 88)).await.expect("the model works on");
}

#[tokio::test(flavor = "multi_thread")]
async fn get_model_tells_the_sizes() {
    let server = start().await;
    let get = async |name: &str| {
        let model = Some(v1::ModelSelector { name: name.to_owned(), version: None });
        let answer = server.models().await.get_model(v1::GetModelRequest { model }).await.expect("it is served");
        let metadata = answer.into_inner().metadata.expect("metadata");
        (metadata.input.expect("an input").shape, metadata.limits.expect("limits").max_batch)
    };
    let info = |min_size, max_size, step, variable: &str| v1::DimensionInfo {
        size: 64,
        dynamic: true,
        min_size,
        max_size,
        step,
        variable: variable.to_owned(),
    };
    let (ranged, max_batch) = get("ranged").await;
    assert_eq!(ranged[2..], [info(32, Some(128), 1, ""), info(32, None, 1, "")]);
    assert_eq!((ranged[0].max_size, max_batch), (Some(4), 4));
    let (multiple, _) = get("multiple_of_4").await;
    assert_eq!(multiple[2..], [info(4, None, 4, ""), info(4, None, 4, "")]);
    let (square, _) = get("square").await;
    assert!(!square[2].variable.is_empty() && square[2] == square[3], "{square:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_no_size_can_meet_is_found_at_load() {
    let cases = [
        ("multiple_of_4", "resize = [64, 66]", "input.resize of model.toml makes 64×66"),
        ("multiple_of_4", "resize = 64\ncrop = [50, 50]", "input.crop of model.toml makes 50×50"),
        ("multiple_of_4", "resize = 50", "the shorter side 50"),
        ("ranged", "resize = 16", "the shorter side 16"),
        ("square", "crop = [32, 30]", "the same width"),
    ];
    for (name, steps, says) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let version = folder.path().join(name).join("1");
        std::fs::create_dir_all(&version).expect("a folder");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sizes/models");
        std::fs::copy(fixtures.join(name).join("1/model.pt2"), version.join("model.pt2")).expect("the fixture");
        std::fs::write(version.join("model.toml"), format!("[input]\n{steps}\n")).expect("a file");
        let mut config = camlens::config::Config::default();
        config.server.listen = vec![camlens::config::ListenAddress::Unix(folder.path().join("camlens.sock"))];
        config.models.repository = folder.path().to_owned();
        let error = Server::start(&config, Telemetry::disabled(), Shutdown::new()).await.err();
        let error = error.unwrap_or_else(|| panic!("{name} with {steps} is refused")).to_string();
        assert!(error.contains(says), "{name} with {steps}: {error}");
    }
}
