//! Frames of a video or a camera, decoded by an installed ffmpeg: its command line, its process, its two pipes.
//!
//! ffmpeg writes portable pixmaps to one pipe. Each has a header with its size, so the size of the video need not be
//! known. On the other pipe it reports the time of each frame before it writes the frame, and the errors that it met.

mod log;
mod pixmap;

use std::io::{self, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::input::Input;
use crate::cli::failure::Failure;
use crate::client::Payload;
use log::Log;

/// How long ffmpeg may take to exit after it has closed its output.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// A decoded frame.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    pub payload: Payload,
    /// Presentation time, in seconds from a start that the input chooses; `None` if ffmpeg does not tell it.
    pub time_s: Option<f64>,
}

/// How ffmpeg's output ended.
#[derive(Debug)]
pub struct Ending {
    pub status: ExitStatus,
    /// ffmpeg's last error, without the input's credentials; empty if it reported none.
    pub message: String,
    /// The output is not a row of portable pixmaps: why.
    pub garbage: Option<String>,
}

/// A running ffmpeg; killed on drop.
#[derive(Debug)]
pub struct Decoder {
    process: Arc<Process>,
    frames: BufReader<ChildStdout>,
    log: Log,
}

/// The part of a decoder that another thread may use while a frame is read.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    began: Instant,
    /// Since when a frame is awaited, in milliseconds from `began`; [`NOT_READING`] while none is.
    waits_since_ms: AtomicU64,
    has_frames: AtomicBool,
}

const NOT_READING: u64 = u64::MAX;

impl Process {
    /// Ends ffmpeg: the reader then meets the end of its output.
    pub fn kill(&self) {
        // Fails without harm if ffmpeg has ended.
        let _ = self.child.lock().kill();
    }

    /// Whether a frame has come.
    pub fn has_frames(&self) -> bool {
        self.has_frames.load(Ordering::Relaxed)
    }

    /// For how long a frame has been awaited; 0 while none is.
    pub fn silence(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.waits_since_ms.load(Ordering::Relaxed)))
    }

    fn waits(&self, does: bool) {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NOT_READING);
        self.waits_since_ms.store(if does { now_ms } else { NOT_READING }, Ordering::Relaxed);
    }
}

impl Decoder {
    /// Starts ffmpeg.
    ///
    /// # Errors
    /// ffmpeg is not installed, or cannot be started.
    pub fn start(input: &Input) -> Result<Self, Failure> {
        Self::start_program("ffmpeg", input, "-fps_mode")
    }

    /// As [`Decoder::start`], for an ffmpeg before 5.1.
    pub fn start_old(input: &Input) -> Result<Self, Failure> {
        Self::start_program("ffmpeg", input, "-vsync")
    }

