//! The frames of a video, decoded by an installed ffmpeg and read from a pipe.
//!
//! ffmpeg writes portable pixmaps. Each has a header with its size, so the size of the video need not be known.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;

use super::file_name;
use crate::cli::failure::Failure;
use crate::client::{OutgoingFrame, Payload};

/// Largest frame that is read, in bytes: more than 16k × 16k pixels.
const MAX_FRAME_BYTES: u64 = 1 << 30;

/// Passes each frame of `input` to `take` until it returns `false`. Frames are named `CLIP#NUMBER`.
pub fn read(input: &str, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Result<(), Failure> {
    let mut decoder = Decoder::start("ffmpeg", input)?;
    let clip = file_name(Path::new(input));
    let mut count = 0;
    loop {
        let frame = match read_pixmap(&mut decoder.frames) {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Failure::failed(format!("cannot read ffmpeg's output for {input}: {error}")));
            }
            // The output ends inside a frame: `finish` reports ffmpeg's own error.
            Err(_) => break,
        };
        count += 1;
        if !take(OutgoingFrame { name: format!("{clip}#{count}"), payload: frame }) {
            return Ok(());
        }
    }
    decoder.finish(input, count)
}

/// A running ffmpeg; killed on drop.
struct Decoder {
    child: Child,
    frames: BufReader<std::process::ChildStdout>,
    errors: Option<std::thread::JoinHandle<String>>,
}

impl Decoder {
    fn start(program: &str, input: &str) -> Result<Self, Failure> {
        let mut child = Command::new(program)
            .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-i", input])
            .args(["-map", "0:v:0", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| not_started(input, &error))?;
        let (Some(frames), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::failed("ffmpeg was started without pipes"));
        };
        Ok(Decoder {
            child,
            frames: BufReader::with_capacity(1 << 20, frames),
            // A thread reads the errors: a full pipe would block ffmpeg.
            errors: Some(std::thread::spawn(move || last_line(errors))),
        })
    }

    fn finish(mut self, input: &str, count: u64) -> Result<(), Failure> {
        let status = self.child.wait().map_err(|error| Failure::failed(format!("cannot wait for ffmpeg: {error}")))?;
        let message = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let because =
            if message.is_empty() { format!("ffmpeg ended with {status}") } else { format!("ffmpeg says: {message}") };
        match (status.success(), count) {
            (true, 1..) => Ok(()),
            (true, 0) => Err(Failure::failed(format!("{input} has no frames of video"))),
            (false, 0) => Err(Failure::failed(format!("cannot read {input} as a video; {because}"))),
            (false, _) => Err(Failure::failed(format!("{input} breaks off after {count} frames; {because}"))),
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // Both fail without harm if ffmpeg has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_started(input: &str, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        Failure::failed(format!("reading {input} as a video needs ffmpeg, which is not installed")).hint(
            "install it (Debian, Ubuntu: apt install ffmpeg), or give a folder of pictures or an animated WebP instead",
        )
    } else {
        Failure::failed(format!("cannot start ffmpeg: {error}"))
    }
}

/// The last line that is not blank, cut to 400 characters. Reads to the end.
fn last_line(stream: impl Read) -> String {
    let mut last = String::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if !line.trim().is_empty() {
            last = line.trim().chars().take(400).collect();
        }
    }
    last
}

/// Reads one binary pixmap (`P6`); `None` at the end of the pipe.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the header is invalid; [`io::ErrorKind::UnexpectedEof`] if the pixmap is cut off.
fn read_pixmap(stream: &mut impl BufRead) -> io::Result<Option<Payload>> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if word(stream)? != "P6" {
        return Err(damaged("not a portable pixmap"));
    }
    let mut number = || word(stream)?.parse::<u32>().map_err(|_| damaged("a size that is not a number"));
    let (width, height, maximum) = (number()?, number()?, number()?);
    let length = u64::from(width) * u64::from(height) * 3;
    if maximum != 255 || length == 0 || length > MAX_FRAME_BYTES {
        return Err(damaged(&format!("a frame of {width}×{height} pixels with the maximum {maximum}")));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok(Some(Payload::Rgb { width, height, data: Bytes::from(data) }))
}

/// Reads one word of the header and the single blank after it.
fn word(stream: &mut impl BufRead) -> io::Result<String> {
    let mut word = String::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        if byte[0].is_ascii_whitespace() {
            return Ok(word);
        }
        if word.len() == 20 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header that does not end"));
        }
        word.push(char::from(byte[0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixmaps_of_different_sizes_are_read_in_turn() {
        let mut stream = &b"P6\n2 1\n255\nabcdefP6\n1 1\n255\nxyz"[..];
        let rgb = |width, height, data: &'static [u8]| Payload::Rgb { width, height, data: Bytes::from_static(data) };
        assert_eq!(read_pixmap(&mut stream).expect("a pixmap"), Some(rgb(2, 1, b"abcdef")));
        assert_eq!(read_pixmap(&mut stream).expect("a pixmap"), Some(rgb(1, 1, b"xyz")));
        assert_eq!(read_pixmap(&mut stream).expect("the end"), None);
    }

    #[test]
    fn an_invalid_pixmap_is_an_error_and_allocates_nothing() {
        for bytes in [
            &b"GIF89a..."[..],
            b"P6\n99999 99999\n255\n",
            b"P6\n0 1\n255\n",
            b"P6\n1 1\n65535\nabcdef",
            b"P6\n-1 1\n255\n",
        ] {
            let mut stream = bytes;
            let error = read_pixmap(&mut stream).expect_err("no pixmap");
            assert!(matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof), "{error}");
        }
    }

    #[test]
    fn a_missing_ffmpeg_is_named() {
        let failure = Decoder::start("camlens-test-no-such-program", "clip.mp4").err().expect("no such program");
        assert!(failure.to_string().contains("needs ffmpeg, which is not installed"), "{failure}");
    }

    #[test]
    fn ffmpegs_last_error_is_reported() {
        assert_eq!(last_line(&b"[mov] moov atom not found\nclip.mp4: Invalid data\n\n"[..]), "clip.mp4: Invalid data");
    }
}
