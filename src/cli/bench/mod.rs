//! `camlens bench`: measures a server's throughput and latency.
//!
//! All payloads are ready and all streams are open ([`stream`]) before the clock starts. [`schedule`] computes the due
//! times of an open loop from the frames' numbers. [`server_process`] measures the processor time of a server on this
//! machine. [`outcome`] sums the results of the streams.

mod load;
mod outcome;
pub(super) mod payloads;
pub(super) mod request;
mod schedule;
mod server_process;
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
use payloads::{DEFAULT_SIZE, PayloadKind, Size};
use request::{AnswerArgs, PolicyArgs};
use schedule::Length;
use server_process::{ProcessorTime, ServerProcess};
use stream::{OpenStream, StreamOutcome};

const EXAMPLES: &str = "\
Examples:
  camlens bench --server 127.0.0.1:8033 --streams 8 --rate 30   eight cameras
  camlens bench --server 127.0.0.1:8033 --in-flight 4           closed loop
  camlens bench --models builtin:identity --payload encoded     without a model
  camlens bench --server unix:/run/camlens.sock --streams 32 --slow-readers 1";

/// Load a server with many streams, at a fixed rate or as fast as it answers, and report throughput and latency
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FIELDS}"))]
pub struct BenchCommand {
    /// Number of streams, all open at the same time
    #[arg(
        long,
        env = "CAMLENS_STREAMS",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=10_000)
    )]
    streams: u16,

    /// Number of HTTP/2 connections, shared by the streams
    #[arg(
        long,
        env = "CAMLENS_CONNECTIONS",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=10_000)
    )]
    connections: u16,

    /// Number of the streams that never read an answer; they share one connection of their own
    #[arg(long, env = "CAMLENS_SLOW_READERS", value_name = "K", default_value_t = 0)]
    slow_readers: u16,

    /// Open loop: frames per second on each stream, regardless of the server's pace
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate, conflicts_with = "in_flight")]
    rate: Option<f64>,

    /// Closed loop: number of frames in flight on each stream [default: 1, unless --rate is given]
    #[arg(
        long,
        env = "CAMLENS_IN_FLIGHT",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    in_flight: Option<u32>,

    /// Measured time in seconds; it begins after the warm-up
    #[arg(
        long,
        env = "CAMLENS_DURATION",
        value_name = "SECONDS",
        default_value_t = 10.0,
        value_parser = seconds,
        conflicts_with = "frames"
    )]
    duration: f64,

    /// Number of frames to send on each stream, warm-up included; replaces --duration
    #[arg(long, env = "CAMLENS_FRAMES", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,

    /// Warm-up in seconds; its frames are accounted for but not measured
    #[arg(long, env = "CAMLENS_WARM_UP", value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    warm_up: f64,

    /// Seconds without progress after which a stream's frames that have no ending count as missing
    #[arg(long, env = "CAMLENS_PATIENCE", value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    patience: f64,

    /// Print one JSON object instead of a table; --help lists its fields
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

/// The frames to send.
#[derive(Debug, Args)]
#[command(next_help_heading = "Frames")]
struct PayloadArgs {
    /// Form of the image in each frame
    #[arg(long, env = "CAMLENS_PAYLOAD", value_enum, default_value = "raw")]
    payload: PayloadKind,

    /// Image file, folder of images or clip to send repeatedly [default: synthetic frames]
    #[arg(long, env = "CAMLENS_SOURCE", value_name = "PATH", conflicts_with = "size")]
    source: Option<String>,

