//! Sources of frames: pictures in a folder or of a pattern, an animated WebP, a video, a camera.

mod animation;
pub mod camera;
mod capture_clock;
mod ffmpeg;
mod input;
mod order;
mod video;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use self::ffmpeg::not_started;
use self::input::Input;
pub use self::input::{VideoSettings, public_name};
use super::failure::Failure;
use crate::client::{Capture, FrameQueue, OutgoingFrame, Payload};

/// File extensions that a folder is searched for.
const PICTURE_EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 1 << 30;

/// A source of frames. [`Source::open`] has checked that its files exist.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Picture files in natural order (`9.jpg` before `10.jpg`).
    Pictures(Vec<PathBuf>),
    AnimatedWebp(PathBuf),
    /// An input of ffmpeg: a file, a device or an address.
    Video(Input),
    /// Frames in memory.
    Ready(Vec<OutgoingFrame>),
}

/// Decodes the picture of a frame that holds a picture file; returns any other frame unchanged.
pub fn into_pixels(frame: OutgoingFrame) -> Result<OutgoingFrame, Failure> {
    let Payload::Encoded(data) = &frame.payload else { return Ok(frame) };
    let decoded = image::load_from_memory(data)
        .map_err(|error| Failure::failed(format!("cannot decode {}: {error}", frame.name)))?
        .into_rgb8();
    let (width, height) = decoded.dimensions();
    Ok(OutgoingFrame { payload: Payload::Rgb { width, height, data: decoded.into_raw().into() }, ..frame })
}

impl Source {
    /// Opens the source that `text` names: a folder, a file, a pattern such as `frames/*.jpg`, or an address such as
    /// `rtsp://…`.
    pub fn open(text: &str) -> Result<Self, Failure> {
        Source::open_with(text, VideoSettings::default())
    }

    /// As [`Source::open`], with settings that only a video or a camera can have. With options of ffmpeg, `text` is its
    /// input, whatever it names.
    pub fn open_with(text: &str, settings: VideoSettings) -> Result<Self, Failure> {
        let path = Path::new(text);
        let flag = settings.flag_of_a_video();
        let source = if !settings.options.is_empty() || is_device(path) {
            Source::Video(Input::new(text, settings))
        } else if path.is_dir() {
            folder(path)?
        } else if path.exists() {
            file(path, settings)?
        } else if text.contains("://") {
            Source::Video(Input::new(text, settings))
        } else if text.contains(['*', '?', '[']) {
            pattern(text)?
        } else {
            return Err(Failure::usage(format!("{text} does not exist")).hint(
                "give a folder, a picture, a pattern in quotes ('frames/*.jpg'), a video, or rtsp://CAMERA/PATH",
            ));
        };
        match (flag, &source) {
            (None, _) | (_, Source::Video(_)) => Ok(source),
            (Some(flag), _) => Err(Failure::usage(format!("{flag} is for videos and cameras, and {text} is neither"))),
        }
    }

    /// The input of a live camera; `None`: the source is a recording.
    pub fn camera(&self) -> Option<&Input> {
        match self {
            Source::Video(input) if input.is_live => Some(input),
            _ => None,
        }
    }

    /// Number of frames; `None` if it is not known without reading them.
    pub fn len(&self) -> Option<u64> {
        match self {
            Source::Pictures(paths) => Some(paths.len() as u64),
            Source::Ready(frames) => Some(frames.len() as u64),
            Source::AnimatedWebp(_) | Source::Video(_) => None,
        }
    }

