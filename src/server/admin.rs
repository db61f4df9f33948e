//! The admin port: plain HTTP for operators, apart from the addresses that serve frames.
//!
//! It is served while models are being loaded and until the process ends, so that operators see why a server is not
//! ready. It reveals no secrets. All that it can change is the log's filter, and only for a caller on the same machine.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::health::{Readiness, ReadinessSwitch};
use crate::config::Config;
use crate::telemetry::{Telemetry, log};

/// How many connections are served at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take to send a request's headers, and may stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// The largest body: a filter is one line.
const MAX_BODY_BYTES: usize = 4096;
/// Pause after an error of `accept`, which usually means that there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the pages show.
#[derive(Clone)]
struct Pages {
    telemetry: Telemetry,
    readiness: ReadinessSwitch,
    config: Arc<str>,
}

/// The admin port, bound.
pub(super) struct Admin {
    listener: TcpListener,
    pages: Router,
}

impl Admin {
    /// # Errors
    /// When the server cannot listen on the address.
    pub(super) async fn bind(
        address: &str,
        config: &Config,
        telemetry: &Telemetry,
        readiness: &ReadinessSwitch,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let pages =
            Pages { telemetry: telemetry.clone(), readiness: readiness.clone(), config: effective(config).into() };
        Ok(Admin { listener, pages: routes(pages) })
    }

    /// The address that was bound: for port 0, with the real port.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(self) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (connection, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let pages = self.pages.clone().map_request(move |mut request: hyper::Request<_>| {
                request.extensions_mut().insert(ConnectInfo(peer));
                request
            });
            tokio::spawn(async move {
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(connection), TowerToHyperService::new(pages))
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, %peer, "a connection to the admin port broke");
                }
                drop(slot);
            });
        }
    }
}

fn routes(pages: Pages) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route("/config", get(config))
        .route("/log", get(log_filter).put(set_log_filter))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(pages)
}

async fn index() -> &'static str {
    "camlens\n\n\
     /livez    the process lives\n\
     /readyz   it can be used: every model has explained a first frame, and it is not draining\n\
     /metrics  for Prometheus\n\
     /version  what was built\n\
     /config   the effective configuration, as TOML\n\
     /log      the log's filter; PUT another one from the same machine: curl -X PUT -d camlens=debug …/log\n"
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    match pages.readiness.now() {
        Readiness::Serving => (StatusCode::OK, "ok\n"),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: models are being loaded and proved\n"),
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

async fn version() -> Json<serde_json::Value> {
    Json(json!({
        "name": "camlens",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": "camlens.v1",
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
    }))
}

async fn config(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, "application/toml")], pages.config.to_string()).into_response()
}

async fn log_filter() -> (StatusCode, String) {
    match log::filter() {
        Some(filter) => (StatusCode::OK, format!("{filter}\n")),
        None => (StatusCode::NOT_FOUND, "there is no log\n".to_owned()),
    }
}

async fn set_log_filter(ConnectInfo(peer): ConnectInfo<SocketAddr>, filter: String) -> (StatusCode, String) {
    if !peer.ip().to_canonical().is_loopback() {
        let message = "the filter is changed only from the same machine (kubectl exec, or port-forward)\n";
        return (StatusCode::FORBIDDEN, message.to_owned());
    }
    match log::set_filter(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "the log's filter was changed");
            (StatusCode::OK, format!("{}\n", filter.trim()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// The effective configuration as TOML, without the credentials in a collector's address. Secret files are shown as
/// paths.
fn effective(config: &Config) -> String {
    let mut shown = config.clone();
    if let Some(endpoint) = &mut shown.telemetry.otlp_endpoint {
        *endpoint = without_credentials(endpoint);
    }
    toml::to_string(&shown).unwrap_or_else(|error| format!("# {error}\n"))
}

/// `http://user:password@host` as `http://…@host`.
fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rfind('@') {
        Some(at) => format!("{scheme}…{}", &rest[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_configuration_is_one_that_can_be_read_again() {
        let mut config = Config::default();
        config.telemetry.otlp_endpoint = Some("https://me:secret@collector:4317/x@y".to_owned());
        let shown = effective(&config);
        assert!(!shown.contains("secret") && !shown.contains("me:"), "{shown}");
        let read: Config = toml::from_str(&shown).expect("it is a configuration");
        assert_eq!(read.telemetry.otlp_endpoint.as_deref(), Some("https://…@collector:4317/x@y"));
        assert_eq!((read.limits, read.server), (config.limits, config.server));
    }

    #[test]
    fn an_address_without_credentials_is_left_as_it_is() {
        for url in ["http://collector:4317", "collector:4317", "http://c/p@th"] {
            assert_eq!(without_credentials(url), url);
        }
    }
}
