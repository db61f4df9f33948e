//! A server in this process, with the real device or one that the test controls. The real device is the processor, or
//! the CUDA device whose libraries lie in the folder that `CAMLENS_TEST_CUDA` names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use camlens::config::ListenAddress;
use camlens::config::{Config, DeviceName, KernelTiming};
use camlens::explain::ExplainError;
use camlens::frame;
use camlens::model::{LoadLimits, Model};
use camlens::plan::{Interrupt, PlanError};
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::model_service_client::ModelServiceClient;
use camlens::schedule::{
    Batch, Device, Engine, EngineConfig, RowMaps, RowResult, Served, ServedLimits, SystemClock, TargetValues,
};
use camlens::server::{Ended, Server, Shutdown};
use camlens::telemetry::{Stage, Telemetry};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// The network: 10 classes, `[3, 33, 33]`, called `small`.
pub const LABELS: [&str; 10] = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"];
pub const SIDE: u32 = 33;
pub const SMALL: &str = "small";

/// Longer than any step of a test takes, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct TestServer {
    _folder: TempDir,
    socket: PathBuf,
    pub addresses: Vec<ListenAddress>,
    #[allow(dead_code, reason = "used by tests/telemetry")]
    pub admin: Option<SocketAddr>,
    #[allow(dead_code, reason = "used by tests/telemetry")]
    pub probes: Option<SocketAddr>,
    #[allow(dead_code, reason = "used by tests/protocol")]
    pub view: Option<SocketAddr>,
    pub shutdown: Shutdown,
    running: JoinHandle<Ended>,
}

impl TestServer {
    /// A server with the real engine.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A server with the real engine and this configuration.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_with_telemetry(Telemetry::disabled(), change).await
    }

    /// A server with the real engine and telemetry.
    pub async fn start_with_telemetry(telemetry: Telemetry, change: impl FnOnce(&mut Config)) -> Self {
        let (folder, config) = configuration(change);
        let shutdown = Shutdown::new();
        let server = Server::start(&config, telemetry, shutdown.clone()).await.expect("the server starts");
        Self::of(folder, server, shutdown)
    }

    /// A server whose device waits for the test.
    pub async fn gated(change: impl FnOnce(&mut Config)) -> (Self, Gate) {
        Self::gated_with_telemetry(Telemetry::disabled(), change).await
    }

    /// A server whose device waits for the test, with telemetry.
    pub async fn gated_with_telemetry(telemetry: Telemetry, change: impl FnOnce(&mut Config)) -> (Self, Gate) {
        let (folder, config) = configuration(change);
        let model = Model::load(SMALL, 1, &folder.path().join("models/small/1"), &LoadLimits::default());
        let limits = ServedLimits {
            max_batch: config.limits.max_batch,
            max_targets: config.limits.max_targets,
            frame: frame::Limits { max_pixels: 1_000_000, max_encoded_bytes: 1_000_000 },
        };
        let metadata = Arc::clone(&model.expect("the small network loads").metadata);
        let served = Arc::new(Served::new(metadata, limits, tch::Device::Cpu).expect("it can be served"));
        let (go, wait) = mpsc::channel();
        let (began, begins) = mpsc::channel();
        let engine_config = EngineConfig {
            binds_models: false,
            queued_frames: 64,
            queued_bytes: 4 << 20,
            model_queued_frames: 64,
            model_queued_bytes: 4 << 20,
            stream_queued_bytes: 4 << 20,
            max_batch_delay: Duration::from_millis(config.limits.max_batch_delay_ms.into()),
            priority_ageing: Duration::from_millis(config.limits.priority_ageing_ms.into()),
            frame_threads: 2,
            background: false,
        };
        let device = move || GatedDevice { wait, began };
        let engine =
            Engine::start(engine_config, vec![served], vec![device], Arc::new(SystemClock)).expect("threads start");
        let shutdown = Shutdown::new();
        let server = Server::start_with(&config, engine, telemetry, shutdown.clone()).await.expect("the server starts");
        (Self::of(folder, server, shutdown), Gate { go, begins: Arc::new(Mutex::new(begins)) })
    }

    fn of(folder: TempDir, server: Server, shutdown: Shutdown) -> Self {
        let socket = folder.path().join("camlens.sock");
        let addresses = server.addresses().to_vec();
        let (admin, probes, view) = (server.admin_address(), server.probe_address(), server.view_address());
        let running = tokio::spawn(server.run());
        TestServer { _folder: folder, socket, addresses, admin, probes, view, shutdown, running }
    }

    /// Opens a new connection.
    pub async fn channel(&self) -> Channel {
        self.channel_with(|endpoint| endpoint).await
    }

    pub async fn channel_with(&self, change: impl FnOnce(Endpoint) -> Endpoint) -> Channel {
        dial(self.socket.clone(), change).await
    }

    pub async fn explain(&self) -> ExplainServiceClient<Channel> {
        ExplainServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub async fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel().await)
    }

    /// Waits until the server has stopped, which must have been requested.
    pub async fn ended(self) -> Ended {
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").expect("it does not break")
    }
}

