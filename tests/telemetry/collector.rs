//! An OpenTelemetry collector that keeps everything it receives, over gRPC and over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use camlens::telemetry::{Telemetry, TelemetryConfig};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::Router as Services;
use tonic::{Request, Response, Status};

/// Longer than any step of a test takes, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Collector {
    pub address: SocketAddr,
    inbox: Inbox,
    /// A separate runtime: a test may stop its own.
    runtime: Option<tokio::runtime::Runtime>,
}

/// Everything received.
#[derive(Debug, Default)]
pub struct Received {
    pub traces: Vec<ExportTraceServiceRequest>,
    pub metrics: Vec<ExportMetricsServiceRequest>,
    /// The header `x-tenant` of each message.
    pub tenants: Vec<String>,
    /// The header `grpc-encoding` of each message.
    pub encodings: Vec<String>,
}

#[derive(Clone, Default)]
struct Inbox(Arc<Mutex<Received>>);

impl Inbox {
    fn open(&self) -> MutexGuard<'_, Received> {
        self.0.lock().expect("no test panics while it holds this")
    }
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
        let mut inbox = self.open();
        inbox.tenants.push(header("x-tenant"));
        inbox.encodings.push(header("grpc-encoding"));
        inbox.traces.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Inbox {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.open().metrics.push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Binds a listener of `runtime`, from within any other runtime.
fn bind(runtime: &tokio::runtime::Runtime, address: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind(address).expect("a free port");
    listener.set_nonblocking(true).expect("it can be");
    let address = listener.local_addr().expect("a bound address");
    let _entered = runtime.enter();
    (TcpListener::from_std(listener).expect("a runtime"), address)
}

impl Collector {
    /// Starts a collector over gRPC.
    pub fn start() -> Self {
        Self::start_with(|services| services)
    }

    /// Starts a collector over gRPC at a free address.
    pub fn start_at(address: SocketAddr) -> Self {
        Self::listen(address, tonic::transport::Server::builder())
    }

    /// Starts a collector over gRPC with settings of the test, such as TLS.
    pub fn start_with(change: impl FnOnce(tonic::transport::Server) -> tonic::transport::Server) -> Self {
        Self::listen(free(), change(tonic::transport::Server::builder()))
    }

    fn listen(address: SocketAddr, mut server: tonic::transport::Server) -> Self {
        let (runtime, inbox) = (runtime(), Inbox::default());
        let (listener, address) = bind(&runtime, address);
        let services: Services = server
            .add_service(TraceServiceServer::new(inbox.clone()).accept_compressed(CompressionEncoding::Gzip))
            .add_service(MetricsServiceServer::new(inbox.clone()).accept_compressed(CompressionEncoding::Gzip));
        runtime.spawn(services.serve_with_incoming(TcpListenerStream::new(listener)));
        Collector { address, inbox, runtime: Some(runtime) }
    }

    /// Starts a collector over HTTP with protobuf.
    pub fn over_http() -> Self {
        let (runtime, inbox) = (runtime(), Inbox::default());
        let (listener, address) = bind(&runtime, free());
        let (traces, metrics) = (inbox.clone(), inbox.clone());
        let pages = Router::new()
            .route(
                "/v1/traces",
                post(async move |headers: HeaderMap, body: Bytes| {
                    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
                    let tenant = headers.get("x-tenant").and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
                    let mut inbox = traces.open();
                    inbox.tenants.push(tenant);
                    inbox.traces.push(request);
                    StatusCode::OK
                }),
            )
            .route(
                "/v1/metrics",
                post(async move |body: Bytes| {
                    let Ok(request) = ExportMetricsServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
                    metrics.open().metrics.push(request);
                    StatusCode::OK
                }),
            );
        runtime.spawn(async move { axum::serve(listener, pages).await });
        Collector { address, inbox, runtime: Some(runtime) }
    }

    /// `http://HOST:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything received so far.
    pub fn received(&self) -> MutexGuard<'_, Received> {
        self.inbox.open()
    }

    /// All spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        let received = self.received();
        let resources = received.traces.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The metrics of the last message.
    pub fn last_metrics(&self) -> Vec<Metric> {
        let received = self.received();
        let last = received.metrics.last().expect("metrics have come");
        let scopes = last.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| scope.metrics.clone()).collect()
    }

    /// Waits until `condition` holds for everything received.
    pub fn wait_until(&self, what: &str, is: impl Fn(&Received) -> bool) {
        let began = Instant::now();
        while !is(&self.received()) {
            assert!(began.elapsed() < PATIENCE, "{what} did not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A configuration that traces every frame and exports nothing else.
pub fn to(endpoint: impl Into<String>) -> TelemetryConfig {
    TelemetryConfig {
        otlp_endpoint: Some(endpoint.into()),
        trace_ratio: Some(1.0),
        metrics_interval_s: Some(0),
        ..TelemetryConfig::default()
    }
}

pub fn telemetry(config: &TelemetryConfig) -> Telemetry {
    Telemetry::start(config, false).expect("the configuration is in order")
}

/// Exports everything that is queued. Must not be called on a runtime's thread.
pub async fn flush(telemetry: &Telemetry) {
    let telemetry = telemetry.clone();
    let flushed = tokio::task::spawn_blocking(move || telemetry.shutdown(PATIENCE)).await.expect("no panic");
    flushed.expect("the collector takes everything");
}

pub fn attribute<'s>(attributes: &'s [KeyValue], key: &str) -> Option<&'s Value> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    pair.value.as_ref().and_then(|AnyValue { value, .. }| value.as_ref())
}

pub fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attribute(attributes, key)? {
        Value::StringValue(text) => Some(text.clone()),
        other => panic!("{key} is {other:?}"),
    }
}

pub fn integer(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match attribute(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        other => panic!("{key} is {other:?}"),
    }
}
