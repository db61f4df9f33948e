//! `camlens bench`: how much a server takes, and how fast it answers.
//!
//! Everything is prepared and every stream is open ([`stream`]) before the clock runs; when a frame of an open loop is due is
//! a pure function of its number ([`schedule`]); what the streams gave is added up at the end ([`outcome`]).

mod load;
mod outcome;
pub(super) mod payloads;
pub(super) mod request;
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
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::options::{ExplainArgs, Overflow, rate};
use super::terminal;
use crate::client;
use crate::client::Link;
use crate::proto::v1;
use crate::proto::v1::frame::Payload;
use load::{Meter, Pace, Run};
use outcome::{FIELDS, Outcome, measured_time};
use payloads::{PayloadKind, Size, USUAL_SIZE};
use request::{AnswerArgs, PolicyArgs};
use schedule::Length;
use stream::{OpenStream, StreamOutcome};

const EXAMPLES: &str = "\
Examples:
  camlens bench --server 127.0.0.1:8033 --streams 8 --rate 30   eight cameras
  camlens bench --server 127.0.0.1:8033 --in-flight 4           closed loop
  camlens bench --models builtin:identity --payload encoded     without a model
  camlens bench --server unix:/run/camlens.sock --streams 32 --slow-readers 1";

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

    /// Print one JSON object instead of a table; its fields are below
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    policy: PolicyArgs,

    #[command(flatten)]
    payload: PayloadArgs,

    #[command(flatten)]
    answer: AnswerArgs,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
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
        // Ready before there is a connection, unless it is the server that says how large they are.
        let ready = self.ready_payloads()?;
        let connection = Connection::open(&self.connect).await?;
        let payloads = match ready {
            Some(payloads) => payloads,
            None => self.tensors(&connection).await?,
        };
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

    /// The frames; none for tensors.
    fn ready_payloads(&self) -> Result<Option<Vec<Payload>>, Failure> {
        let PayloadArgs { payload, source, size } = &self.payload;
        match (payload, source) {
            (_, Some(source)) => payloads::of_source(*payload, source).map(Some),
            (PayloadKind::Tensor, None) => Ok(None),
            (_, None) => payloads::made_up(*payload, size.unwrap_or(USUAL_SIZE), 3).map(Some),
        }
    }

    async fn tensors(&self, connection: &Connection) -> Result<Vec<Payload>, Failure> {
        let (channels, usual) = self.model_input(connection).await?;
        payloads::made_up(PayloadKind::Tensor, self.payload.size.unwrap_or(usual), channels)
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
        v1::Open {
            model: self.explain.selector(),
            options: Some(self.answer.options(&self.explain)),
            policy: Some(self.policy.message()),
            source: format!("camlens bench {number}"),
        }
    }

    fn load_json(&self, run: &Run) -> Value {
        let (kind, rate_hz, in_flight) = match run.pace {
            Pace::Open { rate_hz } => ("open", Some(rate_hz), None),
            Pace::Closed { in_flight } => ("closed", None, Some(in_flight)),
        };
        let bytes: u64 = run.payloads.iter().map(payloads::length).sum();
        json!({
            "streams": self.streams,
            "connections": self.connections,
            "slow_readers": self.slow_readers,
            "loop": kind,
            "rate_hz": rate_hz,
            "in_flight": in_flight,
            "warm_up_seconds": self.warm_up,
            "policy": self.policy.json(),
            "payload": value_name(self.payload.payload),
            "mean_frame_bytes": bytes / run.payloads.len() as u64,
            "answer": self.answer.json(&self.explain),
        })
    }
}

/// A value of an option, as it is given on the command line.
fn value_name(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
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
    fn somebody_must_read() {
        let failure =
            parse(&["--streams", "2", "--slow-readers", "2"]).expect("arguments").run().expect_err("nobody reads");
        assert!(failure.to_string().contains("at least one"), "{failure}");
    }
}
