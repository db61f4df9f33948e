//! How long an explanation takes, against the forward run of the same plan and against the usual libraries.
//!
//!     cargo bench --bench explain                      ResNet-50, 224², batch 1, two threads, with the peers beside it
//!     cargo bench --bench explain -- --without-peers   camlens alone
//!
//! Everything is interleaved: each round takes one run of each, so that whatever else the machine does hits all alike.
//! The peers run in one Python process, `tests/bench/peers.py`, which exports the network that all of them explain.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use camlens::explain::{Explainer, Maps, Method};
use camlens::model::{LoadLimits, Model};
use camlens::plan::Never;
use clap::Parser;
use tch::{Device, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One pass, forward and back, takes at most this many times the forward run of the same plan.
const MOST_FORWARDS: f64 = 2.6;
/// Each peer takes at least this many times as long as camlens.
const PEERS: [(&str, f64); 2] = [("captum", 2.2), ("pytorch-grad-cam", 3.5)];

#[derive(Parser)]
struct Arguments {
    /// Rounds, after three that do not count.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    #[arg(long, default_value_t = 2)]
    threads: u8,
    /// Explain this exported program or version directory instead, with the default target layer, and without peers.
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long)]
    without_peers: bool,
    /// A Python with the packages of tests/python/requirements-reference.txt; deploy/python-env makes one otherwise.
    #[arg(long, env = "CAMLENS_PYTHON")]
    python: Option<PathBuf>,
    /// End with an error when a target is missed.
    #[arg(long)]
    strict: bool,
    /// What cargo hands to every bench.
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
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let exported = scratch.join("resnet50");
    let (model, layer) = match &arguments.model {
        Some(model) => (model.clone(), None),
        None => (exported.join("1"), Some("layer4")),
    };
    let wants_peers = arguments.model.is_none() && !arguments.without_peers;
    let is_exported = model.join("model.pt2").exists() || arguments.model.is_some();
    let mut peers = match wants_peers || !is_exported {
        true => Some(Peers::start(arguments, &scratch)?),
        false => None,
    };
    let mut ours = Ours::new(arguments, &model, layer, arguments.model.is_none().then(|| exported.join("input.npy")))?;

    if let Some(peers) = &mut peers {
        let file = scratch.join("guided_grad_cam.npy");
        ours.explain()?.f_unsqueeze(0)?.write_npy(&file)?;
        println!("distance from the peers, relative L2: {}", peers.ask(&format!("check {}", file.display()))?);
    }
    let mut rounds = Rounds::default();
    for round in 0..arguments.rounds + 3 {
        let mut now = vec![("forward", ours.time(Ours::forward)?), ("one pass", ours.time(|o| o.explain().map(drop))?)];
        if let Some(peers) = peers.as_mut().filter(|_| wants_peers) {
            for (peer, _) in PEERS {
                now.push((peer, peers.seconds(peer)?));
            }
            now.push(("PyTorch forward", peers.seconds("forward")?));
        }
        if round >= 3 {
            rounds.0.push(now);
        }
    }
    println!("{} rounds, {} threads, {}", arguments.rounds, arguments.threads, processor());
    let met = rounds.report(wants_peers);
    Ok(met || !arguments.strict)
}

/// camlens's side.
struct Ours {
    explainer: Explainer,
    method: Method,
    input: Tensor,
}

impl Ours {
    fn new(arguments: &Arguments, model: &Path, layer: Option<&str>, input: Option<PathBuf>) -> Result<Self> {
        tch::set_num_threads(arguments.threads.into());
        let model = Model::load("bench", 1, model, &LoadLimits::default())?;
        let size = model.metadata.input.shape.map(|dimension| dimension.example());
        let input = match input {
            Some(file) => Tensor::read_npy(file)?,
            None => Tensor::f_randn([1, size[1], size[2], size[3]], (tch::Kind::Float, Device::Cpu))?,
        };
        let maps = Maps { guided_grad_cam: true, ..Maps::default() };
        let target_layers = layer.into_iter().map(str::to_owned).collect();
        let method = Method { target_layers, maps, ..Method::default() };
        Ok(Ours { explainer: Explainer::new(model, Device::Cpu), method, input })
    }

    fn forward(&mut self) -> Result<()> {
        self.explainer.forward(&self.method, &self.input, &Never)?;
        Ok(())
    }

