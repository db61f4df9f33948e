//! From a configuration to a server that serves, and to its end.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;

use super::admin::Admin;
use super::calls::WithCalls;
use super::config::ServerConfig;
use super::connections::Connections;
use super::credit::Credit;
use super::deadline::WithDeadline;
use super::health::{HealthService, ReadinessSwitch};
use super::listen::{ListenAddress, ListenError, Listener};
use super::places::Places;
use super::readings;
use super::receiving::{Room, WithRoom};
use super::reclaim::Reclaim;
use super::security::{Security, SecurityError, handshakes};
use super::service::Service;
use super::shutdown::Shutdown;
use super::unsent::Unsent;
use crate::config::{Config, ConfigError};
use crate::explain::Mode;
use crate::frame::{self, PreparationError};
use crate::model::description::Precision;
use crate::model::{LoadLimits, Metadata, Model, ModelError, Repository};
use crate::proto;
use crate::proto::v1::explain_service_server::ExplainServiceServer;
use crate::proto::v1::model_service_server::ModelServiceServer;
use crate::schedule::{
    Engine, EngineConfig, EngineError, ExplainDevice, Served, ServedLimits, SystemClock, WarmUpError, warm_up,
};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::Metrics;
use crate::torch;

/// What a message holds besides a frame's payload.
const AROUND_PAYLOAD_BYTES: u64 = 1 << 20;
/// What a DATA frame may hold. HTTP/2 begins with 16 KiB, which cuts a frame of 224² pixels into ten.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;
/// How long connections have to close once every call has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot listen on {address} (admin.listen): {source}")]
    Admin { address: String, source: io::Error },
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("model {name} version {version}: {source}")]
    Model { name: String, version: i64, source: Box<ModelError> },
    #[error("model {name} version {version}: {source}")]
    Preparation { name: String, version: i64, source: PreparationError },
    #[error(transparent)]
    Repository(Box<ModelError>),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was accepted was answered or told why not.
    Drained,
    /// Somebody had no more time.
    Forced,
}

/// A server that serves.
pub struct Server {
    addresses: Vec<ListenAddress>,
    admin_address: Option<SocketAddr>,
    /// Ends with the server.
    _admin: JoinSet<()>,
    engine: Engine,
    health: HealthService,
    calls: TaskTracker,
    shutdown: Shutdown,
    drain_timeout: Duration,
    /// Told to the transports once every call has ended.
    close: CancellationToken,
    transports: JoinSet<()>,
}

impl Server {
    /// Binds the addresses, loads the models, explains a frame with each of them and serves. When this returns, the server
    /// is ready.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration, an address or a model, in words for the person who starts it.
    pub async fn start(config: &Config, telemetry: Telemetry, shutdown: Shutdown) -> Result<Self, StartError> {
        config.check()?;
        let doors = Doors::open(config, &telemetry).await?;
        let loading = config.clone();
        let engine = on_a_thread_of_its_own(move || load(&loading)).await?;
        Self::serve(config, engine, doors, telemetry, shutdown)
    }

    /// Serves with an engine of one's own, which is taken to be warm.
    pub async fn start_with(
        config: &Config,
        engine: Engine,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        config.check()?;
        let doors = Doors::open(config, &telemetry).await?;
        Self::serve(config, engine, doors, telemetry, shutdown)
    }

