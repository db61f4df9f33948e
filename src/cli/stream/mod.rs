//! `camlens stream`: explains the frames of folders, clips, videos and cameras, each over a stream of its own.
//!
//! [`one`] runs one source's stream; [`output`] writes its files and lines; a [`sink`] takes each frame and its answer.

mod color_range;
mod one;
mod output;
mod printer;
mod report;
mod sink;
mod video;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::color_range::{ColorRange, FollowSink};
use self::one::{OneStream, Outcome};
use self::output::Output;
use self::printer::Printer;
use self::report::ReportSink;
use self::sink::Sink;
use self::video::{Timeline, VideoPlan, VideoSink};
use self::view::ViewSink;
use super::answer::{OutputFolder, slug};
use super::connection::{ConnectArgs, Connection};
use super::failure::Failure;
use super::options::{ExplainArgs, Overflow, PictureFormat, PictureKind, TermsArgs, rate};
use super::scene::{SceneMaps, color_order};
use super::source::{Source, VideoSettings, public_name};
use super::summary;
use super::terminal;
use crate::client::{self, Adjust};
use crate::proto::v1;
use crate::view::Hub;

/// Pictures per second of a video, unless --fps is given.
const DEFAULT_VIDEO_FPS: f64 = 25.0;

/// Explain the frames of folders, clips, videos and cameras, each over a stream of its own
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  camlens stream frames/ --out out                          every frame, at the server's pace
  camlens stream rtsp://camera/1 --fps 10 --width 640       a camera, until Ctrl-C
  camlens stream clip.mp4 --video explained.mp4             frame and explanation side by side
  camlens stream rtsp://gate/1 rtsp://line4/1 --json        two cameras, one stream each
  camlens stream clip.webp --overflow latest --rate 30      as a camera: newer frames replace waiting ones
  camlens stream video.mp4 --limit 200 --html report.html   a video needs an installed ffmpeg
  camlens stream rtsp://camera/1 --view 127.0.0.1:9467      and watch it in a browser
  camlens stream 'frames/*.jpg' --server unix:/run/camlens.sock --json

The pictures of each answer are written to files named after its frame number, with several sources in a folder for
each. Every frame is accounted for: answered, dropped with a reason, failed, lost with a connection, or not sent.

A camera is read until Ctrl-C: when it ends, stalls or sends garbage, it is tried again, with waits that grow. Newer
frames replace waiting ones. `glass to answer` is the time from a frame's capture to its answer. A frame's capture is
known from the camera's own clock up to the smallest delay between camera and this computer, which is not known and not
counted. With --json, each line is one object, and the last one is the summary.")]
pub struct StreamCommand {
    /// Frames to send: a folder of pictures, a pattern in quotes, an animated WebP, or any input of ffmpeg, such as a
    /// video or rtsp://CAMERA/PATH; several sources have a stream each
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,

    /// Folder for the pictures
    #[arg(long, env = "CAMLENS_OUT", value_name = "FOLDER", default_value = "camlens-out")]
    out: PathBuf,

    /// Picture to write for each target of a frame; may be repeated [default: overlay]
    #[arg(long = "picture", env = "CAMLENS_PICTURE", value_name = "KIND", value_enum, value_delimiter = ',')]
    pictures: Vec<PictureKind>,

    /// File format of the pictures
    #[arg(long, env = "CAMLENS_FORMAT", value_enum, default_value = "jpeg")]
    format: PictureFormat,

    /// What happens when frames arrive faster than they are explained [default: latest for cameras, block otherwise]
    #[arg(long, env = "CAMLENS_OVERFLOW", value_enum)]
    overflow: Option<Overflow>,

    /// With --overflow latest, number of frames that wait; otherwise the stream's credit, in frames [default: 1 with
    /// latest, otherwise the server's limit]
    #[arg(long, env = "CAMLENS_DEPTH", value_name = "FRAMES", default_value_t = 0, hide_default_value = true)]
    depth: u32,

    #[command(flatten)]
    terms: TermsArgs,

