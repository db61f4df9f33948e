//! `grpc.health.v1`: whether the server, one of its services or a model can be used.
//!
//! There is one answer for all of them: a server that serves has proved each of its models, and one that drains takes nothing
//! new. `Check` and `Watch` differ on names that are not known, as the protocol has it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::refusal::Refusal;
use super::transport::connections::About;

/// Answers questions about health; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HealthService {
    names: Arc<BTreeSet<String>>,
    readiness: ReadinessSwitch,
}

/// Whether the server can be used, for all who ask; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReadinessSwitch(Arc<watch::Sender<Readiness>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Models are being loaded and proved.
    Starting,
    Serving,
    Draining,
    /// Watches end.
    Over,
}

impl HealthService {
    /// For a server that serves from now on. `names` are what may be asked about; the empty one is the whole server.
    pub(super) fn serving(names: impl IntoIterator<Item = String>, readiness: ReadinessSwitch) -> Self {
        readiness.0.send_replace(Readiness::Serving);
        HealthService { names: Arc::new(names.into_iter().collect()), readiness }
    }

    /// NOT_SERVING from now on.
    pub(super) fn drain(&self) {
        self.readiness.0.send_replace(Readiness::Draining);
    }

    /// Ends every watch, or connections would stay open for them.
    pub(super) fn end(&self) {
        self.readiness.0.send_replace(Readiness::Over);
    }
}

impl ReadinessSwitch {
    /// For a server that starts.
    pub(super) fn starting() -> Self {
        ReadinessSwitch(Arc::new(watch::Sender::new(Readiness::Starting)))
    }

    pub(super) fn now(&self) -> Readiness {
        *self.0.borrow()
    }
}

fn status(readiness: Readiness) -> ServingStatus {
    match readiness {
        Readiness::Serving => ServingStatus::Serving,
        Readiness::Starting | Readiness::Draining | Readiness::Over => ServingStatus::NotServing,
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !self.names.contains(&name) {
            let names: Vec<String> = self.names.iter().map(|name| format!("{name:?}")).collect();
            let message = format!("service: there is no {name:?}; there is {}", names.join(", "));
            return Err(Refusal::new(Code::NotFound, "service", message).into_status());
        }
        let status = status(self.readiness.now()) as i32;
        Ok(Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// A name that is not known is SERVICE_UNKNOWN, and the watch stays open.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let connection = About::of(&request);
        let known = self.names.contains(&request.into_inner().service);
        let (watcher, statuses) = mpsc::channel(1);
        let readiness = self.readiness.0.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = tell(known, readiness, watcher) => {}
                () = connection.aged() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(statuses)))
    }
}

/// Tells a watcher each status that is new, until the server ends or nobody watches any more.
async fn tell(
    known: bool,
    mut readiness: watch::Receiver<Readiness>,
    watcher: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut told = None;
    loop {
        let now = *readiness.borrow_and_update();
        let status = if known { status(now) } else { ServingStatus::ServiceUnknown };
        if told.replace(status) != Some(status)
            && watcher.send(Ok(HealthCheckResponse { status: status as i32 })).await.is_err()
        {
            return;
        }
        if now == Readiness::Over {
            return;
        }
        tokio::select! {
            changed = readiness.changed() => if changed.is_err() { return },
            () = watcher.closed() => return,
        }
    }
}
