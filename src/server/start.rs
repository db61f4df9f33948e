//! From a configuration to a server that serves, and to its end.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use super::admin::Admin;
use super::health::{HealthService, ReadinessSwitch};
use super::load::load;
use super::quota::credit::Credit;
use super::quota::slots::Places;
use super::quota::unsent::Unsent;
use super::readings;
use super::reclaim::Reclaim;
use super::service::Service;
use super::shutdown::Shutdown;
use super::transport::connections::Connections;
use super::transport::listen::{ListenError, Listener};
use super::transport::receiving::Room;
use super::transport::security::{Security, SecurityError};
use super::transport::serve::{Transport, max_message_bytes};
use crate::config::Config;
use crate::config::ConfigError;
use crate::config::ListenAddress;
use crate::config::ServerConfig;
use crate::frame::PreparationError;
use crate::model::ModelError;
use crate::proto;
use crate::proto::v1::explain_service_server::ExplainServiceServer;
use crate::proto::v1::model_service_server::ModelServiceServer;
use crate::schedule::{Engine, EngineError, WarmUpError};
use crate::telemetry::Telemetry;

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
