//! From a configuration to a server that serves, and to its end.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin;
use super::camlens;
use super::camlens::repository::Administration;
use super::devices::Devices;
use super::health::HealthService;
use super::live_page::LivePage;
use super::load::{Loaded, load};
use super::own_thread::on_a_thread_of_its_own;
use super::pages::{OperatorPort, Pages};
use super::probes;
use super::readings;
use super::repository::{Keeper, keep};
use super::resize;
use super::routes::{method_name, routes, unknown_method};
use super::service::Service;
use super::shutdown::Shutdown;
use super::start_error::StartError;
use super::transport::compression::Coders;
use super::transport::connections::Connections;
use super::transport::listen::{InProcess, ListenError, Listener};
use super::transport::other_protocols::Answers;
use super::transport::receiving::ReceiveBudget;
use super::transport::security::Security;
use super::transport::serve::{Transport, max_message_bytes};
use crate::config::Config;
use crate::config::DeviceConfig;
use crate::config::ListenAddress;
use crate::config::ServerConfig;
use crate::http::{Bounds, Port, Spoken};
use crate::resources::Machine;
use crate::schedule::Engine;
use crate::telemetry::Telemetry;
use crate::view::Hub;

/// The time that connections have to close once every call has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The time that batches on the devices have to end then. Nobody waits for their results any more, and threads that run
/// in the background may get no processor time.
const BATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections of a port for operators.
const OPERATORS: Bounds = Bounds { connections: 64, per_peer: 32 };

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every accepted frame was answered or dropped with a reason.
    Drained,
    /// A second signal ended it before that.
    Forced,
    /// A device failed in a way that lasts until the process ends.
    DeviceLost,
}

/// A server that serves.
pub struct Server {
    addresses: Vec<ListenAddress>,
    operators: Operators,
    engine: Engine,
    health: HealthService,
    calls: TaskTracker,
    shutdown: Shutdown,
    drain_timeout: Duration,
    /// Cancelled once every call has ended, which ends the transports.
    close: CancellationToken,
    transports: JoinSet<()>,
}

impl Server {
    /// Binds the addresses, loads the models, explains a frame with each of them and serves. When this returns, the
    /// server is ready.
    ///
    /// # Errors
    /// A fault of the configuration, an address or a model, in words for the operator.
    pub async fn start(config: &Config, telemetry: Telemetry, shutdown: Shutdown) -> Result<Self, StartError> {
        config.check()?;
        let config = &within_memory(config);
        let doors = Doors::open(config, &telemetry).await?;
        Self::load_and_serve(config, doors, telemetry, shutdown).await
    }

    /// The same for clients in this process alone: it listens nowhere, whatever `server.listen` says.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_in_process(
        config: &Config,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<(Self, InProcess), StartError> {
        config.check()?;
        let config = &within_memory(config);
        let (listener, in_process) = InProcess::pair();
        let doors = Doors { in_process: Some(listener), ..Doors::behind(config, &telemetry).await? };
        Ok((Self::load_and_serve(config, doors, telemetry, shutdown).await?, in_process))
    }

    /// Serves with an engine that the caller has started and warmed up.
    pub async fn start_with(
        config: &Config,
        engine: Engine,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        config.check()?;
        let config = &within_memory(config);
        let doors = Doors::open(config, &telemetry).await?;
        let devices = Devices::find(&DeviceConfig::default(), 1)?;
        Self::serve(config, (engine, devices), None, doors, telemetry, shutdown)
    }

    async fn load_and_serve(
        config: &Config,
        doors: Doors,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let loading = config.clone();
        let Loaded { engine, devices, keeper } = on_a_thread_of_its_own(move || load(&loading)).await?;
        Self::serve(config, (engine, devices), Some(keeper), doors, telemetry, shutdown)
    }

    fn serve(
        config: &Config,
        (engine, devices): (Engine, Devices),
        keeper: Option<Keeper>,
        doors: Doors,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Result<Self, StartError> {
        let Doors { security, listeners, in_process, health, administration, operators } = doors;
        let close = CancellationToken::new();
        let mut transports = JoinSet::new();
        let repository = keeper.map(|keeper| {
            let poll = (config.models.poll_s > 0).then(|| Duration::from_secs(config.models.poll_s.into()));
            let (repository, kept) = keep(keeper, poll, close.clone());
            transports.spawn(kept);
            administration.serve(repository.clone());
            repository
        });
        let service = Service::new(config, (engine.clone(), devices), repository, telemetry.clone(), shutdown.clone())
            .with_view(operators.hub.clone());
        let (calls, drain_timeout) = (service.calls.clone(), service.drain_timeout);
        health.serve(engine.watch_models());
        let connections = Connections::new(&config.server);
        if let Some(metrics) = telemetry.metrics() {
            readings::observe(metrics, &service, &connections);
        }
        let routes = routes(service, health.clone(), config.limits.max_frame_bytes)?;
        let cores = Machine::this().resources().threads();
        let transport = Transport {
            config: config.server.clone(),
            max_frame_bytes: config.limits.max_frame_bytes,
            routes,
            security,
            connections,
            metrics: telemetry.metrics().cloned(),
            method_name,
            unknown_method,
            answers: Answers { admin: operators.admin, probes: operators.probes },
            coders: Coders::new(config.device.connection_threads_of(cores)),
            receive_budget: ReceiveBudget::new(
                config.limits.receiving_bytes,
                max_message_bytes(config.limits.max_frame_bytes) as u64,
                Duration::from_secs(config.server.read_timeout_s.into()),
            ),
            close: close.clone(),
        };
        let mut addresses = Vec::new();
        for (address, listener) in listeners {
            tracing::info!(%address, "listening");
            addresses.push(address);
            transports.spawn(transport.clone().serve(listener));
        }
        if let Some(listener) = in_process {
            transports.spawn(transport.serve(listener));
        }
        if config.device.threads == 0 {
            transports.spawn(resize::follow(Machine::this(), close.clone()));
        }
        Ok(Server { addresses, operators, engine, health, calls, shutdown, drain_timeout, close, transports })
    }

    /// The addresses that the server listens on, with real ports where the configuration has 0.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The address of the admin port, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.operators.admin
    }

