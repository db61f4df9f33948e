//! A port for HTTP whose connections are bounded in number, in what they may send and in how long they may wait.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::slots::{Slot, Slots};
use super::stalled::UnlessStalled;

/// How long a connection may take to send a request's headers, and, with HTTP/1.1, may stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// How often an idle connection of HTTP/2 is pinged, and how long it has to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest body, or message: a log's filter is one line, a service's name is shorter.
pub const MAX_BODY_BYTES: usize = 4096;
/// Bounds on one connection of HTTP/2.
const MAX_HTTP2_STREAMS: u32 = 16;
const MAX_HTTP2_HEAD_BYTES: u32 = 16 << 10;
const HTTP2_WINDOW_BYTES: u32 = 64 << 10;
/// Pause after an error of `accept`, which usually means that there are no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a port speaks beside HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    /// HTTP/2, too, for clients that begin with its preface.
    Http1AndHttp2,
}

/// How many connections of a port are open at the same time, and how many of them from one address; more are closed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: u32,
    pub per_peer: u32,
}

/// A port, bound.
pub struct Port {
    listener: TcpListener,
    spoken: Spoken,
    bounds: Bounds,
    /// The port, in the log.
    name: &'static str,
}

impl Port {
    /// # Errors
    /// When the server cannot listen on the address.
    pub async fn bind(address: &str, name: &'static str, spoken: Spoken, bounds: Bounds) -> io::Result<Self> {
        Ok(Port { listener: TcpListener::bind(address).await?, spoken, bounds, name })
    }

    /// The address that was bound: for port 0, with the real port.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `routes` until it is dropped.
    pub async fn serve(self, routes: Router) {
        let Port { listener, spoken, bounds, name } = self;
        let routes = routes.layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
        let slots = Slots::new(bounds.connections, bounds.per_peer);
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
    let connection = UnlessStalled::new(connection, WRITE_TIMEOUT);
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
