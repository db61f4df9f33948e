//! `grpc.health.v1`: whether the server, one of its services or a model can be used.
//!
//! - While the server drains, every name that is known is NOT_SERVING, and while it starts every name is: which models
//!   there will be is not known by then. Only the probe port answers while the server starts.
//! - A model's name is SERVING when at least one of its versions can run, and NOT_SERVING when none can.
//! - The whole server (the empty name) and its services are SERVING when at least one model can run. A model that fails
//!   thus takes itself out and no other; a load balancer that asks for the whole server still sends frames for those
//!   that run. `camlens serve` starts only when every configured model has explained a first frame, so a server that
//!   has just become ready serves all of them; where the repository is polled, it serves those that can.
//!
//! The names of models are those that the engine has registered, and change with them. `Check` and `Watch` differ on
//! names that are not known, as the protocol has it.

use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::refusal::Refusal;
use super::transport::connections::About;
use crate::schedule::Models;

/// Answers questions about health; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HealthService {
    /// Besides the whole server and the models.
    services: Arc<[&'static str]>,
    readiness: ReadinessSwitch,
}

/// Whether the server can be used, for all who ask; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReadinessSwitch(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    readiness: watch::Sender<Readiness>,
    /// Set when the server serves.
    models: OnceLock<watch::Receiver<Arc<Models>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Models are being loaded and proved.
    Starting,
    Serving,
    /// The server serves, and none of its models can run.
    NoModel,
    Draining,
    /// Watches end.
    Over,
}

impl HealthService {
    /// For a server that starts.
    pub(super) fn starting(services: impl IntoIterator<Item = &'static str>) -> Self {
        HealthService { services: services.into_iter().collect(), readiness: ReadinessSwitch::starting() }
    }

    /// The server serves these models from now on.
    pub(super) fn serve(&self, models: watch::Receiver<Arc<Models>>) {
        // Before the change of readiness, which wakes the watches.
        self.readiness.0.models.get_or_init(|| models);
        self.readiness.0.readiness.send_replace(Readiness::Serving);
    }

    pub(super) fn readiness(&self) -> &ReadinessSwitch {
        &self.readiness
    }

    /// NOT_SERVING from now on.
    pub(super) fn drain(&self) {
        self.readiness.0.readiness.send_replace(Readiness::Draining);
    }

    /// Ends every watch, or connections would stay open for them.
    pub(super) fn end(&self) {
        self.readiness.0.readiness.send_replace(Readiness::Over);
    }

    /// The status of a name; `None` for one that is not known.
    fn status(&self, name: &str) -> Option<ServingStatus> {
        let Some(models) = self.readiness.models() else { return Some(ServingStatus::NotServing) };
        let can_run = match name {
            name if name.is_empty() || self.services.contains(&name) => true,
            name => models.borrow().can_run(name)?,
        };
        let is_serving = can_run && self.readiness.now() == Readiness::Serving;
        Some(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }

    /// Every name that is known, in quotes.
    fn names(&self) -> String {
        let models = self.readiness.models().map(|models| Arc::clone(&models.borrow())).unwrap_or_default();
        let mut names: Vec<&str> =
            models.names().into_iter().chain(self.services.iter().copied()).chain([""]).collect();
        names.sort_unstable();
        names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    }
}

impl ReadinessSwitch {
    fn starting() -> Self {
        let readiness = watch::Sender::new(Readiness::Starting);
        ReadinessSwitch(Arc::new(Switch { readiness, models: OnceLock::new() }))
    }

    pub(super) fn now(&self) -> Readiness {
        let readiness = *self.0.readiness.borrow();
        let has_no_model = || self.models().is_some_and(|models| models.borrow().available().next().is_none());
        if readiness == Readiness::Serving && has_no_model() { Readiness::NoModel } else { readiness }
    }

    /// The models as the engine has registered them; `None` while the server starts.
    fn models(&self) -> Option<&watch::Receiver<Arc<Models>>> {
        self.0.models.get()
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let Some(status) = self.status(&name) else {
            let message = format!("service: there is no {name:?}; there is {}", self.names());
            return Err(Refusal::new(Code::NotFound, "service", message).into_status());
        };
        Ok(Response::new(HealthCheckResponse { status: status as i32 }))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// A name that is not known is SERVICE_UNKNOWN, and the watch stays open: a model of that name may be added.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let connection = About::of(&request);
        let name = request.into_inner().service;
        let (watcher, statuses) = mpsc::channel(1);
        let health = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tell(health, name, watcher) => {}
                () = connection.aged() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(statuses)))
    }
}

