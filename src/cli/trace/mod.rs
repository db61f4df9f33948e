//! `camlens trace`: where a frame's milliseconds go, from the answers alone.
//!
//! Each answer carries its stages ([`record`]); single frames are drawn as waterfalls ([`waterfall`]), all of them are added
//! up ([`breakdown`]), drawn as percentiles ([`chart`]) and summed up in a sentence ([`advice`]).

mod advice;
mod bars;
mod breakdown;
mod chart;
mod frames;
mod record;
mod selection;
mod waterfall;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::sync::mpsc;
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
use crate::client::OutgoingFrame;
use crate::client::{Pace, Session};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use advice::{Sending, advice};
use bars::{Charset, Style, wrap};
use breakdown::Breakdown;
use record::FrameRecord;
use selection::{Chosen, choose};

const EXAMPLES: &str = "\
Examples:
  camlens trace --server 127.0.0.1:8033                      one frame at a time, beside what the server has to do
  camlens trace frames/ --server 127.0.0.1:8033 --rate 30    as a camera sends them
  camlens trace photo.jpg --models models --raw              pixels instead of files: what decoding costs
  camlens trace clip.webp --slowest 3 --frame 17             more frames, one by one
  camlens trace --server unix:/run/camlens.sock --json";

const READING: &str = "\
Stages are the server's own, in the order of a frame's way; they follow each other without a gap. What a client waits beyond
them is `outside`: the network, the client, and the sending of the answer, which no answer can contain. It is the round trip
less the stages' sum, so no clock is compared with another; before and after the stages cannot be told apart, and it is drawn
behind them. Shares are of the round trips. Frames that run together take their batch's time.

The result of --json is one object. Times end in _ms; shares are 0 to 1, of the round trips:
  model          name, version, digest, precision of what answered
  sent, answered, dropped (by reason), failed (by status code), and the rest of
                 the account, as `camlens stream --json` ends with it
  stages         in order: stage, share, total_ms, mean_ms, p50_ms, p90_ms,
                 p99_ms, max_ms; a percentile that takes more frames than were
                 answered is null (p50: 2, p90: 10, p99: 100)
  server         the same of all stages together
  outside        the same of what is outside the server's stages
  round_trip     the same of what the client waited
  mean_batch_size
  advice         the sentence about what takes the most
  frames         the waterfalls: why, sequence, tag, trace_id, batch_size,
                 stages (stage, start_ms, duration_ms, share), server_ms,
                 outside_ms, round_trip_ms";

/// Show where a frame's milliseconds go: single frames as waterfalls, and percentiles of each stage
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{READING}"))]
pub struct TraceCommand {
    /// A folder of pictures, a pattern in quotes, a clip, or anything that ffmpeg opens [default: frames are made up]
    #[arg(value_name = "SOURCE")]
    source: Option<String>,

    /// Send so many frames; the source begins again as often as needed
    #[arg(long, env = "CAMLENS_FRAMES", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    frames: u64,

    /// Send this many frames per second, as a camera does
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate, conflicts_with = "in_flight")]
    rate: Option<f64>,

    /// Keep so many frames on their way [default: 1, unless there is a rate]
    #[arg(long, env = "CAMLENS_IN_FLIGHT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: Option<u32>,

    /// What happens to frames that come faster than they are explained [default: latest with a rate, else block]
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum)]
    overflow: Option<Overflow>,

    /// Frames that the server keeps waiting [default: the server's for the policy]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    #[command(flatten)]
    terms: TermsArgs,

    /// Send pixels instead of picture files
    #[arg(long, env = "CAMLENS_RAW", value_parser = clap::builder::FalseyValueParser::new())]
    raw: bool,

    /// The size of frames that are made up [default: 640x480]
    #[arg(long, env = "CAMLENS_SIZE", value_name = "WIDTHxHEIGHT", conflicts_with = "source")]
    size: Option<Size>,

    /// The stream's name in the server's logs and traces
    #[arg(long, env = "CAMLENS_NAME", value_name = "NAME", default_value = "camlens trace")]
    name: String,

    /// Draw so many of the slowest frames, beside the median one
    #[arg(long, env = "CAMLENS_SLOWEST", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=100))]
    slowest: u16,

    /// Draw this frame as well, counted from 1; may be repeated
    #[arg(long = "frame", env = "CAMLENS_FRAME", value_name = "NUMBER", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    also: Vec<u64>,

    /// Columns to draw in, 60 to 400 [default: the terminal's, or 100]
    #[arg(long, env = "CAMLENS_WIDTH", value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(60..=400))]
    width: Option<u16>,

    /// Print one JSON object instead of drawing; its fields are in --help
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    answer: AnswerArgs,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// Columns where nobody says how many there are, the fewest that a drawing takes, and the most that help it.
const USUAL_WIDTH: usize = 100;
const LEAST_WIDTH: usize = 60;
const MOST_WIDTH: usize = 160;

impl TraceCommand {
    pub fn run(self) -> Result<(), Failure> {
        let source = frames::open(self.source.as_deref(), self.size)?;
        super::runtime()?.block_on(self.trace(source))
    }

