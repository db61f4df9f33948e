//! A CUDA device, as the program uses it: the fake one of `tests/fake_device`, which stands in CUDA's place, shuts its
//! memory to the host, and ends the process at the first violation of order, lifetime or capture.

mod memory;
mod streams;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use camlens::render::npy;
use serde_json::Value;
use tch::Tensor;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/models/efficientnet-lite0");
/// A network of 33 × 33 pixels.
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/conformance/resnet_basic");
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/preprocessing/444.jpg");

/// The folder of the fake device's `libcamlens_cuda.so`, which is built first.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_device");
        let built =
            Command::new(root.join("tests/fake_device/build.sh")).arg(root.join(".libtorch")).arg(&out).status();
        assert!(built.expect("build.sh runs").success(), "the fake device is built");
        out
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn map(path: &Path) -> Tensor {
    let array = npy::read(fs::File::open(path).expect("a map")).expect("NumPy's format");
    Tensor::from_slice(&array.data)
}

/// The program, with the fake device as strict as it can be.
fn camlens(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMLENS_") || name.starts_with("FAKE_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).env("FAKE_CUDA_STRICT", "1");
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// A server on the fake device.
struct Server {
    process: Child,
    log: Box<dyn BufRead>,
    seen: String,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(model: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
        let on_device = ["--device", "cuda", "--device-libraries", text(libraries())];
        let mut command = camlens(&["serve", "--listen", &socket, "--models", model, "--log", "info"]);
        command.args(on_device).args(arguments).envs(environment.iter().copied());
        command.env("FAKE_CUDA_REPORT", folder.path().join("report.json")).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let log = Box::new(BufReader::new(process.stderr.take().expect("its log")));
        Server { process, log, seen: String::new(), folder }
    }

    /// One that serves.
    fn serving(model: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut server = Server::start(model, arguments, environment);
        server.says("serving");
        server
    }

    fn address(&self) -> String {
        format!("unix:{}", text(&self.folder.path().join("camlens.sock")))
    }

