//! `camlens models repository`, `load`, `unload` and `reload`: what a server does with its repository.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::failure::Failure;
use crate::cli::options::ModelName;
use crate::cli::terminal::Ink;
use crate::client;
use crate::client::{Address, Bearer, TlsSettings};
use crate::proto::v1;

/// What to do with the models of a server.
#[derive(Debug, Subcommand)]
pub enum Administer {
    /// List every version in the repository of a server, and what became of it
    Repository(AdminArgs),
    /// Load what has come or changed in the repository
    Load(OrderArgs),
    /// Load versions again, even if their files have not changed
    Reload(OrderArgs),
    /// Stop serving versions until they are loaded again; open streams go on with them
    Unload(OrderArgs),
}

/// The server.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Admin port of the server, HOST:PORT (its --admin-listen). Models are changed from the same machine only
    #[arg(long, env = "CAMLENS_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    admin: Address,

    /// Print JSON instead of text
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

/// The server and the model.
#[derive(Debug, Args)]
pub struct OrderArgs {
    /// The model; without a version, every version that its policy serves
    #[arg(value_name = "NAME[@VERSION]")]
    model: ModelName,

    #[command(flatten)]
    server: AdminArgs,
}

impl Administer {
    pub async fn run(self) -> Result<(), Failure> {
        let (server, versions) = match self {
            Administer::Repository(server) => {
                let listed = connect(&server).await?.list_repository(v1::ListRepositoryRequest {}).await;
                let listed = listed.map_err(|status| Failure::from_status("list the repository", &status))?;
                (server, listed.into_inner().versions)
            }
            Administer::Load(OrderArgs { model, server }) => {
                let ModelName { name, version } = model;
                let what = format!("load {name}");
                let loaded = connect(&server).await?.load_model(v1::LoadModelRequest { name, version }).await;
                let loaded = loaded.map_err(|status| Failure::from_status(&what, &status))?;
                (server, loaded.into_inner().versions)
            }
            Administer::Reload(OrderArgs { model, server }) => {
                let ModelName { name, version } = model;
                let what = format!("reload {name}");
                let loaded = connect(&server).await?.reload_model(v1::ReloadModelRequest { name, version }).await;
                let loaded = loaded.map_err(|status| Failure::from_status(&what, &status))?;
                (server, loaded.into_inner().versions)
            }
            Administer::Unload(OrderArgs { model, server }) => {
                let ModelName { name, version } = model;
                let what = format!("unload {name}");
                let unloaded = connect(&server).await?.unload_model(v1::UnloadModelRequest { name, version }).await;
                let unloaded = unloaded.map_err(|status| Failure::from_status(&what, &status))?;
                (server, unloaded.into_inner().versions)
            }
        };
        let text =
            if server.json { format!("{:#}\n", as_json(&versions)) } else { as_text(&versions, Ink::for_stdout()) };
        Ok(io::stdout().lock().write_all(text.as_bytes())?)
    }
}

async fn connect(server: &AdminArgs) -> Result<client::RepositoryClient, Failure> {
    let link = client::connect(&server.admin, &TlsSettings::default(), Bearer::default()).await?;
    Ok(client::repository_client(link))
}

fn state_of(version: &v1::RepositoryVersion) -> &'static str {
    match version.state() {
        v1::RepositoryState::Unspecified => "?",
        v1::RepositoryState::Served => "served",
        v1::RepositoryState::Evicted => "evicted",
        v1::RepositoryState::Pending => "pending",
        v1::RepositoryState::Failed => "failed",
        v1::RepositoryState::Unloaded => "unloaded",
    }
}

fn as_text(versions: &[v1::RepositoryVersion], ink: Ink) -> String {
    if versions.is_empty() {
        return "the repository holds no model\n".to_owned();
    }
    let line = |version: &v1::RepositoryVersion| {
        let name = version.version.map_or_else(|| version.name.clone(), |number| format!("{}@{number}", version.name));
        let digest: String = version.digest.chars().take(12).collect();
        let mebibytes = version.memory_bytes.div_ceil(1 << 20);
        let facts = match (digest.as_str(), version.reason.as_str()) {
            ("", reason) => reason.to_owned(),
            (digest, reason) => {
                let using = format!("{digest}  {mebibytes} MiB  {} in use", version.in_use);
                if reason.is_empty() { using } else { format!("{using}; its newer files: {reason}") }
            }
        };
        format!("{}  {:<8}  {facts}\n", ink.bold(&format!("{name:<24}")), state_of(version))
    };
    versions.iter().map(line).collect()
}

fn as_json(versions: &[v1::RepositoryVersion]) -> Value {
    let version = |version: &v1::RepositoryVersion| {
        json!({
            "name": version.name,
            "version": version.version,
            "state": state_of(version),
            "reason": version.reason,
            "digest": version.digest,
            "memory_bytes": version.memory_bytes,
            "in_use": version.in_use,
        })
    };
    versions.iter().map(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_listed_with_what_became_of_it() {
        let served = v1::RepositoryVersion {
            name: "net".to_owned(),
            version: Some(2),
            state: v1::RepositoryState::Served.into(),
            digest: "0123456789abcdef".to_owned(),
            memory_bytes: 3 << 20,
            in_use: 4,
            ..Default::default()
        };
        let failed = v1::RepositoryVersion {
            name: "engine".to_owned(),
            version: None,
            state: v1::RepositoryState::Failed.into(),
            reason: "no graph".to_owned(),
            ..Default::default()
        };
        let older = v1::RepositoryVersion {
            state: v1::RepositoryState::Failed.into(),
            reason: "cut off".to_owned(),
            ..served.clone()
        };
        let text = as_text(&[failed, served, older], Ink::plain());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["engine", "failed", "no", "graph"]);
        assert!(lines[1].starts_with("net@2 ") && lines[1].ends_with("0123456789ab  3 MiB  4 in use"), "{text}");
        assert!(lines[2].ends_with("4 in use; its newer files: cut off"), "{text}");
    }
}
