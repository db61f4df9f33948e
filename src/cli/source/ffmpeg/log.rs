//! ffmpeg's log: the times of its frames, and its errors.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::cli::source::input::Input;

/// Longest line that is read at once, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 16;
/// Longest error that is kept, in characters.
const MAX_ERROR_CHARACTERS: usize = 400;
/// Most times that are kept for frames that have not been read.
const MAX_TIMES: usize = 1024;
/// How long a frame's time may come after the frame. ffmpeg writes it before: only the thread that reads it is late.
const TIME_PATIENCE: Duration = Duration::from_millis(500);

/// The log of a running ffmpeg, read by a thread: a full pipe would block ffmpeg.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// ffmpeg does not tell the times of its frames.
    is_timeless: bool,
}

#[derive(Debug, Default)]
struct Shared {
    errors: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    times_s: VecDeque<Option<f64>>,
    last_error: String,
    is_over: bool,
}

impl Log {
    pub fn read(stream: impl Read + Send + 'static, input: &Input) -> Self {
        let shared = Arc::<Shared>::default();
        let (writer, input) = (shared.clone(), input.clone());
        let thread = std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                writer.line(&String::from_utf8_lossy(&line), &input);
                line.clear();
            }
            writer.state.lock().is_over = true;
            writer.changed.notify_all();
        });
        Log { shared, thread: Some(thread), is_timeless: false }
    }

    /// Number of errors that were reported.
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// The time of the next frame, in seconds. `None` if ffmpeg does not tell it.
    pub fn next_time_s(&mut self) -> Option<f64> {
        let until = Instant::now() + if self.is_timeless { Duration::ZERO } else { TIME_PATIENCE };
        let mut state = self.shared.state.lock();
        while state.times_s.is_empty() && !state.is_over {
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                self.is_timeless = true;
                return None;
            }
        }
        state.times_s.pop_front().flatten()
    }

    /// Waits for the log's end and returns the last error.
    pub fn finish(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            // A child of ffmpeg could keep the pipe open.
            let until = Instant::now() + Duration::from_secs(1);
            let mut state = self.shared.state.lock();
            while !state.is_over && !self.shared.changed.wait_until(&mut state, until).timed_out() {}
            if state.is_over {
                drop(state);
                let _ = thread.join();
            }
        }
        self.shared.state.lock().last_error.clone()
    }
}

impl Shared {
    fn line(&self, line: &str, input: &Input) {
        let line = line.trim();
        if let Some(time_s) = time_of_a_frame(line) {
            let mut state = self.state.lock();
            state.times_s.push_back(time_s);
            if state.times_s.len() > MAX_TIMES {
                state.times_s.pop_front();
            }
            self.changed.notify_all();
        } else if let Some(error) = error(line) {
            self.errors.fetch_add(1, Ordering::Relaxed);
            let error = input.without_credentials(&error);
            self.state.lock().last_error = error.chars().take(MAX_ERROR_CHARACTERS).collect();
        }
    }
}

/// The presentation time in a line of the filter `showinfo`, in seconds: `… n:  12 pts:  6144 pts_time:0.4 …`. The
/// inner `None`: the frame has no time.
fn time_of_a_frame(line: &str) -> Option<Option<f64>> {
    let (_, rest) = line.split_once("Parsed_showinfo")?;
    let (head, rest) = rest.split_once(" pts_time:")?;
    head.contains(" n:").then(|| rest.split_whitespace().next()?.parse().ok())
}

/// The text of an error: `[h264 @ 0x…] [error] text`. A line without a level is the program's own, as when it refuses
/// an option.
fn error(line: &str) -> Option<String> {
    const ERRORS: [&str; 3] = ["[error] ", "[fatal] ", "[panic] "];
    const OTHERS: [&str; 5] = ["[warning] ", "[info] ", "[verbose] ", "[debug] ", "[trace] "];
    if let Some((_, text)) = ERRORS.iter().find_map(|level| line.split_once(level)) {
        return Some(text.to_owned()).filter(|text| !text.is_empty());
    }
    let is_error =
        !line.is_empty() && !line.starts_with("[Parsed_") && !OTHERS.iter().any(|level| line.contains(level));
    is_error.then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::super::input::VideoSettings;
    use super::*;

    const SHOWINFO: &str = "[Parsed_showinfo_0 @ 0x55d0] [info] n:   1 pts:    512 pts_time:0.04    pos: 5 fmt:yuv420p";

    fn log(text: &'static str) -> Log {
        Log::read(text.as_bytes(), &Input::new("rtsp://me:secret@camera:554/1?key=5", VideoSettings::default()))
    }

    #[test]
    fn showinfo_tells_the_time_of_each_frame() {
        assert_eq!(time_of_a_frame(SHOWINFO), Some(Some(0.04)));
        assert_eq!(time_of_a_frame(&SHOWINFO.replace("0.04", "NOPTS")), Some(None));
        assert_eq!(time_of_a_frame("[Parsed_showinfo_0 @ 0x55d0] [info] config in time_base: 1/12800"), None);
        assert_eq!(time_of_a_frame("[h264 @ 0x1] [error] pts_time:0.04"), None);
    }

    #[test]
    fn errors_are_counted_and_the_last_one_is_kept() {
        let mut log = log("Input #0, rtsp\n\
            [info]   Stream #0:0: Video: h264\n\
            [h264 @ 0x1] [error] error while decoding MB 21 15\n\
            [rtsp @ 0x2] [warning] RTP: missed 5 packets\n\
            [rtsp @ 0x2] [error] rtsp://me:secret@camera:554/1?key=5: Connection reset by peer\n\
            \n");
        assert_eq!(log.finish(), "rtsp://camera:554/1: Connection reset by peer");
        assert_eq!(log.errors(), 3);
    }

    #[test]
    fn a_log_without_times_does_not_hold_the_frames_up() {
        let mut log = log("");
        assert_eq!((log.next_time_s(), log.finish()), (None, String::new()));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let endless = Box::leak("x".repeat(1 << 20).into_boxed_str());
        assert_eq!(log(endless).finish().len(), MAX_ERROR_CHARACTERS);
    }
}
