//! The time of an explanation, compared with other libraries and with the forward run of the fastest runtimes.
//!
//!     cargo bench --bench explain                            ResNet-50, 224², batch 1, two threads
//!     cargo bench --bench explain -- --models all --rows 1,8 --json FILE
//!     cargo bench --bench explain -- --without-peers         camlens alone
//!     cargo bench --bench explain -- --targets 1             without the runs of five classes
//!
//! Runs are interleaved: each round has one run of each, so that other load on the machine affects all alike. There is
//! a pause before each run, because threads of ONNX Runtime, OpenMP and OpenVINO spin for a while after a run. The
//! other libraries run in one Python process for each network, `tests/bench/peers.py`, which also exports the network.
//! `tests/bench/run.sh` measures all networks and draws the chart.

mod ours;
mod peers;
mod rounds;
mod sidecar;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use camlens::torch::threads;
use clap::Parser;
use serde_json::json;

use self::ours::Ours;
use self::peers::Peers;
use self::rounds::Rounds;
use self::sidecar::Sidecar;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MODELS: [&str; 8] =
    ["resnet18", "resnet50", "vgg16", "densenet121", "mobilenet_v2", "efficientnet_lite0", "convnext_tiny", "vit_b_16"];

/// Rounds that are not measured.
const WARM_UP: usize = 3;

/// A bound on the median of a ratio.
struct Target {
    over: &'static str,
    under: &'static str,
    /// For ResNet-50, for ResNet-18, for the others; `None`: no bound.
    resnet50: Option<f64>,
    resnet18: Option<f64>,
    other: Option<f64>,
    /// Whether the bound is the largest allowed ratio; else it is the smallest.
    is_most: bool,
}

impl Target {
    fn of(&self, model: &str) -> Option<f64> {
        match model {
            "resnet50" => self.resnet50,
            "resnet18" => self.resnet18,
            _ => self.other,
        }
    }
}

/// Bounds for one row on a CPU.
const TARGETS: [Target; 8] = [
    Target { over: "explain", under: "openvino", resnet50: Some(2.2), resnet18: None, other: None, is_most: true },
    Target { over: "grad-cam", under: "forward", resnet50: Some(1.1), resnet18: None, other: None, is_most: true },
    least("pytorch-grad-cam", "explain", Some(6.0), Some(5.0), Some(3.0)),
    least("captum", "explain", Some(4.0), Some(3.0), Some(2.0)),
    least("pytorch-grad-cam-5", "explain-5", Some(8.0), None, None),
    least("captum-5", "explain-5", Some(6.0), None, None),
    least("pytorch-grad-cam", "explain-bf16", Some(10.0), None, None),
    least("captum", "explain-bf16", Some(6.0), None, None),
];

const fn least(
    over: &'static str,
    under: &'static str,
    resnet50: Option<f64>,
    resnet18: Option<f64>,
    other: Option<f64>,
) -> Target {
    Target { over, under, resnet50, resnet18, other, is_most: false }
}

/// What serving may add to an explanation, beside the cost of a gRPC call with the same bytes: for ResNet-18.
const MOST_ADDED_MS: f64 = 1.0;

#[derive(Parser)]
struct Arguments {
    /// Of resnet18, resnet50, vgg16, densenet121, mobilenet_v2, efficientnet_lite0, convnext_tiny, vit_b_16; or `all`.
    #[arg(long, value_delimiter = ',', default_value = "resnet50")]
    models: Vec<String>,
    /// Rows of a batch.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    rows: Vec<usize>,
    /// Classes explained for each row: 1, 5 or both.
    #[arg(long, value_delimiter = ',', default_value = "1,5")]
    targets: Vec<u8>,
    /// Measured rounds, after three warm-up rounds.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    #[arg(long, default_value_t = 2)]
    threads: u8,
    /// Explain this exported program or version directory instead, at its first target layer, and without peers.
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long)]
    without_peers: bool,
    /// A Python with the packages of tests/python/requirements-bench.txt; deploy/python-env makes one otherwise.
    #[arg(long, env = "CAMLENS_PYTHON")]
    python: Option<PathBuf>,
    /// Write all times to this file, in seconds.
    #[arg(long)]
    json: Option<PathBuf>,
    /// End with an error when a target is missed.
    #[arg(long)]
    strict: bool,
    /// Passed by cargo to every bench; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    tch::set_num_threads(arguments.threads.into());
    threads::set_model_threads(arguments.threads.into());
    println!("{} rounds, {} threads, {}", arguments.rounds, arguments.threads, processor());
    let names: Vec<&str> = match (&arguments.model, arguments.models.iter().any(|name| name == "all")) {
        (Some(_), _) => vec!["model"],
        (None, true) => MODELS.to_vec(),
        (None, false) => arguments.models.iter().map(String::as_str).collect(),
    };
    let (mut met, mut figures) = (true, Vec::new());
    for name in names {
        for &rows in &arguments.rows {
            println!("\n{name}, {rows} rows");
            let (rounds, facts) = measure(arguments, name, rows)?;
            rounds.print();
            met &= rows != 1 || judge(&rounds, name);
            figures.push(json!({ "model": name, "rows": rows, "peers": facts, "seconds": rounds.to_json() }));
            // Written after each model, so that nothing is lost if a later one fails.
            if let Some(file) = &arguments.json {
                let all = json!({
                    "rounds": arguments.rounds,
                    "threads": arguments.threads,
                    "processor": processor(),
                    "version": env!("CARGO_PKG_VERSION"),
                    "networks": figures,
                });
                fs::write(file, serde_json::to_string_pretty(&all)?)?;
            }
        }
    }
    Ok(met || !arguments.strict)
}

