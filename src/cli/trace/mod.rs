//! `camlens trace`: shows how long a frame spends in each stage, from the timings in its answer.
//!
//! [`record`] takes the timings from an answer. [`waterfall`] draws single frames; [`breakdown`] sums the stages over
//! all frames, [`chart`] draws their percentiles, and [`advice`] names the stage that takes the most time.

mod advice;
mod bars;
mod breakdown;
mod chart;
mod frames;
mod record;
mod selection;
mod waterfall;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::answer::identity_json;
use super::bench::payloads::Size;
use super::bench::request::AnswerArgs;
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::options::{ExplainArgs, Overflow, TermsArgs, rate};
use super::source::{Source, into_pixels};
use super::summary::{self, FAILURES_SHOWN, Summary};
use super::terminal::{self, Ink};
use crate::client;
use crate::client::{Adjust, Event, FrameQueue, Full, OutgoingFrame, Pace, Session, Unanswered};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use advice::{Sending, advice};
use bars::{Charset, Style, wrap};
use breakdown::Breakdown;
use record::FrameRecord;
use selection::{Chosen, choose};

const EXAMPLES: &str = "\
Examples:
  camlens trace --server 127.0.0.1:8033                      one frame at a time
  camlens trace frames/ --server 127.0.0.1:8033 --rate 30    at a camera's rate
  camlens trace photo.jpg --models models --raw              pixels instead of files: no decoding
  camlens trace clip.webp --slowest 3 --frame 17             draws more frames
  camlens trace --server unix:/run/camlens.sock --json";

const READING: &str = "\
The server measures the stages. They are listed in the order in which a frame passes them, and follow each other
without a gap. `outside` is the round trip minus the sum of the stages: the network, the client, and the sending of the
answer, which the answer itself cannot contain. No two clocks are compared. The time before the first stage and the
time after the last one are not known separately: `outside` is drawn after the stages. Shares are shares of the round
trips. Each frame of a batch is charged the time of the whole batch.

The result of --json is one object. Times end in _ms; shares are 0 to 1, of the round trips:
  model          name, version, digest and precision of the model that answered
  sent, answered, dropped (by reason), failed (by status code), and the other
                 fields of the last line of `camlens stream --json`
  stages         in order: stage, share, total_ms, mean_ms, p50_ms, p90_ms,
                 p99_ms, max_ms; a percentile is null if too few frames were
                 answered (p50 needs 2, p90 needs 10, p99 needs 100)
  server         the same fields for the sum of the stages
  outside        the same fields for the time outside the server's stages
  round_trip     the same fields for the round trip, measured by the client
  mean_batch_size
  advice         the sentences about the stage that takes the most time
  frames         the waterfalls: why, sequence, tag, trace_id, batch_size,
                 stages (stage, start_ms, duration_ms, share), server_ms,
                 outside_ms, round_trip_ms";

/// Show how long frames spend in each stage: single frames as waterfalls, and percentiles over all frames
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{READING}"))]
pub struct TraceCommand {
    /// Folder of images, quoted pattern, clip, or any input that ffmpeg opens [default: synthetic frames]
    #[arg(value_name = "SOURCE")]
    source: Option<String>,

