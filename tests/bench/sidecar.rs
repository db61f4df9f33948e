//! camlens as a client uses it: the built binary on a Unix socket, one unary call after the other. Beside it an echo: a
//! server that answers the same request with the same response and does nothing else.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use camlens::proto::v1;
use camlens::proto::v1::explain_service_client::ExplainServiceClient;
use camlens::proto::v1::explain_service_server::{ExplainService, ExplainServiceServer};
use camlens::proto::v1::frame::Payload;
use camlens::proto::v1::target::Kind;
use hyper_util::rt::TokioIo;
use tch::Tensor;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::Result;
use super::ours::{CLASSES, LONG, PAUSE};

/// Guided Grad-CAM of one class, from an f32 tensor to an f32 tensor.
pub const RUN: &str = "explain-grpc";
/// The same request and response, without an explanation.
pub const ECHO: &str = "echo-grpc";

const BINARY: &str = env!("CARGO_BIN_EXE_camlens");
const MAX_MESSAGE_BYTES: usize = 64 << 20;

pub struct Sidecar {
    _server: Server,
    runtime: Runtime,
    client: ExplainServiceClient<Channel>,
    echo: ExplainServiceClient<Channel>,
    request: v1::ExplainRequest,
    _folder: TempDir,
}

impl Sidecar {
    /// Serves the version in a folder; `input` is a `.npy` file, `[1, C, H, W]`.
    pub fn start(model: &Path, input: &Path, threads: u8) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let models = folder.path().join("models/bench");
        std::fs::create_dir_all(&models)?;
        std::os::unix::fs::symlink(model.canonicalize()?, models.join("1"))?;
        let socket = folder.path().join("camlens.sock");
        let address = format!("unix:{}", socket.display());
        let server = Server(
            Command::new(BINARY)
                .args(["serve", "--log", "warn", "--kernel-timing", "at-start", "--listen", &address])
                .args(["--threads", &threads.to_string(), "--models"])
                .arg(folder.path().join("models"))
                .stdin(Stdio::null())
                .spawn()?,
        );
        let ready = Command::new(BINARY).args(["health", "--server", &address, "--wait", "60"]).output()?;
        if !ready.status.success() {
            return Err(String::from_utf8_lossy(&ready.stderr).into_owned().into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut client = runtime.block_on(connect(socket))?;
        let request = request(input)?;
        let response = runtime.block_on(client.explain(request.clone()))?.into_inner();
        let socket = folder.path().join("echo.sock");
        echo(&socket, response)?;
        let echo = runtime.block_on(connect(socket))?;
        Ok(Sidecar { _server: server, runtime, client, echo, request, _folder: folder })
    }

    /// As [`super::ours::Ours::seconds`], of [`RUN`] or [`ECHO`].
    pub fn seconds(&mut self, run: &str) -> Result<f64> {
        thread::sleep(PAUSE);
        let first = self.run(run)?;
        Ok(if first > LONG { first } else { self.run(run)? })
    }

    fn run(&mut self, run: &str) -> Result<f64> {
        let request = self.request.clone();
        let client = if run == ECHO { &mut self.echo } else { &mut self.client };
        let start = Instant::now();
        let response = self.runtime.block_on(client.explain(request))?.into_inner();
        let seconds = start.elapsed().as_secs_f64();
        let explanation = response.explanation.ok_or("no explanation")?;
        let tensor = explanation.targets.first().and_then(|target| target.tensors.first()?.tensor.as_ref());
        if tensor.is_none_or(|tensor| tensor.data.is_empty()) {
            return Err("no map".into());
        }
        Ok(seconds)
    }
}

async fn connect(socket: PathBuf) -> Result<ExplainServiceClient<Channel>> {
    let dial = move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await?;
    Ok(ExplainServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Answers every call on the socket with `response`, on a thread that ends with the process.
fn echo(socket: &Path, response: v1::ExplainResponse) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(async { UnixListener::bind(socket) })?;
    let service = ExplainServiceServer::new(Echo(response)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    thread::spawn(move || {
        let server = tonic::transport::Server::builder().add_service(service);
        // Without the echo, its calls fail and the bench ends with their error.
        let _ = runtime.block_on(server.serve_with_incoming(UnixListenerStream::new(listener)));
    });
    Ok(())
}

struct Echo(v1::ExplainResponse);

#[tonic::async_trait]
impl ExplainService for Echo {
    type ExplainStreamStream = ReceiverStream<std::result::Result<v1::ExplainStreamResponse, Status>>;

    async fn explain(
        &self,
        _: Request<v1::ExplainRequest>,
    ) -> std::result::Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn explain_stream(
        &self,
        _: Request<Streaming<v1::ExplainStreamRequest>>,
    ) -> std::result::Result<Response<Self::ExplainStreamStream>, Status> {
        Err(Status::unimplemented("the echo answers unary calls"))
    }
}

fn request(input: &Path) -> Result<v1::ExplainRequest> {
    let input = Tensor::read_npy(input)?;
    let shape = input.size()[1..].iter().map(|&side| u32::try_from(side)).collect::<std::result::Result<_, _>>()?;
    let values = Vec::<f32>::try_from(input.reshape([-1]))?;
    let data: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    let payload = Payload::Tensor(v1::Tensor { shape, data: data.into(), ..Default::default() });
    let map = v1::TensorOutput { map: v1::Map::GuidedGradCam as i32, ..Default::default() };
    let options = v1::ExplainOptions {
        targets: vec![v1::Target { kind: Some(Kind::ClassIndex(CLASSES[0])) }],
        tensors: vec![map],
        ..Default::default()
    };
    Ok(v1::ExplainRequest {
        options: Some(options),
        frame: Some(v1::Frame { sequence: 1, payload: Some(payload), ..Default::default() }),
        ..Default::default()
    })
}

/// The server process. Dropping it stops it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
