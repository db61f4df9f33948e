//! Bearer tokens.

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::model_service_client::ModelServiceClient;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::certificates::write_secret;
use super::server::{Server, connect};

const FIRST: &str = "first-token-0123456789";
const SECOND: &str = "second-token-0123456789";
const WRONG: &str = "wrong-token-0123456789";

fn with<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
    }
    request
}

async fn list(channel: &Channel, token: Option<&str>) -> Result<(), Status> {
    ModelServiceClient::new(channel.clone()).list_models(with(v1::ListModelsRequest {}, token)).await.map(drop)
}

/// Each of the other calls.
async fn others(channel: &Channel, token: Option<&str>) -> Vec<Result<(), Status>> {
    let mut explain = ExplainServiceClient::new(channel.clone());
    let single = explain.explain(with(v1::ExplainRequest::default(), token)).await.map(drop);
    let open = v1::explain_stream_request::Message::Open(v1::Open::default());
    let requests = tokio_stream::iter([v1::ExplainStreamRequest { message: Some(open) }]);
    let stream = explain.explain_stream(with(requests, token)).await.map(drop);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let requests = tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request }]);
    let reflection =
        match ServerReflectionClient::new(channel.clone()).server_reflection_info(with(requests, token)).await {
            Ok(answers) => answers.into_inner().next().await.expect("an answer").map(drop),
            Err(status) => Err(status),
        };
    vec![single, stream, reflection]
}

fn refused(result: &Result<(), Status>, expected: &str) {
    let status = result.as_ref().expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains(expected), "{status}");
    for token in [FIRST, SECOND, WRONG] {
        assert!(!format!("{status:?}").contains(token), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_need_a_token_of_the_file_as_it_is_now_and_health_needs_none() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    write_secret(&file, &format!("# cameras\nline-4: {FIRST}\n"));
    let mut server = Server::start(&["--token-file", file.to_str().expect("UTF-8")]);
    for token in [FIRST, SECOND, WRONG] {
        server.keep_secret(token);
    }
    let channel = connect(&server.url("http"), None).await.expect("a connection");

    refused(&list(&channel, None).await, "--token-file");
    refused(&list(&channel, Some(WRONG)).await, "none of this server's");
    list(&channel, Some(FIRST)).await.expect("the right token");
    assert!(server.log().contains("TRACE"), "secrets are looked for where everything is logged");
    assert!(server.log().contains("admitted path=\"/camlens.v1.ModelService/ListModels\" token=line-4"));
    for result in others(&channel, None).await {
        refused(&result, "wants a token");
    }
    for result in others(&channel, Some(FIRST)).await {
        let code = result.map_or_else(|status| status.code(), |()| Code::Ok);
        assert_ne!(code, Code::Unauthenticated);
    }
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    health.expect("probes have no token");

    write_secret(&file, &format!("{SECOND}\n"));
    server.wait_for_log("were read again");
    refused(&list(&channel, Some(FIRST)).await, "may have been replaced");
    list(&channel, Some(SECOND)).await.expect("the new token");

    write_secret(&file, "");
    server.wait_for_log("the old ones stay");
    list(&channel, Some(SECOND)).await.expect("an empty file locks nobody out and lets nobody in");
    refused(&list(&channel, None).await, "wants a token");
}
