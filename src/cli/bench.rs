//! `camlens bench`: how much a server takes, and how fast it answers.
//!
//! Everything is prepared and every stream is open ([`stream`]) before the clock runs; when a frame of an open loop is due is
//! a pure function of its number ([`schedule`]); what the streams gave is added up at the end ([`outcome`]).

mod load;
mod outcome;
mod payloads;
mod schedule;
mod stream;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::identity_json;
use super::client::{self, Link};
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::names;
use super::options::{ExplainArgs, MapKind, Overflow, PictureFormat, PictureKind, rate};
use super::terminal;
use crate::proto::v1;
use crate::proto::v1::frame::Payload;
use load::{Meter, Pace, Run};
use outcome::{FIELDS, Outcome, measured_time};
use payloads::{PayloadKind, Size, USUAL_SIZE};
use schedule::Length;
use stream::{OpenStream, StreamOutcome};

const EXAMPLES: &str = "\
Examples:
  camlens bench --server 127.0.0.1:8033 --streams 8 --rate 30       eight cameras
  camlens bench --server 127.0.0.1:8033 --in-flight 4               as fast as it goes, four frames on their way
  camlens bench --models builtin:identity --payload encoded         everything but a model, server and client in one
  camlens bench --server unix:/run/camlens.sock --streams 32 --rate 10 --slow-readers 1 --json";

/// Load a server: many streams of frames, at fixed rates or as fast as answers come, and what became of each frame
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FIELDS}"))]
pub struct BenchCommand {
    /// Streams that are open at once
    #[arg(long, env = "CAMLENS_STREAMS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    streams: u16,

    /// HTTP/2 connections that the streams are spread over
    #[arg(long, env = "CAMLENS_CONNECTIONS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,

    /// So many of the streams never read an answer; they have a connection of their own
    #[arg(long, env = "CAMLENS_SLOW_READERS", value_name = "K", default_value_t = 0)]
    slow_readers: u16,

    /// Open loop: each stream sends so many frames per second, whatever the server does
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate, conflicts_with = "in_flight")]
    rate: Option<f64>,

    /// Closed loop: each stream keeps so many frames on their way [default: 1, unless there is a rate]
    #[arg(long, env = "CAMLENS_IN_FLIGHT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: Option<u32>,

    /// Seconds that are measured
    #[arg(long, env = "CAMLENS_DURATION", value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds, conflicts_with = "frames")]
    duration: f64,

    /// Send so many frames on each stream instead, the warm-up's included
    #[arg(long, env = "CAMLENS_FRAMES", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,

    /// Seconds at the beginning whose frames are accounted for and not measured
    #[arg(long, env = "CAMLENS_WARM_UP", value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    warm_up: f64,

    /// Seconds that a stream may stand still while frames wait for their ending; they are then missing
    #[arg(long, env = "CAMLENS_PATIENCE", value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    patience: f64,

    #[command(flatten)]
    policy: PolicyArgs,

    #[command(flatten)]
    payload: PayloadArgs,

    #[command(flatten)]
    answer: AnswerArgs,

    #[command(flatten)]
    explain: ExplainArgs,

    /// Print one JSON object instead of a table; its fields are below
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// The streams' policy.
#[derive(Debug, Args)]
#[command(next_help_heading = "Policy")]
struct PolicyArgs {
    /// What happens to frames that come faster than they are explained
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum, default_value = "latest")]
    overflow: Overflow,

    /// Frames that the server keeps waiting on each stream [default: the server's for the policy]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    /// How long a frame may wait for the device, in milliseconds [default: for ever]
    #[arg(long, env = "CAMLENS_TIME_TO_LIVE", value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    time_to_live: Option<u32>,

    /// The streams' priority [default: 0]
    #[arg(long, env = "CAMLENS_PRIORITY", value_name = "CLASS", default_value_t = 0, hide_default_value = true)]
    priority: u32,

    /// Have at most so many frames per second of each stream explained [default: all]
    #[arg(long, env = "CAMLENS_MAX_RATE", value_name = "HZ", value_parser = rate)]
    max_rate: Option<f64>,

    /// Take endings as soon as they are there, not in sequence order
    #[arg(long, env = "CAMLENS_UNORDERED", value_parser = clap::builder::FalseyValueParser::new())]
    unordered: bool,
}

/// The frames that are sent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Frames")]
struct PayloadArgs {
    /// How a frame carries its image
    #[arg(long, env = "CAMLENS_PAYLOAD", value_enum, default_value = "raw")]
    payload: PayloadKind,