    /// Passes each frame to `take` until it returns `false`. Blocks on reading, decoding and ffmpeg. Returns the number
    /// of errors that a decoder reported and went on.
    pub fn read(&self, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Result<u64, Failure> {
        match self {
            Source::Pictures(paths) => {
                for path in paths {
                    if !take(OutgoingFrame::new(file_name(path), Payload::Encoded(read_picture(path)?))) {
                        break;
                    }
                }
                Ok(0)
            }
            Source::AnimatedWebp(path) => animation::read(path, take).map(|()| 0),
            Source::Video(input) => video::read(input, take),
            Source::Ready(frames) => {
                // `all` stops when `take` returns `false`. A frame is taken when it is read, each time.
                let _ = frames.iter().all(|frame| take(OutgoingFrame { captured: Capture::now(), ..frame.clone() }));
                Ok(0)
            }
        }
    }

    /// Reads the source `repeat` times (0: without end), converts each frame with `change` and appends it to `frames`,
    /// which it ends. Stops after `limit` frames, or when the queue is closed. Blocks: call it on a thread of its own.
    /// Returns the number of errors that a decoder reported and went on.
    ///
    /// # Errors
    /// A frame cannot be read or converted.
    pub fn feed(
        &self,
        repeat: u64,
        limit: Option<u64>,
        change: impl Fn(OutgoingFrame) -> Result<OutgoingFrame, Failure>,
        frames: &FrameQueue,
    ) -> Result<u64, Failure> {
        let fed = self.feed_rounds(repeat, limit, change, frames);
        frames.end();
        fed
    }

    fn feed_rounds(
        &self,
        repeat: u64,
        limit: Option<u64>,
        change: impl Fn(OutgoingFrame) -> Result<OutgoingFrame, Failure>,
        frames: &FrameQueue,
    ) -> Result<u64, Failure> {
        let mut left = limit.unwrap_or(u64::MAX);
        let (mut round, mut errors) = (0, 0);
        let mut open = true;
        while open && left > 0 && (repeat == 0 || round < repeat) {
            let before = left;
            let mut conversion = Ok(());
            errors += self.read(&mut |frame| {
                match change(frame) {
                    Ok(frame) => open = frames.push(frame),
                    Err(failure) => {
                        conversion = Err(failure);
                        return false;
                    }
                }
                left -= u64::from(open);
                open && left > 0
            })?;
            conversion?;
            if left == before {
                break;
            }
            round += 1;
        }
        Ok(errors)
    }
}

/// Reads a whole picture file of at most 1 GiB.
pub fn read_picture(path: &Path) -> Result<Bytes, Failure> {
    let reading = |error: std::io::Error| Failure::from_io("read", path, &error);
    let file = File::open(path).map_err(reading)?;
    let mut data = Vec::new();
    file.take(MAX_PICTURE_BYTES + 1).read_to_end(&mut data).map_err(reading)?;
    if data.len() as u64 > MAX_PICTURE_BYTES {
        return Err(Failure::failed(format!("{} is larger than 1 GiB", path.display())));
    }
    Ok(Bytes::from(data))
}

/// The last component of a path, as text.
pub fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn folder(path: &Path) -> Result<Source, Failure> {
    let listing = |error: std::io::Error| Failure::from_io("list", path, &error);
    let mut pictures = Vec::new();
    for entry in fs::read_dir(path).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        if is_picture_name(&path) && path.is_file() {
            pictures.push(path);
        }
    }
    in_order(pictures, || {
        Failure::usage(format!("{} has no pictures", path.display()))
            .hint(format!("a folder is searched for files with the extensions {}", PICTURE_EXTENSIONS.join(", ")))
    })
}

fn pattern(text: &str) -> Result<Source, Failure> {
    let matches = glob::glob(text).map_err(|error| Failure::usage(format!("{text} is not a pattern: {error}")))?;
    let mut pictures = Vec::new();
    for path in matches {
        let path = path.map_err(|error| Failure::from_io("read", error.path(), error.error()))?;
        if path.is_file() {
            pictures.push(path);
        }
    }
    in_order(pictures, || Failure::usage(format!("no file matches {text}")))
}

fn in_order(mut pictures: Vec<PathBuf>, none: impl FnOnce() -> Failure) -> Result<Source, Failure> {
    if pictures.is_empty() {
        return Err(none());
    }
    pictures.sort_by(|a, b| order::natural(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(Source::Pictures(pictures))
}

/// Whether the path names a device, such as a camera's `/dev/video0`.
fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device())
}

fn file(path: &Path, settings: VideoSettings) -> Result<Source, Failure> {
    let mut start = [0; 32];
    let mut length = 0;
    let mut opened = File::open(path).map_err(|error| Failure::from_io("open", path, &error))?;
    while length < start.len() {
        match opened.read(&mut start[length..]).map_err(|error| Failure::from_io("read", path, &error))? {
            0 => break,
            read => length += read,
        }
    }
    match image::guess_format(&start[..length]) {
        Ok(image::ImageFormat::WebP) if animation::is_animated(path) => Ok(Source::AnimatedWebp(path.to_owned())),
        Ok(image::ImageFormat::Jpeg | image::ImageFormat::Png | image::ImageFormat::WebP) => {
            Ok(Source::Pictures(vec![path.to_owned()]))
        }
        // A damaged picture counts as a picture: the server's error names the damage.
        _ if is_picture_name(path) => Ok(Source::Pictures(vec![path.to_owned()])),
        _ => Ok(Source::Video(Input::new(&path.display().to_string(), settings))),
    }
}

