//! `camlens capacity`: how many streams a device serves, and how many devices a load needs.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::failure::Failure;
use super::options::rate;
use crate::schedule::capacity::{DeviceTimes, Load, Placement, answered_share, devices};

/// Plan devices for a number of cameras, from times that `camlens bench` has measured
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens capacity --frame-ms 22 --rate 5 --streams 1000
  camlens capacity --frame-ms 22 --rate 5 --streams 1000 --devices-per-node 8 --placement random
  camlens capacity --frame-ms 2.5 --batch 8 --batch-ms 6 --rate 30 --latency-ms 25

deploy/capacity.md has the formulas, what they assume, and where the times come from.")]
pub struct CapacityCommand {
    /// Milliseconds of one frame alone on the device: the stages copy_in to copy_out
    #[arg(long, env = "CAMLENS_FRAME_MS", value_name = "MS", value_parser = milliseconds)]
    frame_ms: f64,

    /// Rows of a full batch
    #[arg(
        long,
        env = "CAMLENS_BATCH",
        value_name = "ROWS",
        requires = "batch_ms",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    batch: Option<u32>,

    /// Milliseconds of a full batch on the device [default: batches do not pay]
    #[arg(long, env = "CAMLENS_BATCH_MS", value_name = "MS", requires = "batch", value_parser = milliseconds)]
    batch_ms: Option<f64>,

    /// Milliseconds of a frame outside the device: reading, decoding, rendering, sending
    #[arg(long, env = "CAMLENS_OTHER_MS", value_name = "MS", default_value_t = 0.0, value_parser = other)]
    other_ms: f64,

    /// Frames per second of each stream
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate)]
    rate: f64,

    /// Number of streams
    #[arg(
        long,
        env = "CAMLENS_STREAMS",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    streams: u32,

    /// Latency that 99 % of the frames keep, in milliseconds [default: until the stream's next frame]
    #[arg(long, env = "CAMLENS_LATENCY_MS", value_name = "MS", value_parser = milliseconds)]
    latency_ms: Option<f64>,

    /// Largest share of a device's time that is planned for
    #[arg(long, env = "CAMLENS_UTILISATION", value_name = "SHARE", default_value_t = 0.8, value_parser = utilisation)]
    utilisation: f64,

    /// Most streams of one server: its limits.max_streams
    #[arg(
        long,
        env = "CAMLENS_MAX_STREAMS",
        value_name = "N",
        default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    max_streams: u32,

    /// How streams come to servers
    #[arg(long, env = "CAMLENS_PLACEMENT", value_enum, default_value = "even")]
    placement: PlacementName,

    /// Devices of one node, which fail together
    #[arg(
        long,
        env = "CAMLENS_DEVICES_PER_NODE",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    devices_per_node: u32,

    /// Nodes that may be lost without a frame that misses the goal
    #[arg(
        long,
        env = "CAMLENS_LOST_NODES",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(0..=10_000)
    )]
    lost_nodes: u32,

    /// Print one JSON object instead of text
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlacementName {
    /// Each server has as many as any other, or one more
    Even,
    /// Each client chooses a server for itself
    Random,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.001..=3_600_000.0).contains(&ms) => Ok(ms),
        _ => Err("0.001 to 3600000 milliseconds are allowed".to_owned()),
    }
}

fn other(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=3_600_000.0).contains(&ms) => Ok(ms),
        _ => Err("0 to 3600000 milliseconds are allowed".to_owned()),
    }
}

fn utilisation(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a share above 0 and up to 1 is allowed".to_owned()),
    }
}

/// What the command prints.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Plan {
    device_hz: f64,
    streams_per_device: u32,
    /// Streams on the device with the most; with a random placement, on the fullest one that keeps the goal.
    busiest: u32,
    utilisation: f64,
    latency_p99_ms: f64,
    devices: u32,
    nodes: u32,
    spare_devices: u32,
    /// The share of all frames that is explained after the loss if there is no spare device.
    answered_without_spare: f64,
}