/// A connection to a Unix socket.
pub async fn dial(socket: PathBuf, change: impl FnOnce(Endpoint) -> Endpoint) -> Channel {
    let dial = move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    change(Endpoint::from_static("http://localhost"))
        .connect_with_connector(tower::service_fn(dial))
        .await
        .expect("the server listens")
}

fn configuration(change: impl FnOnce(&mut Config)) -> (TempDir, Config) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let version = folder.path().join("models/small/1");
    std::fs::create_dir_all(&version).expect("a folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/conformance/resnet_basic/1/model.pt2");
    std::fs::copy(fixture, version.join("model.pt2")).expect("the fixture is there");
    let labels = LABELS.map(|label| format!("{label:?}")).join(", ");
    let description = format!("summary = \"A small network\"\n[output]\nlabels = [{labels}]\n");
    std::fs::write(version.join("model.toml"), description).expect("a file");
    let mut config = Config::default();
    config.server.listen = vec![ListenAddress::Unix(folder.path().join("camlens.sock"))];
    config.models.repository = folder.path().join("models");
    config.device.threads = 1;
    config.device.frame_threads = 2;
    // Answers to equal frames are compared bit for bit.
    config.device.kernel_timing = KernelTiming::Never;
    if let Some(libraries) = cuda_libraries() {
        config.device.name = DeviceName::Cuda(Vec::new());
        config.device.libraries = vec![libraries.into()];
    }
    change(&mut config);
    (folder, config)
}

fn cuda_libraries() -> Option<std::ffi::OsString> {
    std::env::var_os("CAMLENS_TEST_CUDA")
}

/// The kind of device that these tests run on.
pub fn device() -> tch::Device {
    if cuda_libraries().is_some() { tch::Device::Cuda(0) } else { tch::Device::Cpu }
}

/// The test's control of the device.
#[derive(Clone)]
pub struct Gate {
    go: mpsc::Sender<()>,
    begins: Arc<Mutex<mpsc::Receiver<usize>>>,
}

impl Gate {
    /// Waits until the device has begun a batch; returns its number of rows.
    pub async fn began(&self) -> usize {
        let begins = Arc::clone(&self.begins);
        tokio::task::spawn_blocking(move || {
            begins.lock().expect("one test").recv_timeout(PATIENCE).expect("a batch begins")
        })
        .await
        .expect("no panic")
    }

    /// Lets one batch end: the one that has begun, or the next.
    pub fn go(&self) {
        self.go.send(()).expect("the device lives");
    }
}

/// Answers class 0 for every row once the gate lets the batch end.
struct GatedDevice {
    wait: mpsc::Receiver<()>,
    began: mpsc::Sender<usize>,
}

impl Device for GatedDevice {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        interrupt: &dyn Interrupt,
        ended: &mut dyn FnMut(Stage),
    ) -> Result<Vec<RowResult>, ExplainError> {
        // The receiver is gone once the test has ended.
        let _ = self.began.send(batch.inputs.len());
        let _ = self.wait.recv_timeout(PATIENCE);
        ended(Stage::Forward);
        if interrupt.stop() {
            return Err(ExplainError::Plan(PlanError::Interrupted));
        }
        let mut logits = vec![0.0; LABELS.len()];
        logits[0] = 1.0;
        let row = RowMaps { logits, targets: vec![TargetValues { score: 1.0, ..TargetValues::default() }] };
        Ok(batch.inputs.iter().map(|_| Ok(row.clone())).collect())
    }
}