    /// Frames per second to send from each source [default: unlimited]
    #[arg(long, env = "CAMLENS_RATE", value_name = "HZ", value_parser = rate)]
    rate: Option<f64>,

    /// Largest number of frames to read from each source [default: unlimited]
    #[arg(long, env = "CAMLENS_LIMIT", value_name = "FRAMES")]
    limit: Option<u64>,

    /// Number of times to read the source; 0: in a loop, until interrupted. A camera is read until interrupted
    #[arg(long, env = "CAMLENS_REPEAT", value_name = "TIMES", default_value_t = 1)]
    repeat: u64,

    #[command(flatten)]
    video: VideoArgs,

    /// How long to try again when a camera or the server is lost, in seconds; 0: not at all
    #[arg(long, env = "CAMLENS_RECONNECT", value_name = "SECONDS", default_value_t = 60)]
    reconnect: u32,

    /// Name of the stream in the server's logs and traces; may be repeated, one for each source [default: SOURCE,
    /// without user, password and query]
    #[arg(long = "name", env = "CAMLENS_NAME", value_name = "NAME")]
    names: Vec<String>,

    /// Also write a report: one HTML file with the frames and their maps
    #[arg(long, env = "CAMLENS_HTML", value_name = "FILE")]
    html: Option<PathBuf>,

    /// Show the frames and their maps live on a page of this machine, HOST:PORT, until the command ends; port 0: a free
    /// one. The stream then asks for Grad-CAM and Guided Grad-CAM as numbers, about 0.4 MB a frame [default: none]
    #[arg(long, env = "CAMLENS_VIEW", value_name = "ADDRESS")]
    view: Option<String>,

    /// Also make a video: an MP4 of frame and explanation side by side, as long as the frames took. A recording's has
    /// --fps or 25 pictures per second, a camera's one for each answer, at its time; needs an installed ffmpeg
    #[arg(long = "video", env = "CAMLENS_VIDEO", value_name = "FILE")]
    mp4: Option<PathBuf>,

    /// Values at the ends of the colour scale of heat maps and overlays: own, of each map; follow, from 0 to a maximum
    /// that follows the maps slowly, so that a video does not flicker; or MIN:MAX [default: own, with --video follow]
    #[arg(long, env = "CAMLENS_COLOR_RANGE", value_name = "RANGE", allow_hyphen_values = true)]
    color_range: Option<ColorRange>,

    /// Print JSON instead of text, one object per line
    #[arg(long, env = "CAMLENS_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    explain: ExplainArgs,

    #[command(flatten)]
    connect: ConnectArgs,
}

/// The flags of videos and cameras.
#[derive(Debug, Args)]
#[command(next_help_heading = "Videos and cameras")]
struct VideoArgs {
    /// Largest number of frames to take per second of the video's own time; the others are skipped [default: all]
    #[arg(long, env = "CAMLENS_FPS", value_name = "HZ", value_parser = rate)]
    fps: Option<f64>,

    /// Largest width of a frame in pixels: wider ones are scaled down [default: unlimited]
    #[arg(long, env = "CAMLENS_WIDTH", value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=16384))]
    width: Option<u32>,

    /// Whether the source is a live camera [default: true for devices and for rtsp, rtp, udp, srt, rtmp, tcp]
    #[arg(long, env = "CAMLENS_LIVE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true",
          require_equals = true)]
    live: Option<bool>,

    /// How long a connected camera may send no frame before it counts as lost, in seconds
    #[arg(long, env = "CAMLENS_STALL", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    stall: u32,

    /// Option of ffmpeg for the source, such as rtsp_transport=udp; may be repeated
    #[arg(long = "ffmpeg-option", env = "CAMLENS_FFMPEG_OPTION", value_name = "NAME=VALUE", value_parser = option)]
    options: Vec<(String, String)>,
}

impl VideoArgs {
    fn settings(&self) -> VideoSettings {
        VideoSettings { fps: self.fps, width: self.width, options: self.options.clone(), live: self.live }
    }
}

/// Parses an option of ffmpeg.
fn option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !name.starts_with('-') => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE, without a dash before the name".to_owned()),
    }
}

