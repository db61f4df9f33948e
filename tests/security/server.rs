//! The built binary, serving a small network.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camlens::proto::v1::ListModelsRequest;
use camlens::proto::v1::model_service_client::ModelServiceClient;
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::certificates::{Authority, Files};

/// Longer than any step of a test takes, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command, without the variables of the environment that would configure it.
pub fn camlens<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMLENS_") || name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command; returns its exit code, standard output and standard error.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> (i32, String, String) {
    let output = camlens(arguments).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance/resnet_basic")
}

/// A server that logs at level `trace`. Dropping it checks that no secret was logged.
pub struct Server {
    process: Child,
    folder: TempDir,
    secrets: Vec<String>,
    /// The address that it logs.
    pub address: String,
}

impl Server {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", arguments)
    }

    pub fn start_on(listen: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = std::fs::File::create(folder.path().join("log")).expect("a file");
        let model = model();
        let model = model.to_str().expect("UTF-8");
        let usual = ["serve", "--models", model, "--log", "trace", "--threads", "1", "--listen", listen];
        let process = camlens(&[&usual, arguments].concat()).stderr(log).spawn().expect("the program starts");
        let mut server = Server { process, folder, secrets: Vec::new(), address: String::new() };
        let line = server.wait_for_log("serving address=");
        server.address = line.rsplit("address=").next().expect("an address").trim().to_owned();
        server
    }

    /// Starts a server with TLS.
    pub fn with_tls(files: &Files, more: &[&str]) -> Self {
        let paths = [&files.certificate, &files.key].map(|path| path.to_str().expect("UTF-8"));
        let tls = ["--tls-certificate", paths[0], "--tls-key", paths[1]];
        let mut server = Self::start(&[&tls, more].concat());
        server.keep_secret(&files.key_pem());
        server
    }

    /// Adds the lines of a file that must not be in the log.
    pub fn keep_secret(&mut self, text: &str) {
        self.secrets.extend(text.lines().filter(|line| line.len() > 8 && !line.starts_with("--")).map(str::to_owned));
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    /// Waits for a line that contains `text`; returns the last one.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let began = Instant::now();
        loop {
            let log = self.log();
            if let Some(line) = log.lines().rev().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let ended = self.process.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the server ended: {log}");
            assert!(began.elapsed() < PATIENCE, "`{text}` is not in the log");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: tests/protocol/signals.rs tests a clean stop.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if !std::thread::panicking() {
            let log = self.log();
            let told = self.secrets.iter().find(|secret| log.contains(*secret));
            assert_eq!(told, None, "a secret is in the log");
        }
    }
}

/// The TLS configuration of a client that trusts `authority` and presents `identity`.
pub fn tls(authority: &Authority, identity: Option<&Files>) -> ClientTlsConfig {
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.certificate_pem()));
    match identity {
        Some(files) => config.identity(Identity::from_pem(files.certificate_pem(), files.key_pem())),
        None => config,
    }
}

pub async fn connect(url: &str, tls: Option<ClientTlsConfig>) -> Result<Channel, String> {
    let mut endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL").connect_timeout(PATIENCE);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).expect("sound TLS");
    }
    endpoint.connect().await.map_err(|error| chain(&error))
}

/// Connects and lists the models. The error holds the whole chain of causes.
pub async fn ask(url: &str, tls: Option<ClientTlsConfig>) -> Result<(), String> {
    let channel = connect(url, tls).await?;
    let mut client = ModelServiceClient::new(channel);
    let answer = tokio::time::timeout(PATIENCE, client.list_models(ListModelsRequest {})).await.expect("an end");
    let answer = answer.map_err(|status| chain(&status))?;
    assert_eq!(answer.into_inner().models.len(), 1);
    Ok(())
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
