//! What operators read: pages in plain text, on ports of their own.
//!
//! The admin port ([`super::admin`]) and the probe port ([`super::probes`]) share the pages here. Both are served while
//! models are being loaded and until the process ends, so that operators see why a server is not ready.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::health::{Readiness, ReadinessSwitch};
use crate::http::{Bounds, Spoken};
use crate::telemetry::Telemetry;

/// A port for operators, before it is bound.
pub(super) struct OperatorPort {
    /// In the log.
    pub(super) name: &'static str,
    /// In `camlens.toml`.
    pub(super) key: &'static str,
    pub(super) spoken: Spoken,
    pub(super) bounds: Bounds,
}

/// What the pages show.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) telemetry: Telemetry,
    pub(super) readiness: ReadinessSwitch,
}

/// The pages of every port for operators.
pub(super) fn routes(pages: Pages) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    match pages.readiness.now() {
        Readiness::Serving => (StatusCode::OK, "ok\n"),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: models are being loaded and proved\n"),
        Readiness::NoModel => (StatusCode::SERVICE_UNAVAILABLE, "no model can run: the log has the causes\n"),
        Readiness::Draining | Readiness::Over => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining: the server is stopping\n")
        }
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let Some(page) = pages.telemetry.metrics().and_then(|metrics| metrics.page()).cloned() else {
        return (StatusCode::NOT_FOUND, "there are no metrics\n").into_response();
    };
    // Some readings call the operating system, which may take a moment.
    let written = tokio::task::spawn_blocking(move || page.write().map(|text| (page.content_type(), text))).await;
    match written {
        Ok(Ok((content_type, text))) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "a reading broke\n").into_response(),
    }
}