    /// Number of frames to send; the source is repeated as needed
    #[arg(
        long,
        env = "CAMLENS_FRAMES",
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=100_000)
    )]
    frames: u64,

    /// Fixed rate in frames per second, as from a camera [default: none; --in-flight limits the pace]
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate, conflicts_with = "in_flight")]
    rate: Option<f64>,

    /// Number of frames in flight [default: 1, unless --rate is given]
    #[arg(
        long,
        env = "CAMLENS_IN_FLIGHT",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    in_flight: Option<u32>,

    /// What to do with frames that arrive faster than the server explains them [default: latest with --rate, else
    /// block]
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum)]
    overflow: Option<Overflow>,

    /// Depth of a stream in frames: with latest, how many wait; with block and reject, how many may be in flight
    /// [default: 1 with latest, else the server's limit]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    #[command(flatten)]
    terms: TermsArgs,

    /// Send decoded pixels instead of image files
    #[arg(long, env = "CAMLENS_RAW", value_parser = clap::builder::FalseyValueParser::new())]
    raw: bool,

    /// Size of synthetic frames in pixels [default: 640x480]
    #[arg(long, env = "CAMLENS_SIZE", value_name = "WIDTHxHEIGHT", conflicts_with = "source")]
    size: Option<Size>,

    /// Name of the stream in the server's logs and traces
    #[arg(long, env = "CAMLENS_NAME", value_name = "NAME", default_value = "camlens trace")]
    name: String,

    /// Number of the slowest frames to draw, in addition to the median frame
    #[arg(
        long,
        env = "CAMLENS_SLOWEST",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(0..=100)
    )]
    slowest: u16,

    /// Number of a further frame to draw, from 1; may be repeated [default: none]
    #[arg(
        long = "frame",
        env = "CAMLENS_FRAME",
        value_name = "NUMBER",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    further: Vec<u64>,

    /// Width of the drawing in columns, 60 to 400 [default: the terminal's width up to 160; 100 without a terminal]
    #[arg(long, env = "CAMLENS_WIDTH", value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(60..=400))]
    width: Option<u16>,

    /// Print one JSON object instead of drawing; --help lists its fields
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    answer: AnswerArgs,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// Width of the drawing in columns where standard output is not a terminal.
const DEFAULT_WIDTH: usize = 100;
/// Bounds of the width taken from the terminal, in columns.
const MIN_WIDTH: usize = 60;
const MAX_WIDTH: usize = 160;

impl TraceCommand {
    pub fn run(self) -> Result<(), Failure> {
        let source = frames::open(self.source.as_deref(), self.size)?;
        super::runtime()?.block_on(self.trace(source))
    }

