//! An ffmpeg that makes an MP4 of raw pictures, with captions.
//!
//! ffmpeg gets each picture once, with its time, in an IVF file (<https://wiki.multimedia.cx/index.php/Duck_IVF>): raw
//! video has no times, and repeats in their stead would keep a camera's encoder behind.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::cli::failure::Failure;
use crate::cli::source::not_started;

/// A text that is shown from a time on, until the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    pub at: Duration,
    pub text: String,
}

/// When the video has pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// At a constant rate: what is shown for longer is repeated.
    Constant,
    /// When they were written, and only then.
    AsWritten,
}

/// The pictures' format in the IVF file: RGB, 24 bits.
const RAW_RGB: &[u8; 4] = b"RGB\x18";

/// Ticks of the IVF file's clock are 1/fps seconds; the rate is given in thousandths.
const THOUSANDTHS: u32 = 1000;

/// A running ffmpeg. It writes pictures to a file beside the video that stays playable if nothing ends it; `finish`
/// makes the video of it.
#[derive(Debug)]
pub struct Encoder {
    path: PathBuf,
    part: PathBuf,
    child: Child,
    pictures: Option<ChildStdin>,
    captions: Vec<Caption>,
}

impl Encoder {
    /// Checks that there is an ffmpeg and that `path` can be written.
    pub fn check(path: &Path) -> Result<(), Failure> {
        let asked = Command::new("ffmpeg").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.map_err(|error| not_started("--video", &error))?;
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("mp4")) {
            return Err(Failure::usage(format!("--video writes an MP4, and {} does not end in .mp4", path.display())));
        }
        let part = part(path);
        std::fs::File::create(&part).map_err(|error| Failure::from_io("write", &part, &error))?;
        std::fs::remove_file(&part).map_err(|error| Failure::from_io("remove", &part, &error))
    }

    /// Starts ffmpeg for pictures of `width` × `height` pixels, whose times are multiples of 1/`fps` seconds.
    pub fn start(path: &Path, width: u32, height: u32, fps: f64, spacing: Spacing) -> Result<Self, Failure> {
        let part = part(path);
        // Players take pictures of this size for BT.709: the tags and the conversion say so.
        let converted = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p";
        let (filters, mode) = match spacing {
            Spacing::Constant => (format!("{converted},fps={fps}"), "cfr"),
            Spacing::AsWritten => (converted.to_owned(), "vfr"),
        };
        let mut child = Command::new("ffmpeg")
            .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y"])
            .args(["-f", "ivf", "-c:v", "rawvideo", "-i", "-"])
            // Its successor `-fps_mode` is not known before ffmpeg 5.1.
            .args(["-vf", &filters, "-vsync", mode])
            .args(["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"])
            .args(["-c:v", "libx264", "-preset", "veryfast", "-crf", "21"])
            // A part that nothing ended lacks at most what follows the last of these.
            .args(["-force_key_frames", "expr:gte(t,n_forced*4)"])
            .args(["-movflags", "+frag_keyframe+empty_moov", "-f", "mp4"])
            .arg(&part)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| not_started("--video", &error))?;
        let pictures = child.stdin.take();
        let mut encoder = Encoder { path: path.to_owned(), part, child, pictures, captions: Vec::new() };
        encoder.send(&[&ivf_header(width, height, fps)])?;
        Ok(encoder)
    }

    /// Appends a picture that is shown from `tick` on: RGB, in rows without padding. Ticks increase.
    pub fn write(&mut self, tick: u64, rgb: &[u8]) -> Result<(), Failure> {
        let length = u32::try_from(rgb.len()).unwrap_or(u32::MAX);
        self.send(&[&length.to_le_bytes(), &tick.to_le_bytes(), rgb])
    }

    fn send(&mut self, parts: &[&[u8]]) -> Result<(), Failure> {
        let Some(pictures) = &mut self.pictures else { return Ok(()) };
        let written = parts.iter().try_for_each(|part| pictures.write_all(part));
        written.map_err(|error| match self.wait() {
            Err(failure) => failure,
            Ok(()) => Failure::from_io("write", &self.part, &error),
        })
    }

    /// Shows a text from its time on. Captions come in the order of their times.
    pub fn caption(&mut self, caption: Caption) {
        match self.captions.last_mut() {
            Some(last) if last.at == caption.at => *last = caption,
            Some(last) if last.text == caption.text => {}
            _ => self.captions.push(caption),
        }
    }

    /// Ends the video, which is `length` long: adds the captions and moves its index to the front.
    pub fn finish(mut self, length: Duration) -> Result<(), Failure> {
        self.wait()?;
        let subtitles = self.path.with_extension("srt.part");
        let written = std::fs::write(&subtitles, srt(&self.captions, length));
        written.map_err(|error| Failure::from_io("write", &subtitles, &error))?;
        let muxed = Command::new("ffmpeg")
            .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-i"])
            .arg(&self.part)
            .args(["-f", "srt", "-i"])
            .arg(&subtitles)
            .args(["-map", "0:v", "-map", "1:s", "-c:v", "copy", "-c:s", "mov_text", "-disposition:s:0", "default"])
            .args(["-movflags", "+faststart", "-f", "mp4"])
            .arg(&self.path)
            .process_group(0)
            .output()
            .map_err(|error| not_started("--video", &error))?;
        // The parts stay when the video could not be made of them.
        said(muxed.status, &muxed.stderr)?;
        for part in [&self.part, &subtitles] {
            std::fs::remove_file(part).map_err(|error| Failure::from_io("remove", part, &error))?;
        }
        Ok(())
    }

    /// Closes ffmpeg's input and waits for its exit.
    fn wait(&mut self) -> Result<(), Failure> {
        self.pictures = None;
        let mut message = Vec::new();
        if let Some(stderr) = &mut self.child.stderr {
            // Its errors are few: only what is wrong with the encoder or the disk.
            let _ = stderr.take(1 << 16).read_to_end(&mut message);
        }
        let status = self.child.wait().map_err(|error| Failure::failed(format!("cannot wait for ffmpeg: {error}")))?;
        said(status, &message)
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // Fails without harm if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file's header: version 0, 32 bytes long, its number of pictures not known.
fn ivf_header(width: u32, height: u32, fps: f64) -> Vec<u8> {
    let side = |side: u32| u16::try_from(side).unwrap_or(u16::MAX).to_le_bytes();
    let rate = (fps * f64::from(THOUSANDTHS)).round() as u32;
    [
        &b"DKIF"[..],
        &0_u16.to_le_bytes(),
        &32_u16.to_le_bytes(),
        RAW_RGB,
        &side(width),
        &side(height),
        &rate.to_le_bytes(),
        &THOUSANDTHS.to_le_bytes(),
        &[0; 8],
    ]
    .concat()
}

fn part(path: &Path) -> PathBuf {
    path.with_extension("mp4.part")
}

fn said(status: std::process::ExitStatus, message: &[u8]) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(message);
    let last = message.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(Failure::failed(format!("ffmpeg cannot make the video ({status}): {last}"))
        .hint("--video needs an ffmpeg with libx264, as Debian's and Ubuntu's has it"))
}