    /// The address of the probe port, if there is one.
    pub fn probe_address(&self) -> Option<SocketAddr> {
        self.operators.probes
    }

    /// The address of the live page, if there is one.
    pub fn view_address(&self) -> Option<SocketAddr> {
        self.operators.view
    }

    /// Serves until the shutdown that was given at the start is requested, then drains: readiness goes NOT_SERVING,
    /// each stream gets `GoingAway`, accepted frames are finished, then connections close.
    pub async fn run(mut self) -> Ended {
        let shutdown = self.shutdown.clone();
        let mut lost = self.engine.watch_lost();
        let is_lost = tokio::select! {
            () = shutdown.drain() => false,
            lost = lost.wait_for(Option::is_some) => {
                let why = lost.ok().and_then(|lost| lost.clone());
                tracing::error!(why, "a device fails until the process ends: the server stops");
                shutdown.request();
                true
            }
        };
        let ended = tokio::select! {
            () = self.drain() => if is_lost { Ended::DeviceLost } else { Ended::Drained },
            () = shutdown.force() => Ended::Forced,
        };
        if ended != Ended::Forced {
            self.stop_engine().await;
        }
        tracing::info!(?ended, "stopped");
        ended
    }

    async fn stop_engine(&self) {
        let engine = self.engine.clone();
        // The task is cancelled if the process ends first: nothing is left to stop.
        let stopped = tokio::task::spawn_blocking(move || engine.stop());
        match tokio::time::timeout(BATCH_TIMEOUT, stopped).await {
            Ok(Err(error)) if error.is_panic() => tracing::error!("the engine broke while it stopped"),
            Ok(_) => {}
            Err(_) => tracing::warn!("a batch still runs on a device: the process ends without it"),
        }
    }

    async fn drain(&mut self) {
        tracing::info!(timeout_s = self.drain_timeout.as_secs(), "draining");
        self.health.drain();
        self.calls.close();
        // Streams end by themselves at the same time; the margin lets them send their last messages.
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

/// The configuration with budgets for this machine's memory.
fn within_memory(config: &Config) -> Config {
    Config { limits: config.limits.within(Machine::this().resources().memory()), ..config.clone() }
}

/// What is opened before the models are loaded, so that faults of addresses and certificates are reported first.
struct Doors {
    security: Security,
    listeners: Vec<(ListenAddress, Listener)>,
    in_process: Option<Listener>,
    health: HealthService,
    administration: Administration,
    operators: Operators,
}

/// The ports for operators; they are served as long as this lives.
#[derive(Default)]
struct Operators {
    admin: Option<SocketAddr>,
    probes: Option<SocketAddr>,
    view: Option<SocketAddr>,
    /// The streams that the live page shows.
    hub: Option<Hub>,
    served: JoinSet<()>,
}

impl Doors {
    /// The ports for operators are served from here on; the others are only bound.
    async fn open(config: &Config, telemetry: &Telemetry) -> Result<Self, StartError> {
        let doors = Self::behind(config, telemetry).await?;
        Ok(Doors { listeners: bind(&config.server).await?, ..doors })
    }

    /// All but the addresses to listen on.
    async fn behind(config: &Config, telemetry: &Telemetry) -> Result<Self, StartError> {
        let security = Security::open(&config.server)?;
        let health = HealthService::starting(camlens::SERVICES);
        let pages = Pages { telemetry: telemetry.clone(), readiness: health.readiness().clone() };
        let administration = Administration::default();
        let mut operators = Operators::default();
        if let Some(address) = &config.admin.listen {
            let routes = admin::routes(pages.clone(), config, administration.clone());
            let spoken = Spoken::Http1AndHttp2;
            let port = OperatorPort { name: "admin port", key: "admin.listen", spoken, bounds: OPERATORS };
            operators.admin = Some(operators.serve(address, port, routes).await?);
        }
        if let Some(address) = &config.probes.listen {
            let routes = probes::routes(pages, health.clone());
            let spoken = Spoken::Http1AndHttp2;
            let port = OperatorPort { name: "probe port", key: "probes.listen", spoken, bounds: OPERATORS };
            operators.probes = Some(operators.serve(address, port, routes).await?);
        }
        if let Some(address) = &config.view.listen {
            let page = LivePage::open(address, config).await?;
            operators.view = Some(operators.serve(address, page.port, page.routes).await?);
            operators.hub = Some(page.hub);
        }
        Ok(Doors { security, listeners: Vec::new(), in_process: None, health, administration, operators })
    }
}

impl Operators {
    /// Serves a port from now on. Returns its address.
    async fn serve(&mut self, address: &str, port: OperatorPort, routes: Router) -> Result<SocketAddr, StartError> {
        let OperatorPort { name, key, spoken, bounds } = port;
        let cannot = |source| StartError::Operators { address: address.to_owned(), key, source };
        let port = Port::bind(address, name, spoken, bounds).await.map_err(cannot)?;
        let actual = port.address().map_err(cannot)?;
        tracing::info!(address = %actual, "{name}");
        self.served.spawn(port.serve(routes));
        Ok(actual)
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