impl StreamCommand {
    pub fn run(self) -> Result<(), Failure> {
        if self.names.len() > self.sources.len() {
            let (names, sources) = (self.names.len(), self.sources.len());
            return Err(Failure::usage(format!("--name is given {names} times for {sources} sources")));
        }
        let of_one = [(self.html.is_some(), "--html"), (self.mp4.is_some(), "--video")];
        if let (2.., Some((_, flag))) = (self.sources.len(), of_one.iter().find(|(is_given, _)| *is_given)) {
            return Err(Failure::usage(format!("{flag} is for one source, and several are given")));
        }
        let sources = self.sources.iter().map(|text| Source::open_with(text, self.video.settings()));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        super::runtime()?.block_on(self.stream(sources))
    }

    async fn stream(self, sources: Vec<Source>) -> Result<(), Failure> {
        let connection = Arc::new(Connection::open(&self.connect).await?);
        let stop = CancellationToken::new();
        terminal::stop_when_interrupted(stop.clone());
        let bar = terminal::progress(self.expected(&sources), self.json);
        let maps = self.scene_maps(&connection).await;
        let hub = match &self.view {
            Some(address) => {
                let (hub, address) = view::serve(address).await?;
                bar.suspend(|| writeln!(io::stderr().lock(), "the live page is http://{address}"))?;
                Some(hub)
            }
            None => None,
        };
        let mut streams = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            let mut open = self.open(index, self.overflow(&source), maps);
            let (output, adjust) = self.output(index, &source, &mut open, &bar, (maps, hub.as_ref()))?;
            let link = if index == 0 { connection.channel() } else { connection.another().await? };
            let connection = connection.clone();
            let one = self.one(index, source, (open, adjust), stop.clone());
            streams.push(tokio::spawn(async move { one.run(connection, link, output).await }));
        }
        let mut outcomes = Vec::new();
        for stream in streams {
            outcomes.push(stream.await.map_err(|_| Failure::failed("the task of a stream panicked"))?);
        }
        bar.finish_and_clear();
        self.print(&outcomes)?;
        self.verdict(outcomes)
    }

    /// The source's name for people: as it is given, without what may be secret.
    fn source_name(&self, index: usize) -> String {
        public_name(&self.sources[index])
    }

    fn one(
        &self,
        index: usize,
        source: Source,
        (open, adjust): (v1::Open, Adjust),
        stop: CancellationToken,
    ) -> OneStream {
        OneStream {
            name: self.source_name(index),
            open,
            adjust,
            overflow: self.overflow(&source),
            rate_hz: self.rate,
            repeat: self.repeat,
            limit: self.limit,
            give_up_after: Duration::from_secs(self.reconnect.into()),
            stall_after: Duration::from_secs(self.video.stall.into()),
            stop,
            source,
        }
    }

    fn overflow(&self, source: &Source) -> Overflow {
        self.overflow.unwrap_or(if source.camera().is_some() { Overflow::Latest } else { Overflow::Block })
    }

    fn pictures(&self) -> &[PictureKind] {
        if self.pictures.is_empty() { &[PictureKind::Overlay][..] } else { &self.pictures }
    }

    /// The maps that the report and the live page need, if there is one of them.
    async fn scene_maps(&self, connection: &Connection) -> Option<SceneMaps> {
        if self.html.is_none() && self.view.is_none() {
            return None;
        }
        let color = color_order(connection, self.explain.selector()).await;
        let mut pictures = self.pictures().to_vec();
        pictures.extend(self.view.as_ref().map(|_| PictureKind::Light));
        SceneMaps::of(&pictures, &[], color)
    }

    fn open(&self, index: usize, overflow: Overflow, maps: Option<SceneMaps>) -> v1::Open {
        let name = self.names.get(index).cloned().unwrap_or_else(|| self.source_name(index));
        let mut options = self.explain.options(self.pictures(), self.format, &[]);
        if let Some(maps) = maps {
            maps.ask(&mut options);
        }
        v1::Open {
            model: self.explain.selector(),
            options: Some(options),
            policy: Some(v1::StreamPolicy {
                overflow: overflow.message() as i32,
                depth: self.depth,
                ..self.terms.policy()
            }),
            source: client::stream_name(&name),
        }
    }

    /// The output of a source's stream. Sets what it needs in `open`, and in the frames that are sent.
    fn output(
        &self,
        index: usize,
        source: &Source,
        open: &mut v1::Open,
        bar: &ProgressBar,
        (maps, hub): (Option<SceneMaps>, Option<&Hub>),
    ) -> Result<(Output, Adjust), Failure> {
        let is_live = source.camera().is_some();
        let is_named = self.sources.len() > 1;
        let name = self.source_name(index);
        let folder =
            if is_named { self.out.join(format!("{}-{}", index + 1, last_part(&name))) } else { self.out.clone() };
        let mut sinks = Vec::<Box<dyn Sink>>::new();
        if let Some(path) = &self.html {
            sinks.push(Box::new(ReportSink::new(path, maps)));
        }
        if let Some(hub) = hub {
            let shown = self.names.get(index).cloned().unwrap_or_else(|| name.clone());
            sinks.push(Box::new(ViewSink::new(hub.clone(), shown, maps, is_live)));
        }
        let fps = self.video.fps.unwrap_or(DEFAULT_VIDEO_FPS);
        let timeline = || Timeline::new(fps, self.rate.unwrap_or(fps));
        if let Some(path) = &self.mp4 {
            let plan = VideoPlan { path: path.clone(), fps, is_live };
            sinks.push(Box::new(VideoSink::start(plan, timeline())?));
        }
        let (mut adjust, options) = (Adjust::default(), open.options.get_or_insert_default());
        let range = self.color_range.unwrap_or(if self.mp4.is_some() { ColorRange::Follow } else { ColorRange::Own });
        range.set(options);
        if range == ColorRange::Follow {
            let (sink, change) = FollowSink::new(options.pictures.clone(), timeline(), is_live);
            sinks.push(Box::new(sink));
            adjust = change;
        }
        let printer = Printer { json: self.json, bar: bar.clone(), source: name, is_named };
        Ok((Output::new(printer, OutputFolder::create(&folder)?, sinks, is_live), adjust))
    }

    /// Number of frames that will be sent, if it is known.
    fn expected(&self, sources: &[Source]) -> Option<u64> {
        let of = |source: &Source| {
            let all = source.len().filter(|_| self.repeat > 0).map(|count| count.saturating_mul(self.repeat));
            match (all, self.limit) {
                (Some(all), Some(limit)) => Some(all.min(limit)),
                (all, limit) => all.or(limit),
            }
        };
        sources.iter().map(of).sum()
    }

    fn print(&self, outcomes: &[Outcome]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let is_answered = outcomes.iter().any(|outcome| outcome.summary.answered() > 0);
        match outcomes {
            // The failure says it all.
            [one] if one.summary.sent() == 0 => return Ok(()),
            _ if self.json => return Ok(writeln!(stdout, "{}", json(outcomes))?),
            [one] => stdout.write_all(one.summary.text().as_bytes())?,
            several => {
                let rows: Vec<_> = several.iter().map(|outcome| (outcome.name.as_str(), &outcome.summary)).collect();
                stdout.write_all(summary::table(&rows).as_bytes())?;
            }
        }
        if is_answered {
            writeln!(stdout, "the pictures are in {}", self.out.display())?;
        }
        for made in outcomes.iter().flat_map(|outcome| &outcome.made) {
            writeln!(stdout, "{made}")?;
        }
        Ok(())
    }

    /// The first failure; the others are printed before.
    fn verdict(&self, outcomes: Vec<Outcome>) -> Result<(), Failure> {
        let is_one = outcomes.len() == 1;
        let named = |name: &str, failure: Failure| if is_one { failure } else { failure.about(name) };
        let mut failures = Vec::new();
        for outcome in outcomes {
            let name = outcome.name.clone();
            failures.extend(outcome.verdict().err().map(|failure| named(&name, failure)));
        }
        if failures.is_empty() {
            return Ok(());
        }
        let first = failures.remove(0);
        for other in failures {
            other.report(terminal::colours_on_stderr());
        }
        Err(first)
    }
}