    fn start_program(program: &str, input: &Input, timing: &str) -> Result<Self, Failure> {
        let mut child = Command::new(program)
            .args(arguments(input, timing))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for camlens, which lets the frames in flight end.
            .process_group(0)
            .spawn()
            .map_err(|error| not_started(&format!("reading {} as a video", input.name), &error))?;
        let (Some(frames), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::failed("ffmpeg was started without pipes"));
        };
        let process = Process {
            child: Mutex::new(child),
            began: Instant::now(),
            waits_since_ms: AtomicU64::new(NOT_READING),
            has_frames: AtomicBool::new(false),
        };
        Ok(Decoder {
            process: Arc::new(process),
            frames: BufReader::with_capacity(1 << 20, frames),
            log: Log::read(errors, input),
        })
    }

    pub fn process(&self) -> Arc<Process> {
        self.process.clone()
    }

    /// Errors that ffmpeg has reported so far.
    pub fn errors(&self) -> u64 {
        self.log.errors()
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// There is no further frame: how the output ended.
    pub fn next(&mut self) -> Result<Decoded, Ending> {
        self.process.waits(true);
        let read = pixmap::read(&mut self.frames);
        self.process.waits(false);
        match read {
            Ok(Some(payload)) => {
                self.process.has_frames.store(true, Ordering::Relaxed);
                Ok(Decoded { payload, time_s: self.log.next_time_s() })
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.process.kill();
                Err(self.ending(Some(error.to_string())))
            }
            // The end, or the output ends inside a frame: ffmpeg's own error says more.
            Ok(None) | Err(_) => Err(self.ending(None)),
        }
    }

    fn ending(&mut self, garbage: Option<String>) -> Ending {
        let until = Instant::now() + EXIT_PATIENCE;
        let status = loop {
            let mut child = self.process.child.lock();
            match child.try_wait() {
                Ok(Some(status)) => break status,
                _ if Instant::now() < until => drop(child),
                _ => {
                    let _ = child.kill();
                    break child.wait().unwrap_or_default();
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ending { status, message: self.log.finish(), garbage }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.process.kill();
        let _ = self.process.child.lock().wait();
    }
}

impl Ending {
    /// Whether the program does not know an option that this ffmpeg has had since 5.1.
    pub fn is_of_an_old_ffmpeg(&self) -> bool {
        !self.status.success() && self.message.contains("fps_mode")
    }

    /// Why the output ended, as a clause.
    pub fn because(&self) -> String {
        match &self.garbage {
            Some(garbage) => format!("ffmpeg's output is {garbage}"),
            None if self.message.is_empty() => format!("ffmpeg ended with {}", self.status),
            None => format!("ffmpeg says: {}", self.message),
        }
    }
}

/// ffmpeg's command line. `timing` is the option that lets frames pass with their own times, none doubled or dropped.
fn arguments(input: &Input, timing: &str) -> Vec<String> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut arguments = words("-nostdin -hide_banner -nostats -loglevel level+info");
    if input.is_live {
        // Without these, ffmpeg holds a frame for each of its decoder's threads.
        arguments.extend(words("-fflags nobuffer -flags low_delay"));
    }
    if input.is_rtsp() {
        // Over UDP, which is the default, a lost packet is a damaged picture.
        arguments.extend(words("-rtsp_flags prefer_tcp"));
    }
    for (name, value) in &input.settings.options {
        arguments.extend([format!("-{name}"), value.clone()]);
    }
    arguments.extend(["-i".to_owned(), input.address.clone()]);
    arguments.extend(words("-map 0:v:0 -vf"));
    arguments.push(filters(input));
    arguments.extend(words(timing));
    arguments.extend(words("passthrough -f image2pipe -c:v ppm -pix_fmt rgb24 -"));
    arguments
}

fn filters(input: &Input) -> String {
    let mut filters = Vec::new();
    if let Some(rate) = input.settings.fps {
        // The first frame of each interval of 1/rate seconds: the mean rate is exact, and no frame is held back.
        filters.push(format!("select='isnan(prev_selected_t)+gt(floor(t*{rate}),floor(prev_selected_t*{rate}))'"));
    }
    if let Some(width) = input.settings.width {
        filters.push(format!("scale='min({width},iw)':-1"));
    }
    filters.push("showinfo=checksum=0".to_owned());
    filters.join(",")
}

/// The failure of an ffmpeg that did not start. `purpose` names what needs it.
pub fn not_started(purpose: &str, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        Failure::failed(format!("{purpose} needs ffmpeg, which is not installed"))
            .hint("install it (Debian, Ubuntu: apt install ffmpeg); folders of pictures and animated WebP do without")
    } else {
        Failure::failed(format!("cannot start ffmpeg: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::VideoSettings;
    use super::*;

    #[test]
    fn a_missing_ffmpeg_is_named() {
        let input = Input::new("clip.mp4", VideoSettings::default());
        let failure = Decoder::start_program("camlens-test-no-such-program", &input, "-vsync").expect_err("no program");
        assert!(failure.to_string().contains("needs ffmpeg, which is not installed"), "{failure}");
    }

    #[test]
    fn rate_and_width_are_filters_and_options_come_before_the_input() {
        let options = vec![("rtsp_transport".to_owned(), "udp".to_owned())];
        let settings = VideoSettings { fps: Some(2.5), width: Some(640), options, live: None };
        let line = arguments(&Input::new("rtsp://camera/1", settings), "-fps_mode").join(" ");
        assert!(line.contains("-rtsp_transport udp -i rtsp://camera/1 -map"), "{line}");
        assert!(line.contains("floor(t*2.5)") && line.contains("scale='min(640,iw)':-1,showinfo"), "{line}");
        assert!(line.contains("low_delay") && line.contains("-fps_mode passthrough"), "{line}");
        let file = arguments(&Input::new("clip.mp4", VideoSettings::default()), "-vsync").join(" ");
        assert!(!file.contains("low_delay") && !file.contains("rtsp"), "{file}");
    }
}
