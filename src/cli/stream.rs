//! `camlens stream`: explains the frames of a folder, a clip or a video over one stream.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answer::{self, OutputFolder, class_name, identity_json};
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::options::{ExplainArgs, Overflow, PictureFormat, PictureKind, TermsArgs, rate};
use super::source::Source;
use super::summary::{self, FAILURES_SHOWN, Summary, stage_rows};
use super::terminal;
use crate::client;
use crate::client::names;
use crate::client::{Pace, Session};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::render::report::{Clip, Figure, Report};
use crate::telemetry::status_name;

/// Explain the frames of a folder, a clip or a video over one stream
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens stream frames/ --out out                          every frame, at the server's pace
  camlens stream clip.webp --overflow latest --rate 30      as a camera: newer frames replace waiting ones
  camlens stream video.mp4 --limit 200 --html report.html   a video needs an installed ffmpeg
  camlens stream 'frames/*.jpg' --server unix:/run/camlens.sock --json

The pictures of each answer are written to files named after its frame number. Every frame is accounted for: answered,
dropped with a reason, or failed. With --json, each line is one object, and the last one is the summary.")]
pub struct StreamCommand {
    /// Frames to send: a folder of pictures, a pattern in quotes, an animated WebP, or any input of ffmpeg
    #[arg(value_name = "SOURCE")]
    source: String,

    /// Folder for the pictures
    #[arg(long, env = "CAMLENS_OUT", value_name = "FOLDER", default_value = "camlens-out")]
    out: PathBuf,

    /// Picture to write for each target of a frame; may be repeated [default: overlay]
    #[arg(long = "picture", env = "CAMLENS_PICTURE", value_name = "KIND", value_enum, value_delimiter = ',')]
    pictures: Vec<PictureKind>,

    /// File format of the pictures
    #[arg(long, env = "CAMLENS_FORMAT", value_enum, default_value = "jpeg")]
    format: PictureFormat,

    /// What the server does when frames arrive faster than they are explained
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum, default_value = "block")]
    overflow: Overflow,

    /// With --overflow latest, number of frames that wait; otherwise the stream's credit, in frames [default: 1 with
    /// latest, otherwise the server's limit]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    #[command(flatten)]
    terms: TermsArgs,

    /// Frames per second to send [default: unlimited]
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate)]
    rate: Option<f64>,

    /// Largest number of frames to send [default: unlimited]
    #[arg(long, env = "CAMLENS_LIMIT", value_name = "FRAMES")]
    limit: Option<u64>,

    /// Number of times to read the source; 0: until interrupted
    #[arg(long, env = "CAMLENS_REPEAT", value_name = "TIMES", default_value_t = 1)]
    repeat: u64,

    /// Name of the stream in the server's logs and traces [default: SOURCE]
    #[arg(long, env = "CAMLENS_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Also write a report: one HTML file that plays the pictures
    #[arg(long, env = "CAMLENS_HTML", value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print JSON instead of text, one object per line
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
}

impl StreamCommand {
    pub fn run(self) -> Result<(), Failure> {
        let source = Source::open(&self.source)?;
        super::runtime()?.block_on(self.stream(source))
    }

    async fn stream(self, source: Source) -> Result<(), Failure> {
        let connection = Connection::open(&self.connect).await?;
        let stop = CancellationToken::new();
        terminal::stop_when_interrupted(stop.clone());
        let total = self.expected(&source);
        let mut output = Output {
            folder: OutputFolder::create(&self.out)?,
            bar: terminal::progress(total, self.json),
            json: self.json,
            model: None,
            clip: self.html.is_some().then(Clip::default),
            failures: 0,
        };
        let (sender, frames) = mpsc::channel(2);
        let (repeat, limit) = (self.repeat, self.limit);
        let reading = std::thread::spawn(move || source.feed(repeat, limit, Ok, &sender));
        let session = Session {
            client: client::explain_client(connection.channel()),
            open: self.open(),
            pace: Pace { rate_hz: self.rate, within_credit: self.overflow == Overflow::Block, in_flight: None },
            stop,
        };
        let began = std::time::Instant::now();
        let (account, streamed) = session.run(frames, &mut |message, _| output.take(message)).await;
        let took = began.elapsed();
        output.bar.finish_and_clear();
        let read = reading.join().unwrap_or_else(|_| Err(Failure::failed("the thread that reads the source panicked")));
        let summary = Summary::new(account, took);
        if summary.sent() == 0 {
            // The reader's or the stream's own error explains more than an empty account.
            read?;
            streamed?;
            return Err(Failure::failed(format!("{} has no frames", self.source)));
        }
        self.finish(&summary, output)?;
        streamed.and(read).and(summary.verdict())
    }

    fn open(&self) -> v1::Open {
        let name = self.name.as_ref().unwrap_or(&self.source);
        let pictures = if self.pictures.is_empty() { &[PictureKind::Overlay][..] } else { &self.pictures };
        v1::Open {
            model: self.explain.selector(),
            options: Some(self.explain.options(pictures, self.format, &[])),
            policy: Some(v1::StreamPolicy {
                overflow: self.overflow.message() as i32,
                depth: self.depth,
                ..self.terms.policy()
            }),
            source: client::stream_name(name),
        }
    }

    /// Number of frames that will be sent, if it is known.
    fn expected(&self, source: &Source) -> Option<u64> {
        let all = source.len().filter(|_| self.repeat > 0).map(|count| count.saturating_mul(self.repeat));
        match (all, self.limit) {
            (Some(all), Some(limit)) => Some(all.min(limit)),
            (all, limit) => all.or(limit),
        }
    }