    /// A picture, a folder of pictures or a clip to send again and again [default: frames are made up]
    #[arg(long, env = "CAMLENS_SOURCE", value_name = "PATH", conflicts_with = "size")]
    source: Option<String>,

    /// The size of frames that are made up [default: 640x480; of tensors, what the model takes]
    #[arg(long, env = "CAMLENS_SIZE", value_name = "WIDTHxHEIGHT")]
    size: Option<Size>,
}

/// What is asked for each frame.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answers")]
struct AnswerArgs {
    /// A map to ask for as numbers; may be repeated [default: guided-grad-cam, unless there is a picture]
    #[arg(long = "map", env = "CAMLENS_MAP", value_name = "KIND", value_enum, value_delimiter = ',')]
    maps: Vec<MapKind>,

    /// The numbers' type
    #[arg(long, env = "CAMLENS_ELEMENT", value_enum, default_value = "float32")]
    element: Element,

    /// A picture to ask for; may be repeated [default: none]
    #[arg(long = "picture", env = "CAMLENS_PICTURE", value_name = "KIND", value_enum, value_delimiter = ',')]
    pictures: Vec<PictureKind>,

    /// The format of the pictures
    #[arg(long, env = "CAMLENS_FORMAT", value_enum, default_value = "jpeg")]
    format: PictureFormat,

    /// Ask for predictions alone: no reverse run, small answers
    #[arg(long, env = "CAMLENS_PREDICTIONS_ONLY", value_parser = clap::builder::FalseyValueParser::new(), conflicts_with_all = ["maps", "pictures"])]
    predictions_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Element {
    Float32,
    Float16,
    Uint8,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=1_000_000.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0 to 1000000 is allowed".to_owned()),
    }
}

impl BenchCommand {
    pub fn run(self) -> Result<(), Failure> {
        if self.slow_readers >= self.streams {
            return Err(
                Failure::usage("at least one of the streams must read").hint("--slow-readers counts among --streams")
            );
        }
        super::runtime()?.block_on(self.bench())
    }