/// All rounds, and the errors that the peers report for themselves.
fn measure(arguments: &Arguments, name: &str, rows: usize) -> Result<(Rounds, serde_json::Value)> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let exported = scratch.join(name);
    let input = exported.join(format!("input-{rows}.npy"));
    let model = arguments.model.clone().unwrap_or_else(|| exported.join("1"));
    let is_made = arguments.model.is_some() || (model.join("model.pt2").exists() && input.exists());
    let wants_peers = arguments.model.is_none() && !arguments.without_peers;
    let mut peers = match wants_peers || !is_made {
        true => Some(Peers::start(arguments, name, rows, &scratch)?),
        false => None,
    };
    let mut ours = Ours::new(&model, rows, arguments.model.is_none().then_some(&input))?;
    let mut facts = serde_json::Value::Null;
    if let Some(peers) = &mut peers {
        let file = scratch.join("guided_grad_cam.npy");
        ours.first_map()?.write_npy(&file)?;
        let distance = peers.ask(&format!("check {}", file.display()))?;
        println!("relative L2 from the definition {}, from Captum {}", distance["oracle"], distance["captum"]);
        facts = peers.facts.clone();
        facts["distance"] = distance;
    }
    let others: Vec<String> = peers.as_ref().filter(|_| wants_peers).map(Peers::runs).unwrap_or_default();
    let in_process = ours::runs();
    // A frame of the protocol is a single row.
    let mut sidecar = match rows == 1 && arguments.model.is_none() {
        true => Some(Sidecar::start(&model, &input, arguments.threads)?),
        false => None,
    };
    let served = sidecar.iter().flat_map(|_| [sidecar::RUN, sidecar::ECHO]);
    let is_wanted = |run: &String| arguments.targets.contains(&if run.contains("-5") { 5 } else { 1 });
    let ours_all = in_process.iter().copied().chain(served).map(str::to_owned);
    let mut runs: Vec<String> = ours_all.chain(others).filter(is_wanted).collect();
    let mut rounds = Rounds::default();
    for round in 0..arguments.rounds + WARM_UP {
        let mut now = Vec::new();
        for run in &runs {
            let seconds = match (&mut peers, &mut sidecar) {
                (_, Some(sidecar)) if [sidecar::RUN, sidecar::ECHO].contains(&run.as_str()) => sidecar.seconds(run)?,
                (Some(peers), _) if !in_process.contains(&run.as_str()) => peers.seconds(run)?,
                _ => ours.seconds(run)?,
            };
            now.push((run.clone(), seconds));
        }
        // In the next round each run follows another one.
        runs.rotate_left(1);
        if round >= WARM_UP {
            rounds.push(now);
        }
    }
    Ok((rounds, facts))
}

/// Whether all bounds hold.
fn judge(rounds: &Rounds, model: &str) -> bool {
    let mut all = true;
    if let Some(added) = rounds.difference(sidecar::RUN, &["explain", sidecar::ECHO]) {
        let verdict = if added.median <= MOST_ADDED_MS { "met" } else { "MISSED" };
        let (name, bound) = ("explain-grpc - explain - echo-grpc", format!("at most {MOST_ADDED_MS:.1} ms: {verdict}"));
        added.print(name, if model == "resnet18" { &bound } else { "ms" });
        all &= model != "resnet18" || added.median <= MOST_ADDED_MS;
    }
    for target in &TARGETS {
        let (Some(limit), Some(ratio)) = (target.of(model), rounds.ratio(target.over, target.under)) else { continue };
        let met = if target.is_most { ratio.median <= limit } else { ratio.median >= limit };
        let (bound, verdict) =
            (if target.is_most { "at most" } else { "at least" }, if met { "met" } else { "MISSED" });
        ratio.print(&format!("{} / {}", target.over, target.under), &format!("{bound} {limit}: {verdict}"));
        all &= met;
    }
    all
}

/// The processor's name in /proc/cpuinfo.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    name.unwrap_or("an unknown processor").to_owned()
}
