//! The built binary with a repository of models, and its admin port.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::model_service_client::ModelServiceClient;
use camlens::proto::v1::repository_service_client::RepositoryServiceClient;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_health::pb::health_client::HealthClient;

use super::server::{PATIENCE, dial};

/// Networks of 10 classes, `[3, 33, 33]`.
pub const FIRST: &str = "resnet_basic";
pub const SECOND: &str = "vgg";

/// The model file of a small network.
pub fn network(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance").join(name).join("1/model.pt2")
}

/// Puts a network into `folder`, which is made. A file that is there is replaced, not written into: it is being served.
pub fn place(network_name: &str, folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::copy(network(network_name), folder.join(".new")).expect("the fixture is there");
    std::fs::rename(folder.join(".new"), folder.join("model.pt2")).expect("the same folder");
}

pub struct Sidecar {
    folder: TempDir,
    process: Child,
    admin: SocketAddr,
}

impl Sidecar {
    /// A folder for models, before the server starts.
    pub fn folder() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    /// Starts the binary on the models in `folder/models` and waits until it listens.
    pub async fn start(folder: TempDir, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
        // The environment of the test run must not reach the server.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMLENS_") || name.starts_with("OTEL_"))
        {
            command.env_remove(name);
        }
        command
            .args(["serve", "--threads", "1", "--kernel-timing", "never", "--admin-listen", "127.0.0.1:0"])
            .args(["--log-format", "json", "--models"])
            .arg(folder.path().join("models"))
            .arg("--listen")
            .arg(format!("unix:{}", folder.path().join("camlens.sock").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let log = BufReader::new(process.stderr.take().expect("it is piped"));
        let (told, heard) = mpsc::channel();
        // It reads until the process ends, or the pipe would fill.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let mut admin = None;
        let admin = loop {
            let line = heard.recv_timeout(PATIENCE).expect("it says that it serves");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            match event["message"].as_str() {
                Some("admin port") => admin = event["address"].as_str().and_then(|text| text.parse().ok()),
                Some("serving") => break admin.expect("the admin port comes first"),
                _ => {}
            }
        };
        Sidecar { folder, process, admin }
    }

    /// The folder of a version.
    pub fn version(&self, name: &str, version: i64) -> PathBuf {
        self.models_folder().join(name).join(version.to_string())
    }

    pub fn models_folder(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    pub async fn channel(&self) -> Channel {
        dial(self.folder.path().join("camlens.sock"), |endpoint| endpoint).await
    }

    pub async fn explain(&self) -> ExplainServiceClient<Channel> {
        ExplainServiceClient::new(self.channel().await)
    }

    pub async fn models(&self) -> v1::ListModelsResponse {
        let mut client = ModelServiceClient::new(self.channel().await);
        client.list_models(v1::ListModelsRequest {}).await.expect("a list").into_inner()
    }

    pub async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    pub async fn admin(&self) -> RepositoryServiceClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.admin)).expect("an address");
        RepositoryServiceClient::new(endpoint.connect().await.expect("the admin port listens"))
    }

    /// Waits until the repository is in a state.
    pub async fn until(
        &self,
        what: &str,
        holds: impl Fn(&[v1::RepositoryVersion]) -> bool,
    ) -> Vec<v1::RepositoryVersion> {
        let mut admin = self.admin().await;
        let mut seen = Vec::new();
        let reached = async {
            loop {
                let listed = admin.list_repository(v1::ListRepositoryRequest {}).await.expect("a list");
                seen = listed.into_inner().versions;
                if holds(&seen) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let is_reached = tokio::time::timeout(PATIENCE, reached).await.is_ok();
        assert!(is_reached, "{what}: {seen:#?}");
        seen
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches("kB").trim().parse().expect("a number")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The state of a version, if it is listed.
pub fn state_of(versions: &[v1::RepositoryVersion], name: &str, version: i64) -> Option<v1::RepositoryState> {
    let found = versions.iter().find(|found| found.name == name && found.version == Some(version));
    found.map(v1::RepositoryVersion::state)
}
