//! `RepositoryService`: the models of the repository, for operators on the admin port.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::ConnectInfo;
use tonic::{Code, Request, Response, Status};

use crate::http::MAX_BODY_BYTES;
use crate::model::repository::{Order, State};
use crate::proto::v1;
use crate::proto::v1::repository_service_server::{RepositoryService, RepositoryServiceServer};
use crate::server::refusal::Refusal;
use crate::server::repository::{OrderError, RepositoryHandle, VersionView};

/// The service, from the moment that the admin port is open; cheap to clone.
#[derive(Clone, Default)]
pub(in crate::server) struct Administration {
    /// Set when the server serves.
    repository: Arc<OnceLock<RepositoryHandle>>,
}

impl Administration {
    /// The server serves from now on.
    pub(in crate::server) fn serve(&self, repository: RepositoryHandle) {
        self.repository.get_or_init(|| repository);
    }

    /// The methods, for the admin port.
    pub(in crate::server) fn routes(self) -> Router {
        let service = RepositoryServiceServer::new(self).max_decoding_message_size(MAX_BODY_BYTES);
        Router::new().route_service("/camlens.v1.RepositoryService/{method}", service)
    }

    fn repository(&self) -> Result<&RepositoryHandle, Status> {
        self.repository.get().ok_or_else(|| Status::unavailable("the server is starting: models are being loaded"))
    }

    /// Carries out an order of a caller on the same machine.
    async fn order<T>(
        &self,
        request: &Request<T>,
        (name, version): (&str, Option<i64>),
        order: Order,
    ) -> Result<Vec<v1::RepositoryVersion>, Status> {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        if !peer.is_some_and(|peer| peer.0.ip().to_canonical().is_loopback()) {
            let message = "models are loaded and unloaded only from the same machine (kubectl exec, or port-forward)";
            return Err(Status::permission_denied(message));
        }
        if name.is_empty() {
            return Err(Refusal::invalid("name", "name is empty: it names a model of the repository").into_status());
        }
        let repository = self.repository()?;
        let views =
            repository.order(name.to_owned(), version, order).await.map_err(|error| refuse(name, version, &error))?;
        if order == Order::Unload {
            return Ok(views.into_iter().map(version_of).collect());
        }
        let failed: Vec<&VersionView> = views.iter().filter(|view| view.state == State::Failed).collect();
        if let Some(first) = failed.first() {
            let more = if failed.len() > 1 { format!(" (and {} more)", failed.len() - 1) } else { String::new() };
            let goes_on = if first.digest.is_empty() { "" } else { "; what was served before goes on" };
            let message = format!("{}{goes_on}{more}", first.reason);
            return Err(Refusal::new(Code::FailedPrecondition, "name", message).into_status());
        }
        if views.iter().any(|view| view.state == State::Pending) {
            return Err(refuse(name, version, &OrderError::Changing));
        }
        Ok(views.into_iter().map(version_of).collect())
    }
}

fn refuse(name: &str, version: Option<i64>, error: &OrderError) -> Status {
    let which = version.map_or_else(|| name.to_owned(), |version| format!("{name} version {version}"));
    match error {
        OrderError::Unknown => {
            let (field, message) = ("name", format!("the repository has no {which}"));
            Refusal::new(Code::NotFound, field, message).into_status()
        }
        OrderError::Refused(why) => {
            Refusal::new(Code::FailedPrecondition, "name", format!("{which}: {why}")).into_status()
        }
        OrderError::Changing => {
            let message = format!("{which}: its files are still being written; try again later");
            Refusal::new(Code::Unavailable, "", message).into_status()
        }
        OrderError::Stopping => Status::unavailable("the server is stopping"),
    }
}

fn version_of(view: VersionView) -> v1::RepositoryVersion {
    let VersionView { name, version, state, reason, digest, bytes, in_use } = view;
    let state = match state {
        State::Served => v1::RepositoryState::Served,
        State::Evicted => v1::RepositoryState::Evicted,
        State::Pending => v1::RepositoryState::Pending,
        State::Failed => v1::RepositoryState::Failed,
        State::Unloaded => v1::RepositoryState::Unloaded,
    };
    v1::RepositoryVersion {
        name,
        version,
        state: state.into(),
        reason,
        digest,
        memory_bytes: bytes,
        in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
    }
}

#[tonic::async_trait]
impl RepositoryService for Administration {
    async fn list_repository(
        &self,
        _: Request<v1::ListRepositoryRequest>,
    ) -> Result<Response<v1::ListRepositoryResponse>, Status> {
        let versions = self.repository()?.versions().into_iter().map(version_of).collect();
        Ok(Response::new(v1::ListRepositoryResponse { versions }))
    }

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let v1::LoadModelRequest { name, version } = request.get_ref();
        let versions = self.order(&request, (name, *version), Order::Load).await?;
        Ok(Response::new(v1::LoadModelResponse { versions }))
    }

    async fn reload_model(
        &self,
        request: Request<v1::ReloadModelRequest>,
    ) -> Result<Response<v1::ReloadModelResponse>, Status> {
        let v1::ReloadModelRequest { name, version } = request.get_ref();
        let versions = self.order(&request, (name, *version), Order::Reload).await?;
        Ok(Response::new(v1::ReloadModelResponse { versions }))
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        let v1::UnloadModelRequest { name, version } = request.get_ref();
        let versions = self.order(&request, (name, *version), Order::Unload).await?;
        Ok(Response::new(v1::UnloadModelResponse { versions }))
    }
}