    fn serve(
        config: &Config,
        engine: Engine,
        doors: Doors,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let Doors { security, listeners, readiness, admin_address, admin } = doors;
        let drain_timeout = Duration::from_secs(config.server.drain_timeout_s.into());
        let calls = TaskTracker::new();
        let service = Service {
            engine: engine.clone(),
            telemetry: telemetry.clone(),
            limits: config.limits,
            drain_timeout,
            write_timeout: Duration::from_secs(config.server.write_timeout_s.into()),
            reclaim: Reclaim::default(),
            unsent: Unsent::new(config.limits.unsent_bytes),
            credit: Credit::default(),
            places: Places::new(config.limits.max_streams, config.limits.max_streams_per_peer),
            shutdown: shutdown.clone(),
            calls: calls.clone(),
        };
        let health = HealthService::serving(service_names(&engine), readiness);
        let connections = Connections::new(&config.server);
        if let Some(metrics) = telemetry.metrics() {
            readings::observe(metrics, &service, &connections);
        }
        let routes = routes(service, health.clone(), config.limits.max_frame_bytes)?;
        let close = CancellationToken::new();
        let transport = Transport {
            config: config.server.clone(),
            max_frame_bytes: config.limits.max_frame_bytes,
            routes,
            security,
            connections,
            metrics: telemetry.metrics().cloned(),
            room: Room::new(
                config.limits.receiving_bytes,
                max_message_bytes(config.limits.max_frame_bytes) as u64,
                Duration::from_secs(config.server.read_timeout_s.into()),
            ),
            close: close.clone(),
        };
        let mut transports = JoinSet::new();
        let mut addresses = Vec::new();
        for (address, listener) in listeners {
            tracing::info!(%address, "listening");
            addresses.push(address);
            transports.spawn(transport.clone().serve(listener));
        }
        Ok(Server {
            addresses,
            admin_address,
            _admin: admin,
            engine,
            health,
            calls,
            shutdown,
            drain_timeout,
            close,
            transports,
        })
    }

    /// Where the server listens; ports that were asked for as 0 are the real ones.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Where the admin port is, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Serves until the shutdown that was given at the start is requested, then drains: readiness goes NOT_SERVING, each
    /// stream is told, what was accepted is finished, then connections close.
    pub async fn run(mut self) -> Ended {
        let shutdown = self.shutdown.clone();
        shutdown.drain().await;
        let ended = tokio::select! {
            () = self.drain() => Ended::Drained,
            () = shutdown.force() => Ended::Forced,
        };
        let engine = self.engine.clone();
        // It is cancelled when the process ends meanwhile: nothing is left to stop.
        if ended == Ended::Drained
            && let Err(error) = tokio::task::spawn_blocking(move || engine.stop()).await
            && error.is_panic()
        {
            tracing::error!("the engine broke while it stopped");
        }
        tracing::info!(?ended, "stopped");
        ended
    }

    async fn drain(&mut self) {
        tracing::info!(timeout_s = self.drain_timeout.as_secs(), "draining");
        self.health.drain();
        self.calls.close();
        // Streams give up by themselves at the same time; the margin lets them say so.
        if tokio::time::timeout(self.drain_timeout + CLOSE_TIMEOUT, self.calls.wait()).await.is_err() {
            tracing::warn!("calls have not ended in time");
        }
        self.health.end();
        self.close.cancel();
        let closed = async { while self.transports.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::debug!("connections were still open at the end");
        }
    }
}

/// Does the work on a thread that ends with it. A thread of tokio's would stay for ten seconds, and with it the OpenMP threads that
/// libtorch made for its operators: more than there are cores, which makes OpenMP put its threads to sleep at every operator.
async fn on_a_thread_of_its_own<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (alive, ended) = tokio::sync::oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let _alive = alive;
        work()
    });
    // An error, since nothing is ever sent: the thread is at its end, whether it panicked or not.
    let _ = ended.await;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}

/// A message was larger than any that may hold a frame.
pub(super) fn oversized(max_frame_bytes: u64) -> Status {
    Status::resource_exhausted(format!(
        "the message is too large: a frame's payload has at most {max_frame_bytes} bytes (limits.max_frame_bytes)"
    ))
}

/// Above the frame's limit, so that a frame somewhat too large is that frame's error and not the stream's end.
fn max_message_bytes(max_frame_bytes: u64) -> usize {
    usize::try_from(max_frame_bytes + max_frame_bytes / 4 + AROUND_PAYLOAD_BYTES).unwrap_or(usize::MAX)
}