/// Captions as SubRip text.
fn srt(captions: &[Caption], length: Duration) -> String {
    let time = |at: Duration| {
        let ms = at.as_millis();
        let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        format!("{hours:02}:{minutes:02}:{seconds:02},{:03}", ms % 1000)
    };
    let ends = captions.iter().skip(1).map(|caption| caption.at).chain([length]);
    let entry = |(number, (caption, end)): (usize, (&Caption, Duration))| {
        // A blank line would end the entry.
        let text = if caption.text.is_empty() { "-" } else { &caption.text };
        format!("{}\n{} --> {}\n{text}\n\n", number + 1, time(caption.at), time(end))
    };
    captions.iter().zip(ends).enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_follow_each_other() {
        let caption = |ms, text: &str| Caption { at: Duration::from_millis(ms), text: text.to_owned() };
        let text = srt(&[caption(0, "cup 95 %"), caption(3_661_040, "")], Duration::from_secs(3700));
        assert_eq!(text, "1\n00:00:00,000 --> 01:01:01,040\ncup 95 %\n\n2\n01:01:01,040 --> 01:01:40,000\n-\n\n");
    }

    #[test]
    fn the_files_clock_ticks_at_the_videos_rate() {
        let header = ivf_header(640, 240, 29.97);
        assert_eq!((header.len(), &header[..4], &header[8..12]), (32, &b"DKIF"[..], &b"RGB\x18"[..]));
        assert_eq!(header[12..16], [128, 2, 240, 0]);
        assert_eq!(header[16..24], [29_970_u32.to_le_bytes(), 1000_u32.to_le_bytes()].concat());
    }

    #[test]
    fn a_file_that_is_no_mp4_is_refused() {
        let refused = Encoder::check(Path::new("out.avi"));
        // Without an ffmpeg that is said first.
        let failure = refused.expect_err("not an MP4").to_string();
        assert!(failure.contains("does not end in .mp4") || failure.contains("needs ffmpeg"), "{failure}");
    }
}
