//! `--video`: an MP4 of frame and explanation side by side, at a constant rate, as long as the frames took.
//!
//! [`timeline`] places frames at times, [`canvas`] puts two pictures side by side, [`encoder`] is an ffmpeg. A thread
//! does the work: a camera's answers do not wait for it.

mod canvas;
mod encoder;
mod timeline;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use self::canvas::Canvas;
use self::encoder::{Caption, Encoder};
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
    /// Pictures per second.
    pub fps: f64,
    /// Whether answers come from a camera, and must not wait for the encoder.
    pub is_live: bool,
}

/// Makes the video.
pub struct VideoSink {
    plan: VideoPlan,
    timeline: Timeline,
    pairs: Option<SyncSender<Pair>>,
    thread: Option<JoinHandle<Result<u64, Failure>>>,
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
        let (path, fps) = (plan.path.clone(), plan.fps);
        let thread = std::thread::spawn(move || write(&path, fps, &waiting));
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

    /// Waits for the thread. Returns the number of pictures in the video.
    fn join(&mut self) -> Result<u64, Failure> {
        self.pairs = None;
        let Some(thread) = self.thread.take() else { return Ok(0) };
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
        let pictures = self.join()?;
        if pictures == 0 {
            return Ok(None);
        }
        let seconds = pictures as f64 / self.plan.fps;
        let path = self.plan.path.display();
        let left_out = match self.left_out {
            0 => String::new(),
            count => format!("; {count} answers are not in it: the encoder was too slow"),
        };
        Ok(Some(format!("the video is {path}: {seconds:.1} s at {} pictures/s{left_out}", self.plan.fps)))
    }
}

/// The thread's work: writes each pair from its time on, until the next one's. Returns the number of pictures.
fn write(path: &Path, fps: f64, pairs: &mpsc::Receiver<Pair>) -> Result<u64, Failure> {
    let mut shown: Option<(Canvas, Encoder)> = None;
    let mut written = 0;
    for pair in pairs {
        let frame = canvas::pixels(&pair.frame)?;
        let picture = canvas::decode(&pair.picture, "the server's picture")?;
        // The nearest picture: a source of the video's rate has one frame for each, however its times are rounded.
        let number = (pair.at.as_secs_f64() * fps).round() as u64;
        let caption = Caption { text: pair.caption, at: Duration::from_secs_f64(number as f64 / fps) };
        let (canvas, encoder) = match &mut shown {
            Some(shown) => shown,
            None => {
                let canvas = Canvas::for_frames_like(&frame);
                let encoder = Encoder::start(path, canvas.width(), canvas.height(), fps)?;
                shown.insert((canvas, encoder))
            }
        };
        // The pair before is shown until this one's time.
        while written < number {
            encoder.write(canvas.bytes())?;
            written += 1;
        }
        canvas.draw(&frame, &picture);
        encoder.caption(caption);
    }
    let Some((canvas, mut encoder)) = shown else { return Ok(0) };
    encoder.write(canvas.bytes())?;
    written += 1;
    encoder.finish(Duration::from_secs_f64(written as f64 / fps))?;
    Ok(written)
}