    /// Reads the log up to a line with `words`.
    fn says(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.log.read_line(&mut line).expect("its log");
            assert!(length > 0, "the log lacks {words:?}:\n{}", self.seen);
            self.seen.push_str(&line);
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The exit code, and the fake device's report.
    fn ended(mut self) -> (Option<i32>, Value) {
        self.log.read_to_string(&mut self.seen).expect("its log");
        let code = self.process.wait().expect("it ends").code();
        let report = fs::read_to_string(self.folder.path().join("report.json"));
        let report = report.unwrap_or_else(|error| panic!("no report: {error}; the log:\n{}", self.seen));
        (code, serde_json::from_str(&report).expect("JSON"))
    }

    /// The bytes of each device that the process holds, from the admin port.
    fn device_memory(&self) -> std::collections::BTreeMap<String, f64> {
        let (_, from) = self.seen.split_once("admin port").expect("the log names the admin port");
        let address =
            from.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("its address");
        let page = Command::new("curl").args(["-sf", &format!("http://{address}/metrics")]).output().expect("curl");
        let page = String::from_utf8(page.stdout).expect("UTF-8");
        let mut held = std::collections::BTreeMap::new();
        for line in page.lines().filter(|line| line.starts_with("camlens_device_memory_usage_bytes{")) {
            let device = line.split("camlens_device_name=\"").nth(1).and_then(|rest| rest.split('"').next());
            let value: f64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
            *held.entry(device.expect("a device").to_owned()).or_default() += value;
        }
        held
    }

    /// Ends it by SIGTERM.
    fn stop(self) -> Value {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").arg(id).status().expect("kill").success());
        let (code, report) = self.ended();
        assert_eq!(code, Some(0));
        report
    }

    fn client(&self, arguments: &[&str]) -> (i32, String, String) {
        run(camlens(arguments).args(["--server", &self.address()]))
    }

    /// Sends frames, several at a time, and checks that each was answered.
    fn answers(&self, frames: u32, arguments: &[&str]) {
        let frames = frames.to_string();
        let load = ["bench", "--json", "--overflow", "block", "--frames", &frames, "--warm-up", "0"];
        let (code, stdout, stderr) = self.client(&[&load[..], arguments].concat());
        assert_eq!(code, 0, "{stderr}");
        let result: Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(result["frames"]["answered"], result["frames"]["sent"], "{result}");
    }
}

fn count(report: &Value, name: &str) -> i64 {
    report[name].as_i64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn a_frame_crosses_once_each_way_and_leaves_no_memory_behind() {
    let reports = [20, 1020].map(|frames| {
        let server = Server::serving(SMALL, &[], &[]);
        server.answers(frames, &["--in-flight", "1"]);
        server.stop()
    });
    let more = |name: &str| count(&reports[1], name) - count(&reports[0], name);
    assert_eq!((more("copies_to_device"), more("copies_to_host")), (1000, 1000));
    assert_eq!(more("graph_launches"), 2000, "forward and reverse");
    assert_eq!(count(&reports[0], "peak_bytes"), count(&reports[1], "peak_bytes"));
    for report in &reports {
        assert_eq!(count(report, "allocated_bytes"), 0, "{report}");
        assert_eq!(report["violations"], serde_json::json!([]));
    }
}

#[test]
fn answers_are_those_of_the_processor() {
    let server = Server::serving(MODEL, &[], &[]);
    let out = server.folder.path().join("cuda");
    let explain = |out: &Path, rest: &[&str]| {
        let maps = ["--map", "guided-grad-cam", "--map", "grad-cam", "--map", "guided-backprop", "--json"];
        let explain = ["explain", PICTURE, "--out", text(out), "--target", "top:2"];
        let (code, stdout, stderr) = run(camlens(&explain).args(maps).args(rest));
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&stdout).expect("JSON")
    };
    let here = explain(&out, &["--server", &server.address()]);
    let other = server.folder.path().join("cpu");
    let there = explain(&other, &["--models", MODEL]);
    let classes = |answer: &Value| answer.pointer("/0/predictions").expect("predictions").clone();
    assert_eq!(classes(&here)[0]["class_index"], classes(&there)[0]["class_index"]);
    let mut compared = 0;
    for entry in fs::read_dir(&out).expect("results") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "npy") {
            let wanted = map(&other.join(path.file_name().expect("a file")));
            let found = map(&path);
            let difference = (&found - &wanted).norm().double_value(&[]) / wanted.norm().double_value(&[]);
            assert!(difference < 1e-3, "{}: {difference}", path.display());
            compared += 1;
        }
    }
    assert_eq!(compared, 6, "three maps of two classes");
    server.stop();
}

#[test]
fn batches_of_any_size_and_several_classes_are_answered() {
    let server = Server::serving(SMALL, &["--max-batch", "4"], &[]);
    server.answers(12, &["--streams", "7", "--in-flight", "2", "--target", "top:3"]);
    let report = server.stop();
    assert!(count(&report, "graph_launches") > 0);
    assert_eq!(report["violations"], serde_json::json!([]));
}

#[test]
fn a_device_that_breaks_ends_the_server_with_an_error() {
    let mut server = Server::serving(SMALL, &[], &[("FAKE_CUDA_BREAK_AFTER", "20000")]);
    let load = ["bench", "--json", "--overflow", "block", "--frames", "1000", "--warm-up", "0"];
    let (code, stdout, _) = server.client(&load);
    assert_ne!(code, 0);
    let accounted: Value = serde_json::from_str(stdout.lines().last().unwrap_or("null")).unwrap_or_default();
    assert_eq!(accounted["frames"]["missing"], 0, "{accounted}");
    server.says("a device fails until the process ends");
    let (code, _) = server.ended();
    assert_eq!(code, Some(1));
}

#[test]
fn a_card_without_enough_memory_is_a_reason_with_figures() {
    let mut server = Server::start(MODEL, &[], &[("FAKE_CUDA_MEMORY", "20000000")]);
    server.says("out of memory");
    let code = server.process.wait().expect("it ends").code();
    assert_eq!(code, Some(1), "{}", server.seen);
}

#[test]
fn a_memory_limit_holds() {
    let server = Server::serving(MODEL, &["--device-memory-limit", "300MiB"], &[]);
    server.answers(4, &[]);
    let report = server.stop();
    assert!(count(&report, "peak_reserved_bytes") <= 300 << 20, "{report}");
}

