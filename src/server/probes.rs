//! The probe port: health over HTTP and over gRPC, and metrics, for whoever can reach the pod.
//!
//! The kubelet and Prometheus dial a pod's address, in plain text and without a token, where the addresses that serve
//! frames are on loopback or speak TLS. So this port shows nothing of frames, of the configuration or of the models
//! beyond their names in metrics, and changes nothing.

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tonic::Status;
use tonic_health::pb::health_server::HealthServer;

use super::health::HealthService;
use super::pages::{self, Pages};
use super::transport::other_protocols::is_grpc;
use crate::http::MAX_BODY_BYTES;

/// Everything that the port answers.
pub(super) fn routes(pages: Pages, health: HealthService) -> Router {
    let health =
        HealthServer::new(health).max_decoding_message_size(MAX_BODY_BYTES).max_encoding_message_size(MAX_BODY_BYTES);
    pages::routes(pages)
        .route_service("/grpc.health.v1.Health/Check", health.clone())
        .route_service("/grpc.health.v1.Health/Watch", health)
        .fallback(elsewhere)
}

/// UNIMPLEMENTED for a call, 404 for any other request.
async fn elsewhere(request: Request) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(is_grpc) {
        let sentence = "this port has probes and metrics alone, and of gRPC grpc.health.v1.Health with Check and \
                        Watch; frames go to the addresses of server.listen";
        return Status::unimplemented(sentence).into_http();
    }
    let sentence = "this port has probes and metrics alone: /livez, /readyz, /metrics, and grpc.health.v1.Health; \
                    other pages are at the admin port (admin.listen)\n";
    (StatusCode::NOT_FOUND, sentence).into_response()
}