/// What is there before the models are: everything that can be wrong about addresses and certificates is told first.
struct Doors {
    security: Security,
    listeners: Vec<(ListenAddress, Listener)>,
    readiness: ReadinessSwitch,
    admin_address: Option<SocketAddr>,
    admin: JoinSet<()>,
}

impl Doors {
    /// The admin port is served from here on; the others are only bound.
    async fn open(config: &Config, telemetry: &Telemetry) -> Result<Self, StartError> {
        let security = Security::open(&config.server)?;
        let readiness = ReadinessSwitch::starting();
        let (mut admin, mut admin_address) = (JoinSet::new(), None);
        if let Some(address) = &config.admin.listen {
            let cannot = |source| StartError::Admin { address: address.clone(), source };
            let bound = Admin::bind(address, config, telemetry, &readiness).await.map_err(cannot)?;
            let actual = bound.address().map_err(cannot)?;
            tracing::info!(address = %actual, "admin port");
            admin_address = Some(actual);
            admin.spawn(bound.serve());
        }
        let listeners = bind(&config.server).await?;
        Ok(Doors { security, listeners, readiness, admin_address, admin })
    }
}

async fn bind(config: &ServerConfig) -> Result<Vec<(ListenAddress, Listener)>, ListenError> {
    let mut listeners = Vec::new();
    for asked in &config.listen {
        let listener = Listener::bind(asked, config).await?;
        listeners.push((listener.address(asked), listener));
    }
    Ok(listeners)
}