    async fn trace(self, source: Source) -> Result<(), Failure> {
        let connection = Connection::open_to_measure(&self.connect).await?;
        let stop = CancellationToken::new();
        terminal::stop_when_interrupted(stop.clone());
        let mut received = Received::new(terminal::progress(Some(self.frames), self.json));
        let frames = Arc::new(FrameQueue::new(2, Full::Wait));
        let (count, raw) = (self.frames, self.raw);
        let change = move |frame: OutgoingFrame| if raw { into_pixels(frame) } else { Ok(frame) };
        let queue = frames.clone();
        let reading = std::thread::spawn(move || source.feed(0, Some(count), change, &queue));
        let session = Session {
            open: self.open(),
            pace: self.pace(),
            unanswered: Unanswered::Lose,
            adjust: Adjust::default(),
            stop,
        };
        let began = Instant::now();
        let (account, streamed) =
            session.run(connection.channel(), frames, &mut |event: Event<'_>| received.take(&event)).await;
        let duration = began.elapsed();
        received.bar.finish_and_clear();
        let read = reading.join().unwrap_or_else(|_| Err(Failure::failed("the thread that reads the source panicked")));
        let summary = Summary::new(account, duration);
        if summary.sent() == 0 {
            // Report the cause: an account without frames does not show it.
            read?;
            streamed?;
            return Err(Failure::failed(format!(
                "{} contains no frame",
                self.source.as_deref().unwrap_or("the source")
            )));
        }
        let output =
            if self.json { self.json(&received, &summary) } else { self.text(&received, &summary, self.style()) };
        io::stdout().lock().write_all(output.as_bytes())?;
        streamed.and(read).and(summary.verdict())
    }

    fn overflow(&self) -> Overflow {
        self.overflow.unwrap_or(if self.rate.is_some() { Overflow::Latest } else { Overflow::Block })
    }

    fn pace(&self) -> Pace {
        match self.rate {
            Some(_) => Pace { rate_hz: self.rate, within_credit: self.overflow() == Overflow::Block, in_flight: None },
            None => Pace { rate_hz: None, within_credit: true, in_flight: Some(self.in_flight.unwrap_or(1)) },
        }
    }

    fn sending(&self) -> Sending {
        if self.pace().in_flight == Some(1) { Sending::OneByOne } else { Sending::Together }
    }

    fn open(&self) -> v1::Open {
        v1::Open {
            model: self.explain.selector(),
            options: Some(self.answer.options(&self.explain)),
            policy: Some(v1::StreamPolicy {
                overflow: self.overflow().message() as i32,
                depth: self.depth,
                ..self.terms.policy()
            }),
            source: client::stream_name(&self.name),
        }
    }

    fn style(&self) -> Style {
        let detected = || terminal::columns().unwrap_or(DEFAULT_WIDTH).clamp(MIN_WIDTH, MAX_WIDTH);
        let charset = if terminal::speaks_utf8() { Charset::Unicode } else { Charset::Ascii };
        Style { width: self.width.map_or_else(detected, usize::from), charset, ink: Ink::for_stdout() }
    }

    /// The output as text: the frames' account, the waterfalls, the chart and the advice.
    fn text(&self, received: &Received, summary: &Summary, style: Style) -> String {
        let mut lines = received.failures.clone();
        lines.extend(summary.account_lines());
        if received.frames.is_empty() {
            lines.push("no frame was answered: there is nothing to draw".to_owned());
            return lines.iter().map(|line| format!("{line}\n")).collect();
        }
        let pacing = match self.pace() {
            Pace { rate_hz: Some(rate), .. } => format!("requested rate {rate}/s"),
            Pace { in_flight: Some(1), .. } => "one frame in flight".to_owned(),
            Pace { in_flight, .. } => format!("at most {} frames in flight", in_flight.unwrap_or(1)),
        };
        lines.push(format!("{:.1} frames/s; {pacing}", summary.rate_hz()));
        let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        for Chosen { why, frame } in choose(&received.frames, self.slowest.into(), &self.further) {
            text.push_str(&format!("\n{}", waterfall::draw(&why, frame, received.model.as_ref(), style)));
        }
        for number in selection::unanswered(&received.frames, &self.further) {
            text.push_str(&format!("\nframe {number} was not answered\n"));
        }
        let breakdown = Breakdown::of(&received.frames);
        if breakdown.frames() > 1 {
            text.push_str(&format!("\n{}", chart::draw(&breakdown, style)));
        }
        if let Some(advice) = advice(&breakdown, self.sending()) {
            text.push_str(&format!("\n{}\n", wrap(&advice, style.width).join("\n")));
        }
        text
    }

    /// The output as JSON; [`READING`] describes its fields.
    fn json(&self, received: &Received, summary: &Summary) -> String {
        let breakdown = Breakdown::of(&received.frames);
        let chosen = choose(&received.frames, self.slowest.into(), &self.further);
        let mut json = summary.account_json();
        json["model"] = received.model.as_ref().map_or(Value::Null, identity_json);
        json["stages"] = breakdown.stages_json();
        json["server"] = breakdown.times_json(&breakdown.server);
        json["outside"] = breakdown.outside_json();
        json["round_trip"] = breakdown.times_json(&breakdown.round_trip);
        json["mean_batch_size"] = breakdown.mean_batch_size().into();
        json["advice"] = advice(&breakdown, self.sending()).into();
        json["frames"] = chosen.iter().map(|chosen| waterfall::json(&chosen.why, chosen.frame)).collect();
        format!("{json}\n")
    }
}

/// The messages received from the server.
struct Received {
    model: Option<v1::ModelIdentity>,
    frames: Vec<FrameRecord>,
    /// One line for each of the first failed frames.
    failures: Vec<String>,
    bar: ProgressBar,
}

impl Received {
    fn new(bar: ProgressBar) -> Self {
        Received { model: None, frames: Vec::new(), failures: Vec::new(), bar }
    }

    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let Event::Message(message, answered) = event else { return Ok(()) };
        match message {
            Response::Opened(opened) => self.model = opened.model.clone(),
            Response::Explanation(answer) => {
                self.bar.inc(1);
                // An answer without a sent frame has no round trip; the account counts it as unexpected.
                self.frames.extend(answered.map(|answered| FrameRecord::new(answer, answered.round_trip)));
            }
            Response::Dropped(run) => self.bar.inc(run.count),
            Response::FrameError(error) => {
                self.bar.inc(1);
                if self.failures.len() < FAILURES_SHOWN {
                    self.failures.push(record::printable(&summary::failure_line(error)));
                }
            }
            Response::GoingAway(going) => {
                let sentence = format!("the server is going away: {}", record::printable(&going.reason));
                self.bar.suspend(|| writeln!(io::stderr().lock(), "{sentence}"))?;
            }
        }
        Ok(())
    }
}