    async fn bench(self) -> Result<(), Failure> {
        let connection = Connection::open(&self.connect).await?;
        let payloads = self.payloads(&connection).await?;
        let (readers, slow) = self.open_streams(&connection).await?;
        let opened = readers[0].opened.clone();
        let stop = CancellationToken::new();
        terminal::stop_when_interrupted(stop.clone());
        let run = Arc::new(Run {
            payloads,
            pace: self.pace(),
            streams: readers.len(),
            length: self.length(),
            warm_up: Duration::from_secs_f64(self.warm_up),
            patience: Duration::from_secs_f64(self.patience),
            stop: stop.clone(),
            meter: Default::default(),
        });
        let (streams, slow_readers) = run_all(&run, readers, slow).await?;
        let meter: Meter = std::mem::take(&mut *run.meter());
        let length = match run.length {
            Length::For(length) => Some(length),
            Length::Frames(_) => None,
        };
        let outcome = Outcome {
            load: self.load_json(&run),
            model: opened.model.as_ref().map_or(Value::Null, identity_json),
            seconds: measured_time(&streams, &meter, run.warm_up, length).as_secs_f64(),
            streams,
            slow_readers,
            meter,
            interrupted: stop.is_cancelled(),
            unordered: self.policy.unordered,
            may_refuse: self.policy.overflow == Overflow::Reject,
        };
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", outcome.json())?;
        } else {
            stdout.write_all(outcome.text().as_bytes())?;
        }
        outcome.verdict()
    }

    fn pace(&self) -> Pace {
        match self.rate {
            Some(rate_hz) => Pace::Open { rate_hz },
            None => Pace::Closed { in_flight: self.in_flight.unwrap_or(1) },
        }
    }

    fn length(&self) -> Length {
        match self.frames {
            Some(frames) => Length::Frames(frames),
            None => Length::For(Duration::from_secs_f64(self.warm_up + self.duration)),
        }
    }

    async fn payloads(&self, connection: &Connection) -> Result<Vec<Payload>, Failure> {
        let PayloadArgs { payload, source, size } = &self.payload;
        match (payload, source) {
            (_, Some(source)) => payloads::of_source(*payload, source),
            (PayloadKind::Tensor, None) => {
                let (channels, usual) = self.model_input(connection).await?;
                payloads::made_up(*payload, size.unwrap_or(usual), channels)
            }
            (_, None) => payloads::made_up(*payload, size.unwrap_or(USUAL_SIZE), 3),
        }
    }

    /// The channels and the size that the model takes, or was exported with.
    async fn model_input(&self, connection: &Connection) -> Result<(u32, Size), Failure> {
        let request = v1::GetModelRequest { model: self.explain.selector() };
        let response = client::model_client(connection.channel()).get_model(request).await;
        let response = response.map_err(|status| Failure::from_status("ask for the model", &status))?;
        let input = response.into_inner().metadata.and_then(|metadata| metadata.input).unwrap_or_default();
        let side = |axis: usize| input.shape.get(axis).and_then(|dimension| u32::try_from(dimension.size).ok());
        match (side(1), side(2), side(3)) {
            (Some(channels), Some(height), Some(width)) => Ok((channels, Size { width, height })),
            _ => Err(Failure::failed("the server does not say what its model takes")),
        }
    }

    /// Those that read, spread over the connections, and those that never do.
    async fn open_streams(&self, connection: &Connection) -> Result<(Vec<OpenStream>, Vec<OpenStream>), Failure> {
        let mut links = vec![connection.channel()];
        while links.len() < usize::from(self.connections) {
            links.push(connection.another().await?);
        }
        let reading = usize::from(self.streams - self.slow_readers);
        let readers = self.open_on(&links, reading, 0).await?;
        if self.slow_readers == 0 {
            return Ok((readers, Vec::new()));
        }
        // What they do not read fills their connection's window, and nobody else's.
        let link = connection.another().await?;
        let slow = self.open_on(&[link], usize::from(self.slow_readers), reading).await?;
        Ok((readers, slow))
    }

    /// Opens `count` streams at once; their numbers begin with `first`.
    async fn open_on(&self, links: &[Link], count: usize, first: usize) -> Result<Vec<OpenStream>, Failure> {
        let mut opening = JoinSet::new();
        for number in 0..count {
            let client = client::explain_client(links[number % links.len()].clone());
            opening.spawn(OpenStream::open(client, self.open(first + number)));
        }
        let mut streams = Vec::with_capacity(count);
        while let Some(opened) = opening.join_next().await {
            streams.push(opened.unwrap_or_else(|_| Err(Failure::failed("opening a stream broke")))?);
        }
        Ok(streams)
    }

    fn open(&self, number: usize) -> v1::Open {
        let PolicyArgs { overflow, depth, time_to_live, priority, max_rate, unordered } = self.policy;
        let policy = v1::StreamPolicy {
            overflow: overflow.message() as i32,
            depth,
            time_to_live: time_to_live.map(|ms| prost_types::Duration {
                seconds: i64::from(ms / 1000),
                nanos: (ms % 1000) as i32 * 1_000_000,
            }),
            max_rate_hz: max_rate,
            unordered,
            priority,
            ..Default::default()
        };
        v1::Open {
            model: self.explain.selector(),
            options: Some(self.options()),
            policy: Some(policy),
            source: format!("camlens bench {number}"),
        }
    }

    fn options(&self) -> v1::ExplainOptions {
        let AnswerArgs { maps, element, pictures, format, predictions_only } = &self.answer;
        let nothing_named = maps.is_empty() && pictures.is_empty() && !predictions_only;
        let maps = if nothing_named { &[MapKind::GuidedGradCam][..] } else { maps };
        let mut options = self.explain.options(pictures, *format, maps);
        let element_type = match element {
            Element::Float32 => v1::ElementType::Float32,
            Element::Float16 => v1::ElementType::Float16,
            Element::Uint8 => v1::ElementType::Uint8,
        };
        for tensor in &mut options.tensors {
            tensor.element_type = element_type as i32;
        }
        options
    }

    fn load_json(&self, run: &Run) -> Value {
        let (kind, rate_hz, in_flight) = match run.pace {
            Pace::Open { rate_hz } => ("open", Some(rate_hz), None),
            Pace::Closed { in_flight } => ("closed", None, Some(in_flight)),
        };
        let name =
            |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| value().map(|value| value.get_name().to_owned());
        let options = self.options();
        let bytes: u64 = run.payloads.iter().map(payloads::length).sum();
        json!({
            "streams": self.streams,
            "connections": self.connections,
            "slow_readers": self.slow_readers,
            "loop": kind,
            "rate_hz": rate_hz,
            "in_flight": in_flight,
            "warm_up_seconds": self.warm_up,
            "overflow": name(&|| self.policy.overflow.to_possible_value()),
            "depth": self.policy.depth,
            "time_to_live_ms": self.policy.time_to_live,
            "priority": self.policy.priority,
            "max_rate_hz": self.policy.max_rate,
            "unordered": self.policy.unordered,
            "payload": name(&|| self.payload.payload.to_possible_value()),
            "mean_frame_bytes": bytes / run.payloads.len() as u64,
            "maps": options.tensors.iter().map(|tensor| names::map(tensor.map)).collect::<Vec<_>>(),
            "element": name(&|| self.answer.element.to_possible_value()),
            "pictures": options.pictures.iter().map(|picture| names::picture(picture.picture)).collect::<Vec<_>>(),
        })
    }
}