impl CapacityCommand {
    pub fn run(self) -> Result<(), Failure> {
        let plan = self.plan()?;
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{:#}", plan.json())?;
        } else {
            stdout.write_all(self.text(&plan).as_bytes())?;
        }
        Ok(())
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let (rows, batch_ms) = (self.batch.unwrap_or(1), self.batch_ms.unwrap_or(self.frame_ms));
        let device = DeviceTimes::new(self.frame_ms / 1e3, rows, batch_ms / 1e3)
            .map_err(|error| Failure::usage(error.to_string()).hint("--batch-ms must not be less than --frame-ms"))?;
        let goal_ms = self.latency_ms.unwrap_or(1e3 / self.rate);
        let load = Load {
            rate_hz: self.rate,
            latency_s: (goal_ms - self.other_ms) / 1e3,
            utilisation: self.utilisation,
            max_streams: self.max_streams,
        };
        let streams_per_device = device.streams(&load);
        if streams_per_device == 0 {
            return Err(self.impossible(&device, goal_ms));
        }
        let placement = match self.placement {
            PlacementName::Even => Placement::Even,
            PlacementName::Random => Placement::Random,
        };
        let needed = devices(self.streams, streams_per_device, placement);
        let busiest = match placement {
            Placement::Even => self.streams.div_ceil(needed),
            Placement::Random => streams_per_device.min(self.streams),
        };
        let spare_devices = self.lost_nodes.saturating_mul(self.devices_per_node);
        let left = needed.saturating_sub(spare_devices);
        Ok(Plan {
            device_hz: device.max_hz(),
            streams_per_device,
            busiest,
            utilisation: device.utilisation(busiest, self.rate),
            latency_p99_ms: self.other_ms + 1e3 * device.latency_s(busiest, self.rate),
            devices: needed,
            nodes: needed.div_ceil(self.devices_per_node),
            spare_devices,
            answered_without_spare: answered_share(self.streams, self.rate, device.max_hz(), left, placement),
        })
    }

    /// Why not even one stream keeps the goal.
    fn impossible(&self, device: &DeviceTimes, goal_ms: f64) -> Failure {
        let most_hz = self.utilisation * device.max_hz();
        let alone_ms = self.other_ms + self.frame_ms;
        if self.rate > most_hz {
            Failure::failed(format!(
                "a device explains {:.1} frames per second with --utilisation {}, less than one stream of --rate {}",
                most_hz, self.utilisation, self.rate
            ))
            .hint("a server's policy `latest` then explains the newest frames, as many as it can")
        } else {
            Failure::failed(format!("a frame alone takes {alone_ms} ms, more than the goal of {goal_ms:.1} ms"))
                .hint("--latency-ms sets the goal; without it, it is the time until the stream's next frame")
        }
    }

    fn text(&self, plan: &Plan) -> String {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let on_nodes = |devices: u32| match self.devices_per_node {
            1 => count(devices, "device"),
            each => format!("{} on {} of {each}", count(devices, "device"), count(devices.div_ceil(each), "node")),
        };
        let device = format!(
            "at most {:.1} frames per second: {} of {} per second",
            plan.device_hz,
            count(plan.streams_per_device, "stream"),
            self.rate
        );
        let load = format!(
            "{}; one with {} is busy for {} of its time, p99 {:.1} ms",
            on_nodes(plan.devices),
            count(plan.busiest, "stream"),
            percent(plan.utilisation),
            plan.latency_p99_ms
        );
        let spare = format!(
            "{} keep the goal; without spare ones {} of the frames are explained",
            on_nodes(plan.devices + plan.spare_devices),
            percent(plan.answered_without_spare)
        );
        let lost = count(self.lost_nodes, "node") + " lost";
        let mut rows = vec![("a device".to_owned(), device), (count(self.streams, "stream"), load)];
        rows.extend((self.lost_nodes > 0).then_some((lost, spare)));
        let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        rows.into_iter().map(|(label, text)| format!("{label:<width$}  {text}\n")).collect()
    }
}

fn count(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

impl Plan {
    fn json(&self) -> Value {
        json!({
            "device_hz": self.device_hz,
            "streams_per_device": self.streams_per_device,
            "busiest_device": {
                "streams": self.busiest,
                "utilisation": self.utilisation,
                "latency_p99_ms": self.latency_p99_ms,
            },
            "devices": self.devices,
            "nodes": self.nodes,
            "devices_with_spare": self.devices + self.spare_devices,
            "answered_without_spare": self.answered_without_spare,
        })
    }
}
