//! `--video`: an MP4 of frame and explanation side by side, as long as the frames took. A recording's has a constant
//! rate. A camera's has a picture for each answer, at the time of its frame: an encoder has no time for repeats there.
//!
//! [`timeline`] places frames at times, [`canvas`] puts two pictures side by side, [`encoder`] is an ffmpeg. A thread
//! does the work: a camera's answers do not wait for it.

mod canvas;
mod encoder;
mod timeline;

use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use self::canvas::Canvas;
use self::encoder::{Caption, Encoder, Spacing};
pub use self::timeline::Timeline;
use super::sink::{End, Sink};
use crate::cli::answer::class_name;
use crate::cli::failure::Failure;
use crate::client::{Answered, Event, Payload};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;

/// Pairs that wait for the thread.
const MAX_WAITING: usize = 4;

/// How the video is made.
#[derive(Debug, Clone)]
pub struct VideoPlan {
    pub path: PathBuf,
    /// Pictures per second; of a camera the most of them.
    pub fps: f64,
    /// Whether answers come from a camera, and must not wait for the encoder.
    pub is_live: bool,
}

/// Makes the video.
pub struct VideoSink {
    plan: VideoPlan,
    timeline: Timeline,
    pairs: Option<SyncSender<Pair>>,
    thread: Option<JoinHandle<Result<Option<Duration>, Failure>>>,
    /// Pairs that the encoder was too slow for.
    left_out: u64,
}

/// A frame and its explanation, not yet decoded.
struct Pair {
    at: Duration,
    frame: Payload,
    picture: Bytes,
    caption: String,
}

impl VideoSink {
    /// # Errors
    /// ffmpeg is not installed, or the file cannot be written.
    pub fn start(plan: VideoPlan, timeline: Timeline) -> Result<Self, Failure> {
        Encoder::check(&plan.path)?;
        let (pairs, waiting) = mpsc::sync_channel(MAX_WAITING);
        let thread = std::thread::spawn({
            let plan = plan.clone();
            move || write(&plan, &waiting)
        });
        Ok(VideoSink { plan, timeline, pairs: Some(pairs), thread: Some(thread), left_out: 0 })
    }

    fn pair(&mut self, answer: &v1::Explanation, answered: &Answered) -> Result<(), Failure> {
        let picture = answer.targets.first().and_then(|target| target.pictures.first());
        let Some(picture) = picture else { return Ok(()) };
        let caption = answer.predictions.first().map_or_else(String::new, |top| {
            format!("{} {:.0} %", class_name(&top.label, top.class_index), top.probability * 100.0)
        });
        let at = self.timeline.place(answered, self.plan.is_live);
        let pair = Pair { at, frame: answered.frame.payload.clone(), picture: picture.data.clone(), caption };
        let Some(pairs) = &self.pairs else { return Ok(()) };
        let sent = match self.plan.is_live {
            true => pairs.try_send(pair),
            false => pairs.send(pair).map_err(|error| TrySendError::Disconnected(error.0)),
        };
        match sent {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                self.left_out += 1;
                Ok(())
            }
            // The thread has ended by itself: with an error.
            Err(TrySendError::Disconnected(_)) => self.join().map(|_| ()),
        }
    }

    /// Waits for the thread. Returns the video's length, unless there is none.
    fn join(&mut self) -> Result<Option<Duration>, Failure> {
        self.pairs = None;
        let Some(thread) = self.thread.take() else { return Ok(None) };
        thread.join().unwrap_or_else(|_| Err(Failure::failed("the thread that writes the video panicked")))
    }
}

impl Sink for VideoSink {
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        match event {
            Event::Message(Response::Explanation(answer), Some(answered)) => self.pair(answer, answered),
            _ => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>, _: &End<'_>) -> Result<Option<String>, Failure> {
        let Some(length) = self.join()? else { return Ok(None) };
        let (seconds, path) = (length.as_secs_f64(), self.plan.path.display());
        let rate = match self.plan.is_live {
            true => String::new(),
            false => format!(" at {} pictures/s", self.plan.fps),
        };
        let left_out = match self.left_out {
            0 => String::new(),
            count => format!("; {count} answers are not in it: the encoder was too slow"),
        };
        Ok(Some(format!("the video is {path}: {seconds:.1} s{rate}{left_out}")))
    }
}

/// The thread's work: writes each pair from its time on. Returns the video's length.
fn write(plan: &VideoPlan, pairs: &mpsc::Receiver<Pair>) -> Result<Option<Duration>, Failure> {
    let fps = plan.fps;
    let spacing = if plan.is_live { Spacing::AsWritten } else { Spacing::Constant };
    let time = |tick: u64| Duration::from_secs_f64(tick as f64 / fps);
    // The pair that was drawn last, and its tick. It is written when the next one has a later tick.
    let mut drawn: Option<(Canvas, Encoder, u64)> = None;
    for pair in pairs {
        let frame = canvas::pixels(&pair.frame)?;
        let picture = canvas::decode(&pair.picture, "the server's picture")?;
        // The nearest tick: a source of the video's rate has one frame for each, however its times are rounded.
        let nearest = (pair.at.as_secs_f64() * fps).round() as u64;
        let (canvas, encoder, tick) = match &mut drawn {
            Some(drawn) => drawn,
            None => {
                let canvas = Canvas::for_frames_like(&frame);
                let encoder = Encoder::start(&plan.path, canvas.width(), canvas.height(), fps, spacing)?;
                drawn.insert((canvas, encoder, nearest))
            }
        };
        if nearest > *tick {
            encoder.write(*tick, canvas.bytes())?;
        }
        *tick = nearest;
        canvas.draw(&frame, &picture);
        encoder.caption(Caption { text: pair.caption, at: time(nearest) });
    }
    let Some((canvas, mut encoder, tick)) = drawn else { return Ok(None) };
    encoder.write(tick, canvas.bytes())?;
    let length = time(tick + 1);
    encoder.finish(length)?;
    Ok(Some(length))
}