fn is_picture_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| PICTURE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Full;

    fn names(source: &Source) -> Vec<String> {
        let mut names = Vec::new();
        source
            .read(&mut |frame| {
                names.push(frame.name);
                true
            })
            .expect("readable pictures");
        names
    }

    fn folder_of(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        files.iter().for_each(|file| fs::write(folder.path().join(file), file).expect("a small file"));
        folder
    }

    #[test]
    fn the_pictures_of_a_folder_are_in_natural_order() {
        let folder = folder_of(&["10.jpg", "9.JPG", "notes.txt", "2.png"]);
        fs::create_dir(folder.path().join("0.png")).expect("a folder that looks like a picture");
        let source = Source::open(&folder.path().to_string_lossy()).expect("a folder of pictures");
        assert_eq!(source.len(), Some(3));
        assert_eq!(names(&source), ["2.png", "9.JPG", "10.jpg"]);
    }

    #[test]
    fn a_pattern_matches_files_of_any_extension() {
        let folder = folder_of(&["b1.dat", "a1.dat", "b2.png"]);
        let source = Source::open(&folder.path().join("*1*").to_string_lossy()).expect("two matches");
        assert_eq!(names(&source), ["a1.dat", "b1.dat"]);
    }

    #[test]
    fn reading_stops_when_take_returns_false() {
        let folder = folder_of(&["1.png", "2.png", "3.png"]);
        let mut taken = 0;
        let source = Source::open(&folder.path().to_string_lossy()).expect("a folder of pictures");
        source
            .read(&mut |_| {
                taken += 1;
                taken < 2
            })
            .expect("readable pictures");
        assert_eq!(taken, 2);
    }

    #[test]
    fn a_damaged_picture_is_still_a_picture_and_an_unknown_file_is_a_video() {
        let folder = folder_of(&["broken.jpg", "clip.mp4"]);
        let open = |name: &str| Source::open(&folder.path().join(name).to_string_lossy()).expect("an existing file");
        assert!(matches!(open("broken.jpg"), Source::Pictures(_)));
        assert!(matches!(open("clip.mp4"), Source::Video(_)));
        assert!(open("clip.mp4").camera().is_none());
        let camera = Source::open("rtsp://camera/1").expect("an address");
        assert_eq!(camera.camera().map(|input| input.name.as_str()), Some("rtsp://camera/1"));
    }

    #[test]
    fn a_missing_or_empty_source_is_an_error() {
        let folder = folder_of(&["notes.txt"]);
        let missing = folder.path().join("missing");
        for (text, expected) in [
            (missing.to_string_lossy().into_owned(), "does not exist"),
            (folder.path().to_string_lossy().into_owned(), "has no pictures"),
            (folder.path().join("*.png").to_string_lossy().into_owned(), "no file matches"),
        ] {
            let failure = Source::open(&text).expect_err("nothing to read").to_string();
            assert!(failure.contains(expected), "{failure}");
        }
    }

    #[test]
    fn settings_of_a_video_are_refused_for_pictures() {
        let folder = folder_of(&["1.png", "clip.mp4"]);
        let open = |name: &str, settings: VideoSettings| {
            Source::open_with(&folder.path().join(name).to_string_lossy(), settings)
        };
        let width = VideoSettings { width: Some(64), ..VideoSettings::default() };
        let failure = open("1.png", width.clone()).expect_err("a picture").to_string();
        assert!(failure.starts_with("--width is for videos and cameras"), "{failure}");
        assert!(open("", width.clone()).is_err() && open("clip.mp4", width).is_ok());
        let options = VideoSettings { options: vec![("f".into(), "lavfi".into())], ..VideoSettings::default() };
        assert!(matches!(Source::open_with("testsrc=size=64x64", options), Ok(Source::Video(_))));
        assert!(Source::open("/dev/null").is_ok_and(|source| source.camera().is_some()), "a device is a camera");
    }

    fn fed(repeat: u64, limit: Option<u64>) -> Vec<String> {
        let folder = folder_of(&["1.png", "2.png"]);
        let source = Source::open(&folder.path().to_string_lossy()).expect("a folder of pictures");
        let frames = FrameQueue::new(100, Full::Wait);
        source.feed(repeat, limit, Ok, &frames).expect("readable pictures");
        taken(&frames)
    }

    /// The names of the frames in a queue.
    fn taken(frames: &FrameQueue) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        std::iter::from_fn(|| runtime.block_on(frames.next())).map(|frame| frame.name).collect()
    }

    #[test]
    fn a_source_is_read_repeatedly_up_to_the_limit() {
        assert_eq!(fed(1, None), ["1.png", "2.png"]);
        assert_eq!(fed(2, Some(3)), ["1.png", "2.png", "1.png"]);
        assert_eq!(fed(0, Some(5)).len(), 5);
        assert!(fed(1, Some(0)).is_empty());
    }

    #[test]
    fn a_frame_that_cannot_be_converted_ends_the_feed() {
        let frame = |name: &str| OutgoingFrame::new(name, Payload::Encoded(Bytes::from("no picture")));
        let source = Source::Ready(vec![frame("a"), frame("b")]);
        let frames = FrameQueue::new(100, Full::Wait);
        let failure = source.feed(0, Some(3), into_pixels, &frames).expect_err("no picture");
        assert!(failure.to_string().starts_with("cannot decode a: "), "{failure}");
        assert!(taken(&frames).is_empty());
        source.feed(0, Some(3), Ok, &frames).expect("frames as they are");
        assert_eq!(taken(&frames), ["a", "b", "a"]);
    }
}
