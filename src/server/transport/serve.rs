//! Serves the routes on one socket: HTTP/2 settings, layers, TLS.

use std::time::Duration;

use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::config::ServerConfig;
use crate::server::transport::calls::{MethodName, WithCalls};
use crate::server::transport::checks::{MAX_HEAD_BYTES, UnknownMethod, WithCheck, metadata_fits, method_is_known};
use crate::server::transport::compression::{Coders, WithCompression};
use crate::server::transport::connections::Connections;
use crate::server::transport::deadline::WithDeadline;
use crate::server::transport::listen::Listener;
use crate::server::transport::other_protocols::{Answers, WithGrpcAlone};
use crate::server::transport::receiving::{ReceiveBudget, WithReceiveBudget};
use crate::server::transport::security::Security;
use crate::server::transport::security::handshakes;
use crate::telemetry::metrics::Metrics;

/// Upper bound on what a message holds besides a frame's payload.
const AROUND_PAYLOAD_BYTES: u64 = 1 << 20;

/// Size of an HTTP/2 DATA frame. The default of 16 KiB splits an image of 224² pixels into ten.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;

/// What each socket is served with. Cheap to clone.
#[derive(Clone)]
pub(in crate::server) struct Transport {
    pub config: ServerConfig,
    pub max_frame_bytes: u64,
    pub routes: Routes,
    pub security: Security,
    pub connections: Connections,
    pub metrics: Option<Metrics>,
    pub method_name: MethodName,
    pub unknown_method: UnknownMethod,
    /// For requests that are no calls.
    pub answers: Answers,
    pub receive_budget: ReceiveBudget,
    pub coders: Coders,
    pub close: CancellationToken,
}

impl Transport {
    /// Serves on one socket until `close`.
    pub async fn serve(self, listener: Listener) {
        let Transport {
            config,
            max_frame_bytes,
            routes,
            security,
            connections,
            metrics,
            method_name,
            unknown_method,
            answers,
            receive_budget,
            coders,
            close,
        } = self;
        let keep_alive = Duration::from_secs(config.keep_alive_s.into());
        let name_the_limit = move |response: http::Response<_>| rename_oversized(response, max_frame_bytes);
        let (to_requests, to_connections) = (answers.clone(), answers);
        let budget = receive_budget.clone();
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes())
            .max_frame_size(HTTP2_FRAME_BYTES)
            .max_concurrent_streams(config.max_streams_per_connection)
            .http2_keepalive_interval(Some(keep_alive))
            .http2_keepalive_timeout(Some(keep_alive))
            .http2_max_header_list_size(MAX_HEAD_BYTES)
            .layer(tower::layer::layer_fn(move |services| WithGrpcAlone { answers: to_requests.clone(), services }))
            .layer(tower::layer::layer_fn(move |services| WithCalls {
                metrics: metrics.clone(),
                method_name,
                services,
            }))
            .layer(tower::util::MapResponseLayer::new(name_the_limit))
            .layer(tower::layer::layer_fn(WithDeadline))
            .layer(tower::layer::layer_fn(|services| WithCheck { check: metadata_fits, services }))
            .layer(security.gate())
            .layer(tower::layer::layer_fn(move |services| WithCheck {
                check: move |request: &mut http::Request<_>| method_is_known(unknown_method, request),
                services,
            }))
            .layer(tower::layer::layer_fn(move |services| WithReceiveBudget {
                budget: receive_budget.clone(),
                services,
            }))
            .layer(tower::layer::layer_fn(move |services| WithCompression {
                coders: coders.clone(),
                budget: budget.clone(),
                max_frame_bytes,
                services,
            }))
            .add_routes(routes);
        match (listener, security.tls) {
            (Listener::Tcp(listener), Some(tls)) => {
                connections.serve(router, handshakes(listener, tls), to_connections, close).await;
            }
            (Listener::Tcp(listener), None) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                connections.serve(router, incoming, to_connections, close).await;
            }
            (Listener::Unix(listener, _file), _) => {
                connections.serve(router, UnixListenerStream::new(listener), to_connections, close).await;
            }
            (Listener::InProcess(incoming), _) => {
                let incoming = ReceiverStream::new(incoming).map(Ok);
                connections.serve(router, incoming, to_connections, close).await;
            }
        }
    }
}

/// tonic answers OUT_OF_RANGE to a message above its size limit, and nothing else in the server does.
fn rename_oversized<B>(mut response: http::Response<B>, max_frame_bytes: u64) -> http::Response<B> {
    let out_of_range = tonic::Code::OutOfRange as i32;
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    if code.and_then(|code| code.parse().ok()) == Some(out_of_range) {
        // This fails only for messages with control characters.
        let _ = oversized(max_frame_bytes).add_header(response.headers_mut());
    }
    response
}

/// The status for a message larger than [`max_message_bytes`].
pub(in crate::server) fn oversized(max_frame_bytes: u64) -> Status {
    Status::resource_exhausted(format!(
        "the message is too large: a frame's payload has at most {max_frame_bytes} bytes (limits.max_frame_bytes)"
    ))
}

/// The size limit of a message. It is above the frame's limit, so that a frame that is a little too large is refused as
/// a frame and does not end its stream.
pub(in crate::server) fn max_message_bytes(max_frame_bytes: u64) -> usize {
    usize::try_from(max_frame_bytes + max_frame_bytes / 4 + AROUND_PAYLOAD_BYTES).unwrap_or(usize::MAX)
}
