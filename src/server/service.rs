//! What the services of every face share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tonic::Code;

use crate::config::{Config, LimitsConfig};
use crate::schedule::Engine;
use crate::telemetry::Telemetry;
use crate::view::Hub;

use super::devices::Devices;
use super::quota::credit::Credit;
use super::quota::unsent::Unsent;
use super::reclaim::Reclaim;
use super::refusal::Refusal;
use super::repository::RepositoryHandle;
use super::shutdown::Shutdown;
use crate::http::slots::{Full, Slot, Slots};

/// The state behind every service. Cheap to clone; clones share it.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) engine: Engine,
    /// What runs the models.
    pub(super) devices: Arc<Devices>,
    /// Keeps the models; `None`: they stay as they are.
    pub(super) repository: Option<RepositoryHandle>,
    /// How long streams go on with a model that was replaced.
    pub(super) stream_grace: Option<Duration>,
    pub(super) telemetry: Telemetry,
    pub(super) limits: LimitsConfig,
    pub(super) drain_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub(super) write_timeout: Duration,
    pub(super) reclaim: Reclaim,
    pub(super) unsent: Unsent,
    pub(super) credit: Credit,
    /// Bounds the open streams.
    pub(super) stream_slots: Slots,
    pub(super) shutdown: Shutdown,
    /// The calls that a drain waits for.
    pub(super) calls: TaskTracker,
    /// The live page's streams, where there is a live page.
    pub(super) view: Option<Hub>,
}

impl Service {
    pub(super) fn new(
        config: &Config,
        (engine, devices): (Engine, Devices),
        repository: Option<RepositoryHandle>,
        telemetry: Telemetry,
        shutdown: Shutdown,
    ) -> Self {
        let Config { server, limits, models, .. } = config;
        Service {
            engine,
            devices: Arc::new(devices),
            repository,
            stream_grace: models.stream_grace_s.map(|seconds| Duration::from_secs(seconds.into())),
            telemetry,
            limits: *limits,
            drain_timeout: Duration::from_secs(server.drain_timeout_s.into()),
            write_timeout: Duration::from_secs(server.write_timeout_s.into()),
            reclaim: Reclaim::default(),
            unsent: Unsent::new(limits.unsent_bytes),
            credit: Credit::default(),
            stream_slots: Slots::new(limits.max_streams, limits.max_streams_per_peer),
            shutdown,
            calls: TaskTracker::new(),
            view: None,
        }
    }

    /// With a live page.
    pub(super) fn with_view(self, view: Option<Hub>) -> Self {
        Service { view, ..self }
    }

    /// # Errors
    /// While the server drains, it takes no new call.
    pub(super) fn refuse_while_draining(&self) -> Result<(), Refusal> {
        if self.shutdown.is_draining() {
            return Err(Refusal::new(Code::Unavailable, "", "the server is stopping; another one may take this call"));
        }
        Ok(())
    }

    /// A slot for a new stream of `peer`; `None` is a client of a Unix socket.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn stream_slot(&self, peer: Option<IpAddr>) -> Result<Slot, Refusal> {
        self.stream_slots.take(peer).map_err(|full| {
            let message = match full {
                Full::Total(limit) => {
                    format!("the server has as many streams as it takes: limits.max_streams is {limit}")
                }
                Full::Peer(limit) => format!(
                    "there are as many streams from this address as the server takes: limits.max_streams_per_peer is \
                     {limit}"
                ),
            };
            Refusal::new(Code::ResourceExhausted, "", message)
        })
    }
}