/// Sends a watcher each status that is new, until the server ends or nobody watches any more.
async fn tell(health: HealthService, name: String, watcher: mpsc::Sender<Result<HealthCheckResponse, Status>>) {
    let mut readiness = health.readiness.0.readiness.subscribe();
    let mut models = None;
    let mut told = None;
    loop {
        // Seen before they are read: what changes meanwhile is seen again.
        let now = *readiness.borrow_and_update();
        if models.is_none() {
            models = health.readiness.models().cloned();
        }
        if let Some(models) = &mut models {
            models.mark_unchanged();
        }
        let status = health.status(&name).unwrap_or(ServingStatus::ServiceUnknown);
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
            () = another(&mut models) => {}
            () = watcher.closed() => return,
        }
    }
}

/// Resolves when the models have changed. While there are none, and once the engine has gone, readiness tells.
async fn another(models: &mut Option<watch::Receiver<Arc<Models>>>) {
    let is_changed = match models {
        Some(models) => models.changed().await.is_ok(),
        None => false,
    };
    if !is_changed {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Served;
    use crate::schedule::fake::served;

    fn models(served: &[Arc<Served>], failed: &[&str]) -> Arc<Models> {
        let problem = |name: &&str| (((*name).to_owned(), Some(1)), "it is broken".to_owned());
        Arc::new(Models { served: served.into(), problems: failed.iter().map(problem).collect(), ..Models::default() })
    }

    #[test]
    fn each_model_answers_for_itself_and_the_server_serves_while_one_of_them_can_run() {
        let (registry, watch) = watch::channel(models(&[served("good", 1)], &["bad"]));
        let health = HealthService::starting(["a.Service"]);
        let statuses = || ["", "a.Service", "good", "bad", "other"].map(|name| health.status(name));
        let (serving, not_serving) = (Some(ServingStatus::Serving), Some(ServingStatus::NotServing));
        assert_eq!(statuses(), [not_serving; 5], "it starts");
        health.serve(watch);
        assert_eq!(statuses(), [serving, serving, serving, not_serving, None]);
        assert_eq!(health.names(), r#""", "a.Service", "bad", "good""#);
        registry.send_replace(models(&[], &["bad", "good"]));
        assert_eq!(statuses(), [not_serving, not_serving, not_serving, not_serving, None]);
        assert_eq!(health.readiness.now(), Readiness::NoModel);
        registry.send_replace(models(&[served("other", 1)], &["bad"]));
        assert_eq!(statuses(), [serving, serving, None, not_serving, serving]);
        health.drain();
        assert_eq!(statuses(), [not_serving, not_serving, None, not_serving, not_serving]);
    }

    #[tokio::test]
    async fn a_watcher_hears_when_the_server_serves_and_its_model_comes_fails_and_goes() {
        let (registry, watch) = watch::channel(models(&[served("good", 1)], &[]));
        let health = HealthService::starting([]);
        let (watcher, mut statuses) = mpsc::channel(1);
        let watching = tokio::spawn(tell(health.clone(), "new".to_owned(), watcher));
        let mut next = async || {
            let response = statuses.recv().await.expect("it watches").expect("a status");
            ServingStatus::try_from(response.status).expect("it is known")
        };
        assert_eq!(next().await, ServingStatus::NotServing);
        health.serve(watch);
        assert_eq!(next().await, ServingStatus::ServiceUnknown);
        registry.send_replace(models(&[served("new", 1)], &[]));
        assert_eq!(next().await, ServingStatus::Serving);
        registry.send_replace(models(&[served("good", 1)], &["new"]));
        assert_eq!(next().await, ServingStatus::NotServing);
        registry.send_replace(models(&[served("good", 1)], &[]));
        assert_eq!(next().await, ServingStatus::ServiceUnknown);
        health.end();
        watching.await.expect("it ends with the server");
    }
}