    async fn trace(self, source: Source) -> Result<(), Failure> {
        let connection = Connection::open(&self.connect).await?;
        let stop = CancellationToken::new();
        terminal::stop_when_interrupted(stop.clone());
        let mut seen = Seen::new(terminal::progress(Some(self.frames), self.json));
        let (sender, frames) = mpsc::channel(2);
        let (count, raw) = (self.frames, self.raw);
        let change = move |frame: OutgoingFrame| if raw { into_pixels(frame) } else { Ok(frame) };
        let reading = std::thread::spawn(move || source.feed(0, Some(count), change, &sender));
        let session = Session {
            client: client::explain_client(connection.channel()),
            open: self.open(),
            pace: self.pace(),
            stop,
        };
        let began = Instant::now();
        let (account, streamed) = session.run(frames, &mut |message, round_trip| seen.take(message, round_trip)).await;
        let took = began.elapsed();
        seen.bar.finish_and_clear();
        let read = reading.join().unwrap_or_else(|_| Err(Failure::failed("reading the source broke")));
        let summary = Summary::new(account, took);
        if summary.sent() == 0 {
            // What went wrong comes first: an empty account explains nothing.
            read?;
            streamed?;
            return Err(Failure::failed(format!("{} gave no frame", self.source.as_deref().unwrap_or("the source"))));
        }
        let output = if self.json { self.json(&seen, &summary) } else { self.text(&seen, &summary, self.style()) };
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
        let found = || terminal::columns().unwrap_or(USUAL_WIDTH).clamp(LEAST_WIDTH, MOST_WIDTH);
        let charset = if terminal::speaks_utf8() { Charset::Unicode } else { Charset::Ascii };
        Style { width: self.width.map_or_else(found, usize::from), charset, ink: Ink::for_stdout() }
    }

    /// Everything for people: the frames' account, the waterfalls, the chart and the sentence.
    fn text(&self, seen: &Seen, summary: &Summary, style: Style) -> String {
        let mut lines = seen.failures.clone();
        lines.extend(summary.account_lines());
        if seen.frames.is_empty() {
            lines.push("no frame was answered: there is nothing to draw".to_owned());
            return lines.iter().map(|line| format!("{line}\n")).collect();
        }
        let how = match self.pace() {
            Pace { rate_hz: Some(rate), .. } => format!("{rate} a second were asked for"),
            Pace { in_flight: Some(1), .. } => "one was on its way at a time".to_owned(),
            Pace { in_flight, .. } => format!("at most {} were on their way at a time", in_flight.unwrap_or(1)),
        };
        lines.push(format!("{:.1} frames/s; {how}", summary.rate_hz()));
        let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        for Chosen { why, frame } in choose(&seen.frames, self.slowest.into(), &self.also) {
            text.push_str(&format!("\n{}", waterfall::draw(&why, frame, seen.model.as_ref(), style)));
        }
        for number in selection::unanswered(&seen.frames, &self.also) {
            text.push_str(&format!("\nframe {number} was not answered\n"));
        }
        let breakdown = Breakdown::of(&seen.frames);
        if breakdown.frames() > 1 {
            text.push_str(&format!("\n{}", chart::draw(&breakdown, style)));
        }
        if let Some(advice) = advice(&breakdown, self.sending()) {
            text.push_str(&format!("\n{}\n", wrap(&advice, style.width).join("\n")));
        }
        text
    }

    /// [`READING`] says what the fields are.
    fn json(&self, seen: &Seen, summary: &Summary) -> String {
        let breakdown = Breakdown::of(&seen.frames);
        let chosen = choose(&seen.frames, self.slowest.into(), &self.also);
        let mut json = summary.account_json();
        json["model"] = seen.model.as_ref().map_or(Value::Null, identity_json);
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

/// What came back.
struct Seen {
    model: Option<v1::ModelIdentity>,
    frames: Vec<FrameRecord>,
    /// The first of those that failed, a line each.
    failures: Vec<String>,
    bar: ProgressBar,
}

impl Seen {
    fn new(bar: ProgressBar) -> Self {
        Seen { model: None, frames: Vec::new(), failures: Vec::new(), bar }
    }

    fn take(&mut self, message: &Response, round_trip: Option<Duration>) -> Result<(), Failure> {
        match message {
            Response::Opened(opened) => self.model = opened.model.clone(),
            Response::Explanation(answer) => {
                self.bar.inc(1);
                // One that answers nothing is the account's to complain about.
                self.frames.extend(round_trip.map(|round_trip| FrameRecord::new(answer, round_trip)));
            }
            Response::Dropped(run) => self.bar.inc(run.count),
            Response::FrameError(error) => {
                self.bar.inc(1);
                if self.failures.len() < FAILURES_SHOWN {
                    self.failures.push(record::printable(&summary::failure_line(error)));
                }
            }
            Response::GoingAway(going) => {
                let sentence = format!("the server goes away: {}", record::printable(&going.reason));
                self.bar.suspend(|| writeln!(io::stderr().lock(), "{sentence}"))?;
            }
        }
        Ok(())
    }
}