    /// Size of synthetic frames in pixels [default: 640x480; for --payload tensor, the model's input size]
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
            return Err(Failure::usage("at least one of the streams must read")
                .hint("--slow-readers must be less than --streams"));
        }
        super::runtime()?.block_on(self.bench())
    }

    async fn bench(self) -> Result<(), Failure> {
        // Payloads are prepared before the connection opens, except tensors, whose size the server gives.
        let ready = self.ready_payloads()?;
        let connection = Connection::open_to_measure(&self.connect).await?;
        let payloads = match ready {
            Some(payloads) => payloads,
            None => self.tensors(&connection).await?,
        };
        let links = self.links(&connection).await?;
        let (readers, slow) = self.open_streams(&connection, &links).await?;
        let server = ServerProcess::of(&links);
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
        let (streams, slow_readers, processor) = run_all(&run, readers, slow, server).await?;
        let meter: Meter = std::mem::take(&mut *run.meter());
        let outcome = Outcome {
            load: self.load_json(&run),
            model: opened.model.as_ref().map_or(Value::Null, identity_json),
            seconds: measured_time(&streams, &meter, run.warm_up, run.end()).as_secs_f64(),
            streams,
            slow_readers,
            meter,
            processor,
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

    /// The payloads to send. None: tensors, whose size the server gives.
    fn ready_payloads(&self) -> Result<Option<Vec<Payload>>, Failure> {
        let PayloadArgs { payload, source, size } = &self.payload;
        match (payload, source) {
            (_, Some(source)) => payloads::of_source(*payload, source).map(Some),
            (PayloadKind::Tensor, None) => Ok(None),
            (_, None) => payloads::synthetic(*payload, size.unwrap_or(DEFAULT_SIZE), 3).map(Some),
        }
    }

    async fn tensors(&self, connection: &Connection) -> Result<Vec<Payload>, Failure> {
        let (channels, size) = self.model_input(connection).await?;
        payloads::synthetic(PayloadKind::Tensor, self.payload.size.unwrap_or(size), channels)
    }

    /// The number of channels and the size of the model's input; the exported size where it is dynamic.
    async fn model_input(&self, connection: &Connection) -> Result<(u32, Size), Failure> {
        let request = v1::GetModelRequest { model: self.explain.selector() };
        let response = client::model_client(connection.channel()).get_model(request).await;
        let response = response.map_err(|status| Failure::from_status("ask for the model", &status))?;
        let input = response.into_inner().metadata.and_then(|metadata| metadata.input).unwrap_or_default();
        let side = |axis: usize| input.shape.get(axis).and_then(|dimension| u32::try_from(dimension.size).ok());
        match (side(1), side(2), side(3)) {
            (Some(channels), Some(height), Some(width)) => Ok((channels, Size { width, height })),
            _ => Err(Failure::failed("the server does not give the shape of its model's input")),
        }
    }

    /// The connections of the streams that read.
    async fn links(&self, connection: &Connection) -> Result<Vec<Link>, Failure> {
        let mut links = vec![connection.channel()];
        while links.len() < usize::from(self.connections) {
            links.push(connection.another().await?);
        }
        Ok(links)
    }

    /// Opens the streams that read, spread over `links`, and the slow readers.
    async fn open_streams(
        &self,
        connection: &Connection,
        links: &[Link],
    ) -> Result<(Vec<OpenStream>, Vec<OpenStream>), Failure> {
        let reading = usize::from(self.streams - self.slow_readers);
        let readers = self.open_on(links, reading, 0).await?;
        if self.slow_readers == 0 {
            return Ok((readers, Vec::new()));
        }
        // A connection of their own: unread answers fill its flow-control window and block no other stream.
        let link = connection.another().await?;
        let slow = self.open_on(&[link], usize::from(self.slow_readers), reading).await?;
        Ok((readers, slow))
    }

    /// Opens `count` streams concurrently, numbered from `first`.
    async fn open_on(&self, links: &[Link], count: usize, first: usize) -> Result<Vec<OpenStream>, Failure> {
        let mut opening = JoinSet::new();
        for number in 0..count {
            let client = client::explain_client(links[number % links.len()].clone());
            opening.spawn(OpenStream::open(client, self.open(first + number)));
        }
        let mut streams = Vec::with_capacity(count);
        while let Some(opened) = opening.join_next().await {
            streams.push(opened.unwrap_or_else(|_| Err(Failure::failed("a task that opens a stream panicked")))?);
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

/// The name of an option's value on the command line.
fn value_name(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Runs every stream to its end. Slow readers end when the last other stream has ended; their results are the numbers
/// of frames that they sent. The third result is the server's processor time in the measured time, if it is known.
async fn run_all(
    run: &Arc<Run>,
    readers: Vec<OpenStream>,
    slow: Vec<OpenStream>,
    server: Option<ServerProcess>,
) -> Result<(Vec<StreamOutcome>, Vec<u64>, Option<ProcessorTime>), Failure> {
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
    let panicked = |_| Failure::failed("a stream's task panicked");
    let all_ended = CancellationToken::new();
    let ending = async {
        let mut streams = Vec::new();
        while let Some(stream) = reading.join_next().await {
            streams.push(stream.map_err(panicked));
        }
        all_ended.cancel();
        streams.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let measuring = async {
        let end = run.end().map(|end| begin + end);
        server?.measure(begin + run.warm_up, end, &all_ended).await
    };
    let (streams, processor) = tokio::join!(ending, measuring);
    let streams = streams?;
    end.cancel();
    let mut sent = Vec::new();
    while let Some(stream) = unreading.join_next().await {
        sent.push(stream.map_err(panicked)?);
    }
    Ok((streams, sent, processor))
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
    fn a_rate_gives_an_open_loop_and_its_absence_a_closed_loop() {
        assert_eq!(parse(&[]).expect("nothing is required").pace(), Pace::Closed { in_flight: 1 });
        assert_eq!(parse(&["--in-flight", "4"]).expect("arguments").pace(), Pace::Closed { in_flight: 4 });
        assert_eq!(parse(&["--rate", "30"]).expect("arguments").pace(), Pace::Open { rate_hz: 30.0 });
        assert!(parse(&["--rate", "30", "--in-flight", "4"]).is_err());
    }

    #[test]
    fn the_length_is_the_warm_up_plus_the_measured_time() {
        let command = parse(&["--duration", "2.5", "--warm-up", "0.5"]).expect("arguments");
        assert_eq!(command.length(), Length::For(Duration::from_secs(3)));
        assert_eq!(parse(&["--frames", "7"]).expect("arguments").length(), Length::Frames(7));
    }

    #[test]
    fn at_least_one_stream_must_read() {
        let failure =
            parse(&["--streams", "2", "--slow-readers", "2"]).expect("arguments").run().expect_err("no stream reads");
        assert!(failure.to_string().contains("at least one"), "{failure}");
    }
}
