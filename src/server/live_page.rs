//! The server's live page: its port, and who may open it.

use axum::Router;
use tokio::net::lookup_host;

use super::pages::OperatorPort;
use super::start_error::StartError;
use super::transport::security::accepted_tokens;
use crate::config::{Config, ViewConfig};
use crate::http::{Bounds, Spoken};
use crate::view::{self, Access, Hub, Limits};

/// Connections beside those of viewers: a page is several files.
const MORE_CONNECTIONS: u32 = 32;

/// The live page before it is served.
pub(super) struct LivePage {
    pub(super) hub: Hub,
    pub(super) routes: Router,
    pub(super) port: OperatorPort,
}

impl LivePage {
    /// # Errors
    /// Tokens that cannot be read; an address beyond loopback without tokens, or without `server.insecure`, since the
    /// page is plain HTTP.
    pub(super) async fn open(address: &str, config: &Config) -> Result<Self, StartError> {
        let ViewConfig { listen: _, token_file, max_viewers, max_rate_hz, max_side } = &config.view;
        let key = "view.listen";
        let cannot = |source| StartError::Operators { address: address.to_owned(), key, source };
        let is_exposed = lookup_host(address).await.map_err(cannot)?.any(|one| !one.ip().to_canonical().is_loopback());
        let exposed = |problem| Err(StartError::Exposed { address: address.to_owned(), problem });
        let access = match token_file.as_ref().or(config.server.token_file.as_ref()) {
            Some(path) => {
                let tokens = accepted_tokens::watch(path)?;
                Access::with_token(move |token| tokens.current().name_of(token).is_some())
            }
            None if is_exposed => return exposed("give view.token_file, or server.token_file"),
            None => Access::of_this_machine(),
        };
        if is_exposed && !config.server.insecure {
            return exposed("the page is plain HTTP, which the network can read; server.insecure allows that");
        }
        let hub = Hub::new(Limits { max_viewers: *max_viewers, max_rate_hz: *max_rate_hz, max_side: *max_side });
        let connections = max_viewers + MORE_CONNECTIONS;
        let bounds = Bounds { connections, per_peer: connections };
        let port = OperatorPort { name: "live page", key, spoken: Spoken::Http1, bounds };
        Ok(LivePage { routes: view::routes(hub.clone(), access), hub, port })
    }
}
