//! What operators read: pages in plain text, on ports of their own.
//!
//! The admin port ([`super::admin`]) and the probe port ([`super::probes`]) share the pages here, and how their
//! connections are bounded. Both are served while models are being loaded and until the process ends, so that operators
//! see why a server is not ready.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::health::{Readiness, ReadinessSwitch};
use super::quota::slots::{Slot, Slots};
use crate::telemetry::Telemetry;

/// How many connections of one port are open at the same time, and how many of them from one address; more are closed.
const MAX_CONNECTIONS: u32 = 64;
const MAX_CONNECTIONS_PER_PEER: u32 = 32;
/// How long a connection may take to send a request's headers, and, with HTTP/1.1, may stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// How often an idle connection of HTTP/2 is pinged, and how long it has to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The largest body, or message: a log's filter is one line, a service's name is shorter.
pub(super) const MAX_BODY_BYTES: usize = 4096;
/// Bounds on one connection of HTTP/2.
const MAX_HTTP2_STREAMS: u32 = 16;
const MAX_HTTP2_HEAD_BYTES: u32 = 16 << 10;
const HTTP2_WINDOW_BYTES: u32 = 64 << 10;
/// Pause after an error of `accept`, which usually means that there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the pages show.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) telemetry: Telemetry,
    pub(super) readiness: ReadinessSwitch,
}

/// What a port speaks beside HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    /// HTTP/2, too, for clients that begin with its preface.
    Http1AndHttp2,
}

/// A port for operators, bound.
pub(super) struct OperatorPort {
    listener: TcpListener,
    spoken: Spoken,
    /// The port, in the log.
    name: &'static str,
}

impl OperatorPort {
    /// # Errors
    /// When the server cannot listen on the address.
    pub(super) async fn bind(address: &str, name: &'static str, spoken: Spoken) -> io::Result<Self> {
        Ok(OperatorPort { listener: TcpListener::bind(address).await?, spoken, name })
    }

    /// The address that was bound: for port 0, with the real port.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `routes` until it is dropped.
    pub(super) async fn serve(self, routes: Router) {
        let OperatorPort { listener, spoken, name } = self;
        let routes = routes.layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
        let slots = Slots::new(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER);
        loop {
            let (connection, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the {name} could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            match slots.take(Some(peer.ip().to_canonical())) {
                Ok(slot) => {
                    tokio::spawn(serve_connection((connection, peer, slot), routes.clone(), spoken, name));
                }
                Err(full) => tracing::debug!(?full, %peer, "a connection to the {name} was closed"),
            }
        }
    }
}

async fn serve_connection(
    (connection, peer, _slot): (TcpStream, SocketAddr, Slot),
    routes: Router,
    spoken: Spoken,
    name: &'static str,
) {
    let begun = CancellationToken::new();
    let asked = begun.clone();
    let routes = routes.map_request(move |mut request: Request<Incoming>| {
        asked.cancel();
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(MAX_HTTP2_HEAD_BYTES)
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES);
    let builder = if spoken == Spoken::Http1 { builder.http1_only() } else { builder };
    let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes));
    // Until the first request is there, nothing else bounds how long a client may take to say what it speaks.
    let silent = async {
        tokio::time::sleep(HEADER_TIMEOUT).await;
        if begun.is_cancelled() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(%error, %peer, "a connection to the {name} broke");
        },
        () = silent => tracing::debug!(%peer, "a connection to the {name} asked nothing"),
    }
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