/// Loads every version of every model, starts the engine and proves that it explains with each of them.
fn load(config: &Config) -> Result<Engine, StartError> {
    let limits = config.limits;
    let served_limits = ServedLimits {
        max_batch: limits.max_batch,
        max_targets: limits.max_targets,
        frame: frame::Limits { max_pixels: limits.max_frame_pixels, max_encoded_bytes: limits.max_frame_bytes },
    };
    let load_limits = LoadLimits { max_weight_bytes: config.models.max_weight_bytes, ..LoadLimits::default() };
    let repository =
        Repository::open(&config.models.repository).map_err(|error| StartError::Repository(Box::new(error)))?;
    let (mut models, mut served) = (Vec::new(), Vec::new());
    for entry in repository.entries() {
        for (version, path) in &entry.versions {
            let (name, version) = (entry.name.clone(), *version);
            tracing::info!(name, version, "loading");
            let model = Model::load(&name, version, path, &load_limits).map_err(|source| StartError::Model {
                name: name.clone(),
                version,
                source: Box::new(source),
            })?;
            // What its run at load took: plans would only take it in part.
            torch::give_back_memory();
            let metadata = Arc::clone(&model.metadata);
            let one = Served::new(metadata, served_limits).map_err(|source| StartError::Preparation {
                name,
                version,
                source,
            })?;
            if one.metadata.precision == Precision::Bfloat16 && one.mode != Mode::Bfloat16 {
                let Metadata { name, version, .. } = &*one.metadata;
                tracing::warn!(
                    name,
                    version,
                    "this processor has no bfloat16 (AVX-512 BF16 or Arm BF16): the model runs in float32"
                );
            }
            if let Some(kind) = one.widened_from().filter(|_| one.mode != Mode::Exact) {
                let Metadata { name, version, .. } = &*one.metadata;
                let saved = super::models::element_type(kind);
                tracing::warn!(name, version, "this processor is slow in {saved}: the model runs in float32");
            }
            served.push(Arc::new(one));
            models.push(model);
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let or_cores = |threads: usize| if threads == 0 { cores } else { threads };
    let workers = config.device.workers(cores);
    let engine_config = EngineConfig {
        queued_frames: limits.queued_frames as usize,
        queued_bytes: limits.queued_bytes,
        model_queued_frames: limits.model_queued_frames as usize,
        model_queued_bytes: limits.model_queued_bytes,
        stream_queued_bytes: limits.stream_queued_bytes,
        max_batch_delay: Duration::from_millis(limits.max_batch_delay_ms.into()),
        priority_ageing: Duration::from_millis(limits.priority_ageing_ms.into()),
        frame_threads: or_cores(config.device.frame_threads),
    };
    let first = ExplainDevice::new(models, tch::Device::Cpu);
    let mut devices: Vec<ExplainDevice> = (1..workers.count).map(|_| first.share()).collect();
    devices.push(first);
    let on_its_thread = |mut device: ExplainDevice| {
        let served = served.clone();
        move || {
            tch::set_num_threads(i32::try_from(workers.threads).unwrap_or(i32::MAX));
            // A single worker is warmed by the first frame, which proves the whole way.
            if workers.count > 1 {
                device.warm(&served);
            }
            device
        }
    };
    let devices = devices.into_iter().map(on_its_thread).collect();
    let engine = Engine::start(engine_config, served, devices, Arc::new(SystemClock))?;
    if let Err(error) = warm_up(&engine) {
        engine.stop();
        return Err(error.into());
    }
    Ok(engine)
}

/// What health can be asked about: the whole server, each service, each model.
fn service_names(engine: &Engine) -> Vec<String> {
    let mut names = vec![
        String::new(),
        ExplainServiceServer::<Service>::NAME.to_owned(),
        ModelServiceServer::<Service>::NAME.to_owned(),
    ];
    names.extend(engine.served().iter().map(|model| model.metadata.name.clone()));
    names
}

fn routes(service: Service, health: HealthService, max_frame_bytes: u64) -> Result<Routes, StartError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let explain = ExplainServiceServer::new(service.clone())
        .max_decoding_message_size(max_message_bytes(max_frame_bytes))
        .max_encoding_message_size(usize::MAX);
    Ok(Routes::new(explain)
        .add_service(ModelServiceServer::new(service))
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare())
}

/// What each socket is served with.
#[derive(Clone)]
struct Transport {
    config: ServerConfig,
    max_frame_bytes: u64,
    routes: Routes,
    security: Security,
    connections: Connections,
    metrics: Option<Metrics>,
    room: Room,
    close: CancellationToken,
}

impl Transport {
    /// Serves on one socket until `close`.
    async fn serve(self, listener: Listener) {
        let Transport { config, max_frame_bytes, routes, security, connections, metrics, room, close } = self;
        let keep_alive = Duration::from_secs(config.keep_alive_s.into());
        let name_the_limit = move |response: http::Response<_>| rename_oversized(response, max_frame_bytes);
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes())
            .max_frame_size(HTTP2_FRAME_BYTES)
            .max_concurrent_streams(config.max_streams_per_connection)
            .http2_keepalive_interval(Some(keep_alive))
            .http2_keepalive_timeout(Some(keep_alive))
            .layer(tower::layer::layer_fn(move |services| WithCalls { metrics: metrics.clone(), services }))
            .layer(tower::util::MapResponseLayer::new(name_the_limit))
            .layer(tower::layer::layer_fn(WithDeadline))
            .layer(security.gate())
            .layer(tower::layer::layer_fn(move |services| WithRoom { room: room.clone(), services }))
            .add_routes(routes);
        match (listener, security.tls) {
            (Listener::Tcp(listener), Some(tls)) => connections.serve(router, handshakes(listener, tls), close).await,
            (Listener::Tcp(listener), None) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                connections.serve(router, incoming, close).await;
            }
            (Listener::Unix(listener, _file), _) => {
                connections.serve(router, UnixListenerStream::new(listener), close).await;
            }
        }
    }
}

/// tonic says OUT_OF_RANGE for a message that it may not read, and nothing else here does.
fn rename_oversized<B>(mut response: http::Response<B>, max_frame_bytes: u64) -> http::Response<B> {
    let out_of_range = tonic::Code::OutOfRange as i32;
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok());
    if code.and_then(|code| code.parse().ok()) == Some(out_of_range) {
        // It fails only for a message with control characters, and ours has none.
        let _ = oversized(max_frame_bytes).add_header(response.headers_mut());
    }
    response
}
