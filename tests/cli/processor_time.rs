//! The processor time of the real server with the bundled model, and what `camlens bench` reports of it.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use camlens::client::{Address, Bearer, TlsSettings, connect, explain_client};
use camlens::proto::v1;
use camlens::proto::v1::explain_stream_request::Message;
use procfs::process::Process;
use serde_json::Value;
use tokio::time::sleep;

use super::{camlens, run, summary, text};

/// Longer than the server works on after a frame: threads spin, memory is given back.
const SETTLED: Duration = Duration::from_millis(1500);
const IDLE: Duration = Duration::from_secs(2);
/// Of one processor: 6 clock ticks in `IDLE`.
const ALMOST_NONE: f64 = 0.03;

/// A server on a Unix socket and on a free port.
struct Server {
    process: Child,
    _folder: tempfile::TempDir,
    unix: String,
    tcp: String,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let unix = format!("unix:{}", text(&folder.path().join("camlens.sock")));
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models");
        let arguments = ["serve", "--models", models, "--listen", &unix, "--listen", "127.0.0.1:0", "--log", "info"];
        let mut command = camlens(&arguments);
        // Kernels are not timed while the server is idle.
        command.args(["--kernel-timing", "at-start"]);
        let process = command.stderr(fs::File::create(&log).expect("a file")).spawn().expect("the program starts");
        let mut server = Server { process, _folder: folder, unix, tcp: String::new() };
        let (code, _, _) = run(&mut camlens(&["health", "--server", &server.unix, "--wait", "60"]));
        let log = fs::read_to_string(log).expect("its log");
        assert_eq!(code, 0, "{log}");
        let port = log.lines().find_map(|line| line.split_once("listening address=127.0.0.1:")).expect("its port").1;
        server.tcp = format!("127.0.0.1:{}", port.trim());
        server
    }

    /// Processor time since its start, in seconds.
    fn processor_s(&self) -> f64 {
        let stat = Process::new(self.process.id() as i32).and_then(|process| process.stat()).expect("it runs");
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_server_without_frames_takes_no_processor_time_though_a_client_has_a_stream_open() {
    let server = Server::start();
    let address: Address = server.unix.parse().expect("an address");
    let link = connect(&address, &TlsSettings::default(), Bearer::default()).await.expect("it serves");
    let mut client = explain_client(link);
    let open = v1::ExplainStreamRequest { message: Some(Message::Open(v1::Open::default())) };
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(open).await.expect("the channel is empty");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let stream = client.explain_stream(outgoing).await.expect("the stream is opened");
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo-assets/photographs/rocket.jpg");
    let data = fs::read(photograph).expect("a photograph").into();
    let payload = v1::frame::Payload::Encoded(v1::EncodedImage { data, ..Default::default() });
    let frame = Some(v1::Frame { payload: Some(payload), ..Default::default() });
    client.explain(v1::ExplainRequest { frame, ..Default::default() }).await.expect("an explanation");
    sleep(SETTLED).await;
    let before = server.processor_s();
    sleep(IDLE).await;
    let taken = server.processor_s() - before;
    assert!(taken <= ALMOST_NONE * IDLE.as_secs_f64(), "{taken} s of processor time in {IDLE:?}");
    assert!(before > 0.0, "the start and the frame took some");
    drop((requests, stream));
}

#[test]
fn bench_reports_the_processor_time_of_a_server_on_this_machine() {
    const FRAMES: f64 = 20.0;
    let server = Server::start();
    for address in [&server.unix, &server.tcp] {
        let arguments = ["bench", "--server", address, "--connections", "2", "--streams", "2", "--frames", "10"];
        let (began, before) = (Instant::now(), server.processor_s());
        let (code, stdout, stderr) = run(camlens(&arguments).args(["--warm-up", "0", "--size", "224x224", "--json"]));
        let whole = server.processor_s() - before;
        assert_eq!((code, stderr.as_str()), (0, ""));
        let result = summary(&stdout);
        let of_server = |field: &str| {
            let value = result["processor"].get(field).and_then(Value::as_f64);
            value.unwrap_or_else(|| panic!("no processor.{field} over {address}: {result}"))
        };
        let time_ms = of_server("time_ms");
        assert!(time_ms > 0.0 && time_ms <= 1e3 * whole + 1e-6, "{time_ms} ms of {whole} s");
        assert!((of_server("per_frame_ms") * FRAMES - time_ms).abs() < 1e-6, "{result}");
        let measured_s = result["seconds"].as_f64().expect("the measured time");
        let span_s = time_ms / 1e3 / of_server("used");
        assert!((0.9 * measured_s..began.elapsed().as_secs_f64()).contains(&span_s), "{span_s} s: {result}");
    }
    let arguments = ["bench", "--server", &server.unix, "--frames", "3", "--warm-up", "0", "--size", "224x224"];
    let (_, stdout, _) = run(&mut camlens(&arguments));
    let line = stdout.lines().find(|line| line.starts_with("processor  ")).expect("a line of the table");
    assert!(line.contains(" ms per answered frame; the server used ") && line.ends_with(" processors"), "{line}");
}
