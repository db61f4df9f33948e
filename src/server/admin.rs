//! The admin port: plain HTTP for operators, apart from the addresses that serve frames.
//!
//! It reveals no secrets. It can change the log's filter and, over gRPC, which models are loaded, both only for callers
//! on the same machine.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::json;

use super::camlens::repository::Administration;
use super::pages::{self, Pages};
use crate::build_facts;
use crate::config::Config;
use crate::telemetry::log;

/// Everything that the port answers.
pub(super) fn routes(pages: Pages, config: &Config, administration: Administration) -> Router {
    let config: Arc<str> = effective(config).into();
    let own = Router::new().route("/config", get(show_config)).with_state(config);
    pages::routes(pages)
        .route("/", get(index))
        .route("/version", get(version))
        .route("/log", get(log_filter).put(set_log_filter))
        .merge(own)
        .merge(administration.routes())
}

async fn index() -> &'static str {
    "camlens\n\n\
     /livez    the process lives\n\
     /readyz   it can be used: every model has explained a first frame, and it is not draining\n\
     /metrics  for Prometheus\n\
     /version  what was built\n\
     /config   the effective configuration, as TOML\n\
     /log      the log's filter; PUT another one from the same machine: curl -X PUT -d camlens=debug …/log\n\n\
     Over gRPC: camlens.v1.RepositoryService, which `camlens models load`, `unload`, `reload` and `repository` call.\n"
}

async fn version() -> Json<serde_json::Value> {
    let mut page = json!({"name": "camlens", "os": std::env::consts::OS, "arch": std::env::consts::ARCH});
    for (name, value) in build_facts::facts() {
        page[name] = value.into();
    }
    Json(page)
}

async fn show_config(State(config): State<Arc<str>>) -> Response {
    ([(header::CONTENT_TYPE, "application/toml")], config.to_string()).into_response()
}

async fn log_filter() -> (StatusCode, String) {
    match log::filter() {
        Some(filter) => (StatusCode::OK, format!("{filter}\n")),
        None => (StatusCode::NOT_FOUND, "there is no log\n".to_owned()),
    }
}

async fn set_log_filter(ConnectInfo(peer): ConnectInfo<SocketAddr>, filter: String) -> (StatusCode, String) {
    if !peer.ip().to_canonical().is_loopback() {
        let message = "the filter is changed only from the same machine (kubectl exec, or port-forward)\n";
        return (StatusCode::FORBIDDEN, message.to_owned());
    }
    match log::set_filter(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "the log's filter was changed");
            (StatusCode::OK, format!("{}\n", filter.trim()))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// The effective configuration as TOML, without the credentials in a collector's address. Secret files are shown as
/// paths.
fn effective(config: &Config) -> String {
    let mut shown = config.clone();
    if let Some(endpoint) = &mut shown.telemetry.otlp_endpoint {
        *endpoint = without_credentials(endpoint);
    }
    toml::to_string(&shown).unwrap_or_else(|error| format!("# {error}\n"))
}

/// `http://user:password@host` as `http://…@host`.
fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rfind('@') {
        Some(at) => format!("{scheme}…{}", &rest[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_configuration_is_one_that_can_be_read_again() {
        let mut config = Config::default();
        config.telemetry.otlp_endpoint = Some("https://me:secret@collector:4317/x@y".to_owned());
        let shown = effective(&config);
        assert!(!shown.contains("secret") && !shown.contains("me:"), "{shown}");
        let read: Config = toml::from_str(&shown).expect("it is a configuration");
        assert_eq!(read.telemetry.otlp_endpoint.as_deref(), Some("https://…@collector:4317/x@y"));
        assert_eq!((read.limits, read.server), (config.limits, config.server));
    }

    #[test]
    fn an_address_without_credentials_is_left_as_it_is() {
        for url in ["http://collector:4317", "collector:4317", "http://c/p@th"] {
            assert_eq!(without_credentials(url), url);
        }
    }
}