    fn finish(&self, summary: &Summary, output: Output) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", summary.json())?;
        } else {
            stdout.write_all(summary.text().as_bytes())?;
            if summary.answered() > 0 {
                writeln!(stdout, "the pictures are in {}", output.folder.path().display())?;
            }
        }
        if let (Some(path), Some(clip)) = (&self.html, output.clip) {
            let mut facts = vec![("source".to_owned(), self.source.clone())];
            if let Some(model) = &output.model {
                facts.push(("model".to_owned(), format!("{} version {}", model.name, model.version)));
                facts.push(("digest".to_owned(), model.digest.clone()));
            }
            facts.extend(summary.facts());
            let stages = stage_rows(summary.stages());
            let report =
                Report { title: "What the model looks at".to_owned(), facts, clip, stages, ..Default::default() };
            std::fs::write(path, report.html()).map_err(|error| Failure::from_io("write", path, &error))?;
            if !self.json {
                writeln!(stdout, "the report is {}", path.display())?;
            }
        }
        Ok(())
    }
}

/// Writes a stream's messages to files, the terminal and the report.
struct Output {
    folder: OutputFolder,
    bar: ProgressBar,
    json: bool,
    model: Option<v1::ModelIdentity>,
    clip: Option<Clip>,
    failures: usize,
}

impl Output {
    fn take(&mut self, message: &Response) -> Result<(), Failure> {
        match message {
            Response::Opened(opened) => {
                self.model = opened.model.clone();
                self.line(&json!({
                    "event": "opened",
                    "stream_id": opened.stream_id,
                    "model": opened.model.as_ref().map(identity_json),
                    "max_in_flight": opened.max_in_flight,
                }))
            }
            Response::Explanation(answer) => self.answered(answer),
            Response::Dropped(run) => {
                self.bar.inc(run.count);
                self.line(&json!({
                    "event": "dropped",
                    "first_sequence": run.first_sequence,
                    "last_sequence": run.last_sequence,
                    "count": run.count,
                    "reason": names::drop_reason(run.reason),
                }))
            }
            Response::FrameError(error) => self.failed(error),
            Response::GoingAway(going) => {
                let sentence = format!("the server is going away: {}", going.reason);
                if !self.json {
                    self.bar.suspend(|| writeln!(io::stderr().lock(), "{sentence}"))?;
                }
                self.line(&json!({
                    "event": "going_away",
                    "last_accepted_sequence": going.last_accepted_sequence,
                    "reason": going.reason,
                }))
            }
        }
    }

    fn answered(&mut self, answer: &v1::Explanation) -> Result<(), Failure> {
        let tag = String::from_utf8_lossy(&answer.tag).into_owned();
        let name =
            tag.rsplit_once('.').filter(|(_, ending)| !ending.contains('#')).map_or(tag.as_str(), |(stem, _)| stem);
        let stem = self.folder.stem(&format!("{:06}-{name}", answer.sequence));
        let written = self.folder.write(&stem, answer)?;
        if let Some(top) = answer.predictions.first() {
            let class = class_name(&top.label, top.class_index);
            self.bar.set_message(format!("{class} {:.0} %", top.probability * 100.0));
            if let (Some(clip), Some(picture)) =
                (&mut self.clip, answer.targets.first().and_then(|target| target.pictures.first()))
            {
                clip.push(Figure {
                    caption: format!("{tag}: {class} {:.1} %", top.probability * 100.0),
                    media_type: names::image_format(picture.format).1,
                    data: picture.data.to_vec(),
                });
            }
        }
        self.bar.inc(1);
        let mut event = answer::to_json(answer, &written);
        event["event"] = "answered".into();
        event["tag"] = tag.into();
        self.line(&event)
    }

    fn failed(&mut self, error: &v1::FrameError) -> Result<(), Failure> {
        self.bar.inc(1);
        self.failures += 1;
        let tag = String::from_utf8_lossy(&error.tag).into_owned();
        if !self.json && self.failures <= FAILURES_SHOWN {
            let line = summary::failure_line(error);
            self.bar.suspend(|| writeln!(io::stdout().lock(), "{line}"))?;
        }
        self.line(&json!({
            "event": "failed",
            "sequence": error.sequence,
            "tag": tag,
            "code": status_name(error.code),
            "message": error.message,
            "field": error.field,
        }))
    }

    fn line(&self, event: &Value) -> Result<(), Failure> {
        if self.json {
            writeln!(io::stdout().lock(), "{event}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        command: StreamCommand,
    }

    fn parse(arguments: &[&str]) -> Result<StreamCommand, clap::Error> {
        Line::try_parse_from(["stream"].iter().chain(arguments)).map(|line| line.command)
    }

    #[test]
    fn the_policy_blocks_by_default_and_follows_the_flags() {
        let open = parse(&["frames"]).expect("a source is enough").open();
        let policy = open.policy.expect("a policy");
        assert_eq!(policy.overflow(), v1::stream_policy::Overflow::Block);
        assert_eq!(open.source, "frames");
        let open =
            parse(&["frames", "--overflow", "latest", "--name", "gate 7", "--depth", "2"]).expect("arguments").open();
        let policy = open.policy.expect("a policy");
        assert_eq!((policy.overflow(), policy.depth), (v1::stream_policy::Overflow::Latest, 2));
        assert_eq!(open.source, "gate 7");
    }

    #[test]
    fn a_long_name_is_cut_to_the_protocols_limit() {
        let name = "é".repeat(200);
        assert_eq!(parse(&["frames", "--name", &name]).expect("arguments").open().source, "é".repeat(128));
    }

    #[test]
    fn a_rate_out_of_range_is_refused() {
        for text in ["0", "-1", "NaN", "inf", "fast"] {
            assert!(parse(&["frames", "--rate", text]).is_err(), "{text}");
        }
        assert_eq!(parse(&["frames", "--rate", "29.97"]).expect("a rate").rate, Some(29.97));
    }
}