#[test]
fn without_cuda_the_reason_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = format!("unix:{}", text(&folder.path().join("camlens.sock")));
    let serve = ["serve", "--listen", &socket, "--models", "builtin:identity"];
    // libcamlens_cuda.so may be beside the program; libtorch_cuda.so is not there.
    let (code, _, stderr) = run(camlens(&serve).args(["--device", "cuda"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("device.name = \"cuda\": libtorch_cuda.so is not in"), "{stderr}");

    let (code, stdout, _) = run(&mut camlens(&["doctor", "--devices", "--json"]));
    assert_eq!(code, 0);
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    assert!(found["cuda"]["problem"].as_str().is_some_and(|problem| problem.contains("libtorch_cuda.so")), "{found}");
    assert!(found["cpu"]["processors"].as_u64() > Some(0));
}

#[test]
fn doctor_lists_the_devices() {
    let doctor = ["doctor", "--devices", "--json", "--device-libraries", text(libraries())];
    let (code, stdout, stderr) = run(camlens(&doctor).env("FAKE_CUDA_DEVICES", "2"));
    assert_eq!(code, 0, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(found["cuda"]["devices"].as_array().map(Vec::len), Some(2), "{found}");
    let serve = ["serve", "--models", MODEL, "--device", "cuda:2", "--device-libraries", text(libraries())];
    let (code, _, stderr) = run(camlens(&serve).env("FAKE_CUDA_DEVICES", "2"));
    assert_eq!(code, 1);
    assert!(stderr.contains("there is no device cuda:2: the devices are cuda:0 to cuda:1"), "{stderr}");
}

#[test]
fn two_devices_share_the_frames() {
    let server = Server::serving(SMALL, &[], &[("FAKE_CUDA_DEVICES", "2")]);
    server.answers(30, &["--streams", "4", "--in-flight", "2"]);
    let report = server.stop();
    assert_eq!(report["violations"], serde_json::json!([]));
}

#[test]
fn a_model_is_loaded_on_the_devices_that_it_is_bound_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("camlens.toml");
    let bound = |name: &str, device: &str| {
        fs::write(&config, format!("[device.models]\n{name} = \"{device}\"\n")).expect("a file");
    };
    let two = [("FAKE_CUDA_DEVICES", "2")];
    bound("resnet_basic", "cuda:1");
    let server = Server::serving(SMALL, &["--config", text(&config), "--admin-listen", "127.0.0.1:0"], &two);
    server.answers(10, &["--streams", "3"]);
    let (code, stdout, _) = server.client(&["models", "resnet_basic", "--json"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("cuda:1 (") && !stdout.contains("cuda:0 ("), "{stdout}");
    let held = server.device_memory();
    assert_eq!(held.get("cuda:0"), Some(&0.0), "{held:?}");
    assert!(held.get("cuda:1").is_some_and(|bytes| *bytes > 0.0), "{held:?}");
    server.stop();

    for (name, device, problem) in [
        ("other", "cuda:1", "there is no such model; the models are resnet_basic"),
        ("resnet_basic", "cuda:2", "cuda:1 ("),
    ] {
        bound(name, device);
        let mut server = Server::start(SMALL, &["--config", text(&config)], &two);
        let line = server.says("device.models: ");
        assert!(line.contains(name) && line.contains(problem), "{line}");
        assert_eq!(server.process.wait().expect("it ends").code(), Some(1));
    }
}

#[test]
fn commands_without_a_server_run_on_a_device() {
    let device = ["--device", "cuda", "--device-libraries", text(libraries())];
    let load = ["bench", "--json", "--models", SMALL, "--frames", "3", "--warm-up", "0"];
    let (code, stdout, stderr) = run(camlens(&load).args(device));
    assert_eq!(code, 0, "{stderr}");
    let result: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(result["frames"]["answered"], 3, "{result}");
    let (code, stdout, stderr) = run(camlens(&["doctor", SMALL, "--json", "--runs", "1"]).args(device));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let (code, _, stderr) = run(&mut camlens(&["doctor", SMALL, "--device", "cuda"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("device.name = \"cuda\": libtorch_cuda.so is not in"), "{stderr}");
}

#[test]
fn batches_are_no_larger_than_the_memory_allows() {
    let mut server = Server::start(MODEL, &["--max-batch", "8"], &[("FAKE_CUDA_MEMORY", "500000000")]);
    server.says("the device has memory for no more");
    server.says("serving");
    server.answers(4, &["--streams", "4"]);
    server.stop();
}