/// The last part of a path or an address, as a part of a file's name.
fn last_part(name: &str) -> String {
    slug(&super::source::file_name(Path::new(name.trim_end_matches('/'))))
}

/// The summary: of one source its own, of several the sums and each source's.
fn json(outcomes: &[Outcome]) -> Value {
    let of = |outcome: &Outcome| {
        let mut json = outcome.summary.json();
        json["source"] = outcome.name.as_str().into();
        json["error"] = outcome.result.as_ref().err().map(ToString::to_string).into();
        json
    };
    match outcomes {
        [one] => of(one),
        several => {
            let sources: Vec<Value> = several.iter().map(of).collect();
            let sum = |key: &str| sources.iter().filter_map(|source| source[key].as_u64()).sum::<u64>();
            json!({
                "event": "summary",
                "read": sum("read"),
                "sent": sum("sent"),
                "answered": sum("answered"),
                "accounted_for": sources.iter().all(|source| source["accounted_for"] == true),
                "sources": sources,
            })
        }
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

    /// The Open of a stream whose only source is an address.
    fn open(source: &str, more: &[&str]) -> v1::Open {
        let command = parse(&[&[source], more].concat()).expect("arguments");
        let source = Source::open_with(source, command.video.settings()).expect("an address");
        command.open(0, command.overflow(&source), None)
    }

    #[test]
    fn the_policy_fits_the_source_and_follows_the_flags() {
        let (clip, camera) = ("http://host/clip.mp4", "rtsp://me:secret@camera/1");
        let overflow = |open: &v1::Open| open.policy.as_ref().map(v1::StreamPolicy::overflow);
        let of_clip = open(clip, &[]);
        assert_eq!(overflow(&of_clip), Some(v1::stream_policy::Overflow::Block));
        assert_eq!(of_clip.source, clip);
        let of_camera = open(camera, &[]);
        assert_eq!(overflow(&of_camera), Some(v1::stream_policy::Overflow::Latest));
        assert_eq!(of_camera.source, "rtsp://camera/1");
        assert_eq!(overflow(&open(camera, &["--live=false"])), Some(v1::stream_policy::Overflow::Block));
        assert_eq!(overflow(&open(clip, &["--live"])), Some(v1::stream_policy::Overflow::Latest));
        let said = open(camera, &["--overflow", "reject", "--name", "gate 7", "--depth", "2"]);
        assert_eq!(overflow(&said), Some(v1::stream_policy::Overflow::Reject));
        assert_eq!((said.policy.map(|policy| policy.depth), said.source.as_str()), (Some(2), "gate 7"));
    }

    #[test]
    fn a_long_name_is_cut_to_the_protocols_limit() {
        assert_eq!(open("http://host/1", &["--name", &"é".repeat(200)]).source, "é".repeat(128));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in ["0", "-1", "NaN", "inf", "fast"] {
            assert!(parse(&["frames", "--rate", text]).is_err(), "{text}");
        }
        assert_eq!(parse(&["frames", "--rate", "29.97"]).expect("a rate").rate, Some(29.97));
        for (flag, text) in [
            ("--fps", "0"),
            ("--width", "0"),
            ("--stall", "0"),
            ("--ffmpeg-option", "rtsp_transport"),
            ("--ffmpeg-option", "-i=x"),
        ] {
            assert!(parse(&["frames", flag, text]).is_err(), "{flag} {text}");
        }
        let command = parse(&["frames", "--ffmpeg-option", "a=b=c"]).expect("an option");
        assert_eq!(command.video.options, [("a".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn what_only_one_source_can_have_is_refused_for_several() {
        let run = |arguments: &[&str]| parse(arguments).expect("arguments").run().expect_err("refused").to_string();
        assert_eq!(run(&["a", "--name", "x", "--name", "y"]), "--name is given 2 times for 1 sources");
        for (flag, file) in [("--html", "x.html"), ("--video", "x.mp4")] {
            assert_eq!(run(&["a", "b", flag, file]), format!("{flag} is for one source, and several are given"));
        }
    }
}