/// Runs every stream to its end; those that never read end with the last of the others.
async fn run_all(
    run: &Arc<Run>,
    readers: Vec<OpenStream>,
    slow: Vec<OpenStream>,
) -> Result<(Vec<StreamOutcome>, Vec<u64>), Failure> {
    let begin = Instant::now();
    let end = run.stop.child_token();
    let first_slow = readers.len();
    let (mut reading, mut unreading) = (JoinSet::new(), JoinSet::new());
    for (number, stream) in readers.into_iter().enumerate() {
        let run = Arc::clone(run);
        reading.spawn(async move { stream.run(&run, number, begin).await });
    }
    for (number, stream) in slow.into_iter().enumerate() {
        let (run, end) = (Arc::clone(run), end.clone());
        unreading.spawn(async move { stream.run_without_reading(&run, first_slow + number, begin, &end).await });
    }
    let broke = |_| Failure::failed("a stream's task broke");
    let mut streams = Vec::new();
    while let Some(stream) = reading.join_next().await {
        streams.push(stream.map_err(broke)?);
    }
    end.cancel();
    let mut sent = Vec::new();
    while let Some(stream) = unreading.join_next().await {
        sent.push(stream.map_err(broke)?);
    }
    Ok((streams, sent))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        command: BenchCommand,
    }

    fn parse(arguments: &[&str]) -> Result<BenchCommand, clap::Error> {
        Line::try_parse_from(["bench"].iter().chain(arguments)).map(|line| line.command)
    }

    #[test]
    fn a_rate_makes_an_open_loop_and_everything_else_a_closed_one() {
        assert_eq!(parse(&[]).expect("nothing is required").pace(), Pace::Closed { in_flight: 1 });
        assert_eq!(parse(&["--in-flight", "4"]).expect("arguments").pace(), Pace::Closed { in_flight: 4 });
        assert_eq!(parse(&["--rate", "30"]).expect("arguments").pace(), Pace::Open { rate_hz: 30.0 });
        assert!(parse(&["--rate", "30", "--in-flight", "4"]).is_err());
    }

    #[test]
    fn the_warm_up_comes_on_top_of_the_measured_time() {
        let command = parse(&["--duration", "2.5", "--warm-up", "0.5"]).expect("arguments");
        assert_eq!(command.length(), Length::For(Duration::from_secs(3)));
        assert_eq!(parse(&["--frames", "7"]).expect("arguments").length(), Length::Frames(7));
    }

    #[test]
    fn the_policy_is_what_the_flags_say() {
        let arguments = ["--overflow", "reject", "--depth", "3", "--time-to-live", "1250", "--priority", "2"];
        let more = ["--max-rate", "12.5", "--unordered"];
        let open = parse(&[&arguments[..], &more].concat()).expect("arguments").open(7);
        let policy = open.policy.expect("a policy");
        assert_eq!(policy.overflow(), v1::stream_policy::Overflow::Reject);
        assert_eq!(policy.time_to_live, Some(prost_types::Duration { seconds: 1, nanos: 250_000_000 }));
        assert_eq!((policy.depth, policy.priority, policy.max_rate_hz), (3, 2, Some(12.5)));
        assert!(policy.unordered);
        let usual = parse(&[]).expect("arguments").open(0).policy.expect("a policy");
        assert_eq!((usual.overflow(), usual.time_to_live), (v1::stream_policy::Overflow::Latest, None));
    }

    #[test]
    fn a_map_is_asked_for_unless_something_else_is_named() {
        let options = |arguments: &[&str]| parse(arguments).expect("arguments").options();
        let usual = options(&["--element", "float16"]);
        assert_eq!(
            (usual.tensors[0].map(), usual.tensors[0].element_type()),
            (v1::Map::GuidedGradCam, v1::ElementType::Float16)
        );
        let pictures = options(&["--picture", "overlay"]);
        assert!(pictures.tensors.is_empty() && pictures.pictures.len() == 1);
        assert_eq!(options(&["--predictions-only"]).predictions_only, Some(true));
        assert!(parse(&["--predictions-only", "--map", "grad-cam"]).is_err());
    }

    #[test]
    fn somebody_must_read() {
        let failure =
            parse(&["--streams", "2", "--slow-readers", "2"]).expect("arguments").run().expect_err("nobody reads");
        assert!(failure.to_string().contains("at least one"), "{failure}");
    }
}
