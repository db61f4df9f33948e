//! The frames of a live camera: ffmpeg is started again when the camera ends, stalls or sends garbage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::capture_clock::CaptureClock;
use super::ffmpeg::{Decoder, Ending, Process};
use super::input::Input;
use crate::cli::failure::Failure;
use crate::client::{Backoff, Capture, FrameQueue, OutgoingFrame};

/// How long a camera may take from the start to its first frame: to connect, and for ffmpeg to find out what it sends.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often the watchdog looks.
const WATCH_PERIOD: Duration = Duration::from_millis(200);

/// How a camera is read again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub backoff: Backoff,
    /// How long to try without a frame.
    pub give_up_after: Duration,
    /// How long a connected camera may be without a frame.
    pub stall_after: Duration,
}

/// What became of a camera's connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CameraAccount {
    /// Times that the camera was lost and came back.
    pub reconnections: u64,
    /// Errors that the decoder reported and went on.
    pub decode_errors: u64,
    /// Why the camera was lost, the last time.
    pub last_loss: Option<String>,
}

/// A camera's loss or return, which is printed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CameraNotice {
    /// The camera is tried again after `wait`.
    Lost {
        why: String,
        wait: Duration,
    },
    Back {
        away: Duration,
    },
}

/// Reads the camera into `frames` until the queue is closed or `limit` frames are read. Blocks: call it on a thread of
/// its own.
///
/// # Errors
/// There is no ffmpeg, or no frame for [`Retry::give_up_after`].
pub fn read(
    input: &Input,
    retry: Retry,
    limit: Option<u64>,
    frames: &Arc<FrameQueue>,
    notice: &dyn Fn(CameraNotice),
) -> (CameraAccount, Result<(), Failure>) {
    // With --fps, most frames do not arrive here.
    let interval = input.settings.fps.map_or(Duration::ZERO, |fps| Duration::from_secs_f64(1.0 / fps));
    let mut reader = Reader {
        input,
        frames,
        notice,
        stall_after: retry.stall_after.max(interval * 3),
        left: limit.unwrap_or(u64::MAX),
        count: 0,
        away_since: None,
        account: CameraAccount::default(),
        is_old_ffmpeg: false,
    };
    let result = reader.run(retry);
    (reader.account, result)
}

struct Reader<'a> {
    input: &'a Input,
    frames: &'a Arc<FrameQueue>,
    notice: &'a dyn Fn(CameraNotice),
    stall_after: Duration,
    left: u64,
    count: u64,
    /// When the camera was lost; `None` while it sends frames, and before the first loss.
    away_since: Option<Instant>,
    account: CameraAccount,
    is_old_ffmpeg: bool,
}

impl Reader<'_> {
    fn run(&mut self, retry: Retry) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            if self.left == 0 {
                return Ok(());
            }
            let before = self.count;
            let Some(why) = self.connection()? else { return Ok(()) };
            failures = if self.count > before { 1 } else { failures + 1 };
            let away_since = *self.away_since.get_or_insert_with(Instant::now);
            let wait = retry.backoff.wait(failures);
            self.account.last_loss = Some(why.clone());
            if away_since.elapsed() + wait > retry.give_up_after {
                let name = &self.input.name;
                let state = if self.count > 0 { "is lost" } else { "cannot be read" };
                return Err(Failure::failed(format!("the camera {name} {state}; {why}")));
            }
            (self.notice)(CameraNotice::Lost { why, wait });
            if self.frames.wait_closed(wait) {
                return Ok(());
            }
        }
    }

    /// Reads one connection to its end. Returns why it ended, or `None` if no more frames are wanted.
    fn connection(&mut self) -> Result<Option<String>, Failure> {
        let mut decoder = match self.is_old_ffmpeg {
            false => Decoder::start(self.input)?,
            true => Decoder::start_old(self.input)?,
        };
        let watchdog = Watchdog::start(decoder.process(), self.frames.clone(), self.stall_after);
        let mut clock = CaptureClock::new(Instant::now());
        let clip = self.input.clip();
        let ending = loop {
            let frame = match decoder.next() {
                Ok(frame) => frame,
                Err(ending) => break ending,
            };
            let captured = Capture::ago(clock.age(frame.time_s, Instant::now()));
            self.count += 1;
            self.is_back();
            let name = format!("{clip}#{}", self.count);
            self.left -= 1;
            let frame = OutgoingFrame { name, payload: frame.payload, captured, position: None };
            let is_wanted = self.frames.push(frame);
            if !is_wanted || self.left == 0 {
                self.account.decode_errors += decoder.errors();
                return Ok(None);
            }
        };
        let has_stalled = watchdog.has_stalled();
        if ending.is_of_an_old_ffmpeg() && !self.is_old_ffmpeg {
            self.is_old_ffmpeg = true;
            return self.connection();
        }
        self.account.decode_errors += decoder.errors();
        Ok(Some(self.because(has_stalled, decoder.process().has_frames(), &ending))
            .filter(|_| !self.frames.wait_closed(Duration::ZERO)))
    }

    fn is_back(&mut self) {
        if let Some(since) = self.away_since.take() {
            self.account.reconnections += 1;
            (self.notice)(CameraNotice::Back { away: since.elapsed() });
        }
    }

    fn because(&self, has_stalled: bool, has_frames: bool, ending: &Ending) -> String {
        match has_stalled {
            true if has_frames => format!("no frame for {:.0} s", self.stall_after.as_secs_f64()),
            true => format!("no first frame within {:.0} s", self.stall_after.max(START_PATIENCE).as_secs_f64()),
            false => ending.because(),
        }
    }
}

/// Ends ffmpeg when it is silent for too long, and when no more frames are wanted.
struct Watchdog {
    is_over: Arc<AtomicBool>,
    has_stalled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(process: Arc<Process>, frames: Arc<FrameQueue>, stall_after: Duration) -> Self {
        let (is_over, has_stalled) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (over, stalled) = (is_over.clone(), has_stalled.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if frames.wait_closed(WATCH_PERIOD) {
                    return process.kill();
                }
                let patience = if process.has_frames() { stall_after } else { stall_after.max(START_PATIENCE) };
                if process.silence() > patience {
                    stalled.store(true, Ordering::Relaxed);
                    return process.kill();
                }
            }
        });
        Watchdog { is_over, has_stalled, thread: Some(thread) }
    }

    fn has_stalled(&self) -> bool {
        self.has_stalled.load(Ordering::Relaxed)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
