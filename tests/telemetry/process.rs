//! The built binary, configured with OpenTelemetry's standard variables.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tonic::transport::{Identity, ServerTlsConfig};

use super::admin;
use super::certificates::Authority;
use super::collector::{Collector, PATIENCE, text};

/// A running `camlens serve`, and the lines that it logs.
pub struct Process {
    child: Child,
    socket: std::path::PathBuf,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let process = Self::launch(Path::new("builtin:identity"), variables, arguments);
        process.logged("serving");
        process
    }

    /// Does not wait until it serves.
    pub fn launch(models: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("camlens.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
        command
            .args(["--log-format", "json", "serve", "--threads", "1", "--models"])
            .arg(models)
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("a log")).lines();
        let log = Arc::<Mutex<Vec<_>>>::default();
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("one JSON object a line");
                written.lock().expect("no panic").push(line);
            }
        });
        Process { child, socket, log, _folder: folder }
    }

    /// Waits for a line with `message`; returns the first one.
    pub fn logged(&self, message: &str) -> serde_json::Value {
        let began = std::time::Instant::now();
        loop {
            if let Some(line) = self.log.lock().expect("no panic").iter().find(|line| line["message"] == message) {
                return line.clone();
            }
            assert!(began.elapsed() < PATIENCE * 3, "{message:?} was not logged: {:?}", self.log);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn explain(&self) {
        let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/readme.jpg");
        let explained = Command::new(env!("CARGO_BIN_EXE_camlens"))
            .args(["explain", "--server"])
            .arg(format!("unix:{}", self.socket.display()))
            .arg(picture)
            .arg("--out")
            .arg(self._folder.path().join("out"))
            .output()
            .expect("it runs");
        assert!(explained.status.success(), "{}", String::from_utf8_lossy(&explained.stderr));
    }

    /// Stops the process, which must exit with code 0 within the time for the last export.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
        let began = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the process does not end");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_standard_variables_lead_to_a_collector_with_tls_and_headers() {
    let authority = Authority::new("the collector's authority");
    let files = authority.sign("collector");
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(files.certificate_pem(), files.key_pem()));
    let collector = Collector::start_with(|server| server.tls_config(tls).expect("a sound certificate"));
    let endpoint = format!("https://localhost:{}", collector.address.port());
    let certificate = authority.certificate();
    let process = Process::start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.to_str().expect("UTF-8")),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=acme"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_SERVICE_NAME", "gate-camera"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("K8S_POD_NAME", "camlens-0"),
        ],
        &[],
    );
    process.explain();
    process.stop();
    assert!(collector.spans().iter().any(|span| span.name == "camlens.frame"));
    let received = collector.received();
    assert!(!received.metrics.is_empty(), "metrics are pushed at the end");
    assert!(received.tenants.iter().all(|tenant| tenant == "acme"), "{:?}", received.tenants);
    assert!(received.encodings.iter().all(|encoding| encoding == "gzip"), "{:?}", received.encodings);
    let resource = received.traces[0].resource_spans[0].resource.as_ref().expect("a resource");
    for (key, value) in
        [("service.name", "gate-camera"), ("deployment.environment.name", "test"), ("k8s.pod.name", "camlens-0")]
    {
        assert_eq!(text(&resource.attributes, key).as_deref(), Some(value), "{key}");
    }
}

#[test]
fn a_ratio_of_nothing_exports_no_frame_that_succeeds() {
    let collector = Collector::over_http();
    let process = Process::start(
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ],
        &[],
    );
    process.explain();
    process.stop();
    assert!(collector.spans().is_empty());
    assert!(!collector.received().metrics.is_empty());
}

#[tokio::test]
async fn the_logs_filter_can_be_changed_while_the_server_runs_and_frames_then_have_their_trace_in_it() {
    let process = Process::start(&[], &["--admin-listen", "127.0.0.1:0"]);
    let address = process.logged("admin port")["address"].as_str().expect("an address").parse().expect("one");
    assert_eq!(admin::ask(address, "GET", "/log", "").await, (200, "info\n".to_owned()));
    process.explain();
    assert_eq!(
        admin::ask(address, "PUT", "/log", "info,camlens=debug").await,
        (200, "info,camlens=debug\n".to_owned())
    );
    process.explain();
    let line = process.logged("frame");
    assert_eq!((line["outcome"].as_str(), line["model"].as_str()), (Some("answered"), Some("identity")));
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32));
    let frames = process.log.lock().expect("no panic").iter().filter(|line| line["message"] == "frame").count();
    assert_eq!(frames, 1, "the one after the change");
    let (_, filter) = admin::ask(address, "GET", "/log", "").await;
    assert!(filter.contains("camlens=debug"), "{filter}");
    process.stop();
}

#[test]
fn a_variable_that_cannot_be_used_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_camlens"))
        .args(["serve", "--models", "builtin:identity"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        .output()
        .expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/json: grpc and http/protobuf"), "{message}");
}