    /// Guided Grad-CAM of class 281, `[C, H, W]`; of the first class where there are fewer.
    fn explain(&mut self) -> Result<Tensor> {
        let forward = self.explainer.forward(&self.method, &self.input, &Never)?;
        let class = if forward.logits().size()[1] > 281 { 281 } else { 0 };
        let mut rows = forward.reverse(&[vec![class]], &Never)?.fuse()?;
        let maps = rows.pop().and_then(|mut row| row.pop()).ok_or("no maps")?;
        Ok(maps.guided_grad_cam.ok_or("no Guided Grad-CAM")?)
    }

    /// Seconds.
    fn time(&mut self, run: impl Fn(&mut Self) -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        run(self)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// The Python process.
struct Peers {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    fn start(arguments: &Arguments, scratch: &Path) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = match &arguments.python {
            Some(python) => python.clone(),
            None => {
                let made =
                    Command::new(root.join("deploy/python-env")).arg("reference").stderr(Stdio::inherit()).output()?;
                PathBuf::from(String::from_utf8(made.stdout)?.trim())
            }
        };
        let mut child = Command::new(python)
            .arg(root.join("tests/bench/peers.py"))
            .args(["--threads", &arguments.threads.to_string(), "--export"])
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut peers = Peers { child, questions, answers };
        let ready = peers.read()?;
        println!("peers: {ready}");
        Ok(peers)
    }

    fn read(&mut self) -> Result<serde_json::Value> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // Libraries may print what they like; answers are objects.
            if line.starts_with('{') {
                let answer: serde_json::Value = serde_json::from_str(&line)?;
                return match answer.get("error") {
                    Some(error) => Err(format!("peers.py: {error}").into()),
                    None => Ok(answer),
                };
            }
            line.clear();
        }
        Err("tests/bench/peers.py ended; its last words are above".into())
    }

    fn ask(&mut self, question: &str) -> Result<serde_json::Value> {
        writeln!(self.questions, "{question}")?;
        self.questions.flush()?;
        self.read()
    }

    fn seconds(&mut self, run: &str) -> Result<f64> {
        Ok(self.ask(&format!("run {run}"))?["seconds"].as_f64().ok_or("no seconds in the answer")?)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is lost either way.
        let _ = writeln!(self.questions, "quit");
        let _ = self.child.wait();
    }
}

/// What each round took, in seconds.
#[derive(Default)]
struct Rounds(Vec<Vec<(&'static str, f64)>>);

impl Rounds {
    fn of(&self, name: &str) -> Vec<f64> {
        self.0.iter().flatten().filter(|(n, _)| *n == name).map(|(_, seconds)| *seconds).collect()
    }

    /// Round by round, `a` over `b`.
    fn ratio(&self, a: &str, b: &str) -> Quartiles {
        Quartiles::of(self.of(a).into_iter().zip(self.of(b)).map(|(a, b)| a / b).collect())
    }

    /// Prints everything; whether all targets are met.
    fn report(&self, with_peers: bool) -> bool {
        println!("{:<28}{:>10}{:>10}{:>10}", "milliseconds", "quarter", "median", "three q.");
        for (name, _) in self.0.first().into_iter().flatten() {
            Quartiles::of(self.of(name).into_iter().map(|seconds| seconds * 1e3).collect()).print(name);
        }
        println!("ratios, round by round");
        let overhead = self.ratio("one pass", "forward");
        overhead.print("one pass / forward");
        let mut met = verdict(overhead.median <= MOST_FORWARDS, &format!("at most {MOST_FORWARDS}"));
        if with_peers {
            for (peer, least) in PEERS {
                let ratio = self.ratio(peer, "one pass");
                ratio.print(&format!("{peer} / one pass"));
                met &= verdict(ratio.median >= least, &format!("at least {least}"));
            }
        }
        met
    }
}

fn verdict(met: bool, target: &str) -> bool {
    println!("    target: {target}: {}", if met { "met" } else { "MISSED" });
    met
}

struct Quartiles {
    quarter: f64,
    median: f64,
    three_quarters: f64,
}

impl Quartiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at =
            |part: f64| values.get(((values.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or(f64::NAN);
        Quartiles { quarter: at(0.25), median: at(0.5), three_quarters: at(0.75) }
    }

    fn print(&self, name: &str) {
        println!("{name:<28}{:>10.2}{:>10.2}{:>10.2}", self.quarter, self.median, self.three_quarters);
    }
}

/// The processor's name, as Linux tells it.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    name.unwrap_or("an unknown processor").to_owned()
}
