//! `camlens doctor`: checks whether a model file is fit to be served, and which devices there are.

mod devices;
mod examination;
mod findings;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::device_args::DeviceArgs;
use super::failure::{Exit, Failure};
use super::serve::start_failure;
use super::terminal::{self, Ink};
use crate::config::DeviceConfig;
use crate::model::Repository;
use crate::resources::Machine;
use crate::server::devices::Devices;
use crate::torch::threads;
use devices::DeviceReport;
use examination::examine;
use findings::Findings;

/// Examine a model: load it, list its layers, run it forward and in reverse, and report problems. Or list the devices
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens doctor model.pt2
  camlens doctor models/lite0/1 --layers
  camlens doctor models --json
  camlens doctor models/lite0 --runs 10 --device cuda:0
  camlens doctor --devices

Checks: the model loads; it runs forward and in reverse; its logits and maps are finite; rows of a batch do not
influence each other; the folded plan agrees with the exact plan; and its logits agree with PyTorch's, if there are
check/logits.npy and check/input.npy, which deploy/export writes, or a picture, check/frame.jpg, beside the model.")]
pub struct DoctorCommand {
    /// A .pt2 file, the folder of a version (model.pt2), of a model (VERSION/model.pt2) or of models, or
    /// builtin:identity
    #[arg(value_name = "MODEL", required_unless_present = "devices")]
    model: Option<PathBuf>,

    /// List the devices that could run models, and why others cannot, instead of examining a model
    #[arg(
        long,
        env = "CAMLENS_DEVICES",
        conflicts_with = "model",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    devices: bool,

    #[command(flatten)]
    device: DeviceArgs,

    /// List every layer, not only the target layers that Grad-CAM accepts
    #[arg(long, env = "CAMLENS_LAYERS", value_parser = clap::builder::FalseyValueParser::new())]
    layers: bool,

    /// Number of timed runs, with the kernels that are the fastest here, as a server chooses them. 0: nothing is timed,
    /// and checks run with the first kernels that suit
    #[arg(
        long,
        env = "CAMLENS_RUNS",
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=1000)
    )]
    runs: u32,

    /// Number of threads that run the model [default: the number of cores]
    #[arg(long, env = "CAMLENS_THREADS", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: Option<i32>,

    /// Print a JSON array with one object for each model instead of text
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

impl DoctorCommand {
    pub fn run(self) -> Result<(), Failure> {
        let Some(model) = &self.model else { return self.list_devices() };
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads);
            threads::set_model_threads(usize::try_from(threads).unwrap_or(1));
        }
        let repository = Repository::open(model).map_err(|error| Failure::usage(error.to_string()))?;
        let mut device = DeviceConfig::default();
        self.device.clone().set(&mut device);
        let devices = Devices::find(&device, Machine::this().resources().threads()).map_err(start_failure)?;
        let mut all: Vec<Findings> = Vec::new();
        for entry in repository.entries() {
            let (version, path) = entry.newest();
            let progress = terminal::progress(None, self.json);
            progress.set_message(format!("examining {}@{version}", entry.name));
            let findings = examine(&entry.name, version, path, devices.workers[0], self.runs);
            progress.finish_and_clear();
            if !self.json {
                io::stdout().lock().write_all(findings.text(self.layers, Ink::for_stdout()).as_bytes())?;
            }
            all.push(findings);
        }
        for ((name, version), why) in repository.problems() {
            let which = version.map_or_else(|| name.clone(), |version| format!("{name}@{version}"));
            writeln!(io::stderr().lock(), "{which} cannot be served: {why}")?;
        }
        if self.json {
            let models: Value = all.iter().map(|findings| findings.json(self.layers)).collect();
            writeln!(io::stdout().lock(), "{models:#}")?;
        }
        let unfit: Vec<&str> = all.iter().filter(|findings| !findings.fit()).map(|findings| findings.name()).collect();
        match unfit.len() {
            0 => Ok(()),
            _ => Err(Failure::new(Exit::Partly, format!("not fit to be served: {}", unfit.join(", ")))),
        }
    }

    fn list_devices(&self) -> Result<(), Failure> {
        let report = DeviceReport::find(&self.device.device_libraries);
        let text = if self.json { format!("{:#}\n", report.json()) } else { report.text(Ink::for_stdout()) };
        Ok(io::stdout().lock().write_all(text.as_bytes())?)
    }
}
