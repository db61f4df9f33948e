//! A model's precision: in its description, in a request, and in the answer.

use std::path::Path;

use camlens::plan::computes_in;
use camlens::proto::v1;
use camlens::proto::v1::Precision;
use camlens::torch::has_bfloat16;
use tch::Kind;
use tonic::{Code, Status};

use super::images;
use super::server::{SMALL, TestServer, device};

async fn server(precision: &str) -> TestServer {
    let described = format!("[explain]\nprecision = {precision:?}\n");
    TestServer::start_with(|config| {
        let description = config.models.repository.join(SMALL).join("1/model.toml");
        std::fs::write(description, described).expect("a file");
    })
    .await
}

async fn ask(server: &TestServer, precision: Precision) -> Result<v1::Explanation, Status> {
    let options = v1::ExplainOptions { precision: precision as i32, ..Default::default() };
    let request = v1::ExplainRequest { options: Some(options), frame: Some(images::frame(1)), ..Default::default() };
    Ok(server.explain().await.explain(request).await?.into_inner().explanation.expect("an explanation"))
}

async fn runs_in(server: &TestServer, precision: Precision) -> Precision {
    ask(server, precision).await.expect("an answer").model.expect("a model").precision()
}

async fn described(server: &TestServer) -> v1::ModelMetadata {
    let response = server.models().await.get_model(v1::GetModelRequest::default()).await.expect("metadata");
    response.into_inner().metadata.expect("metadata")
}

#[tokio::test(flavor = "multi_thread")]
async fn float32_is_what_runs_unless_exact_is_asked_for() {
    let server = server("float32").await;
    assert_eq!(runs_in(&server, Precision::Unspecified).await, Precision::Float32);
    assert_eq!(runs_in(&server, Precision::Float32).await, Precision::Float32);
    assert_eq!(runs_in(&server, Precision::Exact).await, Precision::Exact);
    assert_eq!(described(&server).await.reduced_precision, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_described_as_exact_is_exact_whatever_is_asked() {
    let server = server("exact").await;
    for asked in [Precision::Unspecified, Precision::Float32, Precision::Exact, Precision::Bfloat16] {
        assert_eq!(runs_in(&server, asked).await, Precision::Exact);
    }
    assert_eq!(described(&server).await.identity.expect("an identity").precision(), Precision::Exact);
}

#[tokio::test(flavor = "multi_thread")]
async fn bfloat16_that_the_model_is_not_offered_in_is_refused() {
    let server = server("float32").await;
    let status = ask(&server, Precision::Bfloat16).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("options.precision"), "{status}");
    assert!(status.message().contains("explain.precision = \"bfloat16\""), "{status}");
}

/// With bfloat16 instructions the model runs in bfloat16 and reports its distance from float32; without, in float32.
#[tokio::test(flavor = "multi_thread")]
async fn bfloat16_is_used_where_the_processor_has_it_and_every_answer_tells() {
    let server = server("bfloat16").await;
    let about = described(&server).await;
    let explanation = ask(&server, Precision::Unspecified).await.expect("an answer");
    let notice = explanation.notices.iter().find(|notice| notice.code() == v1::notice::Code::ReducedPrecision);
    if has_bfloat16() {
        let found = about.reduced_precision.expect("measured at the start");
        assert!(found.map_cosine > 0.95 && found.map_cosine < 1.0, "{found:?}");
        assert!(found.logit_difference > 0.0 && found.logit_difference < 1.0, "{found:?}");
        assert!(notice.expect("a notice").message.contains(&format!("{:.4}", found.map_cosine)));
        assert_eq!(explanation.model.expect("a model").precision(), Precision::Bfloat16);
        assert_eq!(runs_in(&server, Precision::Bfloat16).await, Precision::Bfloat16);
    } else {
        assert_eq!((about.reduced_precision, notice), (None, None));
        assert_eq!(explanation.model.expect("a model").precision(), Precision::Float32);
        let status = ask(&server, Precision::Bfloat16).await.expect_err("refused");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("processor has no bfloat16"), "{status}");
    }
    let full = ask(&server, Precision::Float32).await.expect("an answer");
    assert_eq!(full.model.expect("a model").precision(), Precision::Float32);
    assert!(full.notices.iter().all(|notice| notice.code() != v1::notice::Code::ReducedPrecision));
}

/// A server of a model that was saved in float16 or bfloat16.
async fn server_of(fixture: &str) -> TestServer {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/conformance/{fixture}/1/model.pt2"));
    TestServer::start_with(|config| {
        let folder = config.models.repository.join(SMALL).join("1");
        std::fs::copy(fixture, folder.join("model.pt2")).expect("the fixture is there");
        std::fs::write(folder.join("model.toml"), "").expect("a file");
    })
    .await
}

/// Where the device computes in the dtype, the model runs as it was saved, and every answer says so.
/// Elsewhere it runs in float32, and the metadata and every answer say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_saved_in_half_precision_is_explained_on_any_processor() {
    for (fixture, kind, saved_in) in [("half", Kind::Half, "float16"), ("bfloat16", Kind::BFloat16, "bfloat16")] {
        let server = server_of(fixture).await;
        let about = described(&server).await;
        assert_eq!(about.input.expect("an input").element_type, saved_in);
        assert_eq!(about.reduced_precision, None);
        let widened = about.widened_precision.map(|widened| widened.saved_in);
        assert_eq!(widened.as_deref(), (!computes_in(device(), kind)).then_some(saved_in));
        for (asked, runs_in) in [
            (Precision::Unspecified, Precision::Float32),
            (Precision::Float32, Precision::Float32),
            (Precision::Exact, Precision::Exact),
        ] {
            let explanation = ask(&server, asked).await.expect("an answer");
            assert_eq!(explanation.model.expect("a model").precision(), runs_in);
            assert!(explanation.predictions.iter().all(|prediction| prediction.logit.is_finite()));
            let notice = |code| explanation.notices.iter().find(|notice| notice.code() == code);
            let reduced = notice(v1::notice::Code::ReducedPrecision);
            let notice = notice(v1::notice::Code::WidenedPrecision);
            let is_told = !computes_in(device(), kind) && runs_in == Precision::Float32;
            assert_eq!(notice.map(|notice| notice.message.contains(saved_in)), is_told.then_some(true), "{asked:?}");
            assert_eq!(
                reduced.map(|notice| notice.message.contains(saved_in)),
                (!is_told).then_some(true),
                "{asked:?}"
            );
        }
        let status = ask(&server, Precision::Bfloat16).await.expect_err("refused");
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
}
