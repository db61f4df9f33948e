//! Sources of frames: pictures in a folder or of a pattern, an animated WebP, a video.

mod animation;
mod order;
mod video;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::failure::Failure;
use crate::client::{OutgoingFrame, Payload};

/// File extensions that a folder is searched for.
const PICTURE_EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 1 << 30;

/// A source of frames. [`Source::open`] has checked that its files exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Picture files in natural order (`9.jpg` before `10.jpg`).
    Pictures(Vec<PathBuf>),
    AnimatedWebp(PathBuf),
    /// An input of ffmpeg: a file, a device or an address.
    Video(String),
    /// Frames in memory.
    Ready(Vec<OutgoingFrame>),
}

/// Decodes the picture of a frame that holds a picture file; returns any other frame unchanged.
pub fn into_pixels(frame: OutgoingFrame) -> Result<OutgoingFrame, Failure> {
    let OutgoingFrame { name, payload } = frame;
    let Payload::Encoded(data) = payload else { return Ok(OutgoingFrame { name, payload }) };
    let decoded = image::load_from_memory(&data)
        .map_err(|error| Failure::failed(format!("cannot decode {name}: {error}")))?
        .into_rgb8();
    let (width, height) = decoded.dimensions();
    Ok(OutgoingFrame { name, payload: Payload::Rgb { width, height, data: decoded.into_raw().into() } })
}

impl Source {
    /// Opens the source that `text` names: a folder, a file, a pattern such as `frames/*.jpg`, or an address such as
    /// `rtsp://…`.
    pub fn open(text: &str) -> Result<Self, Failure> {
        let path = Path::new(text);
        if path.is_dir() {
            return folder(path);
        }
        if path.exists() {
            return file(path);
        }
        if text.contains("://") {
            return Ok(Source::Video(text.to_owned()));
        }
        if text.contains(['*', '?', '[']) {
            return pattern(text);
        }
        Err(Failure::usage(format!("{text} does not exist"))
            .hint("give a folder, a picture, a pattern in quotes ('frames/*.jpg'), or a video"))
    }

    /// Number of frames; `None` if it is not known without reading them.
    pub fn len(&self) -> Option<u64> {
        match self {
            Source::Pictures(paths) => Some(paths.len() as u64),
            Source::Ready(frames) => Some(frames.len() as u64),
            Source::AnimatedWebp(_) | Source::Video(_) => None,
        }
    }

    /// Passes each frame to `take` until it returns `false`. Blocks on reading, decoding and ffmpeg.
    pub fn read(&self, take: &mut dyn FnMut(OutgoingFrame) -> bool) -> Result<(), Failure> {
        match self {
            Source::Pictures(paths) => {
                for path in paths {
                    if !take(OutgoingFrame { name: file_name(path), payload: Payload::Encoded(read_picture(path)?) }) {
                        break;
                    }
                }
                Ok(())
            }
            Source::AnimatedWebp(path) => animation::read(path, take),
            Source::Video(input) => video::read(input, take),
            Source::Ready(frames) => {
                // `all` stops when `take` returns `false`.
                let _ = frames.iter().cloned().all(take);
                Ok(())
            }
        }
    }

    /// Reads the source `repeat` times (0: without end), converts each frame with `change` and sends it to `frames`.
    /// Stops after `limit` frames, or when the channel is closed. Blocks: call it on a thread of its own.
    ///
    /// # Errors
    /// A frame cannot be read or converted.
    pub fn feed(
        &self,
        repeat: u64,
        limit: Option<u64>,
        change: impl Fn(OutgoingFrame) -> Result<OutgoingFrame, Failure>,
        frames: &mpsc::Sender<OutgoingFrame>,
    ) -> Result<(), Failure> {
        let mut left = limit.unwrap_or(u64::MAX);
        let mut round = 0;
        let mut open = true;
        while open && left > 0 && (repeat == 0 || round < repeat) {
            let before = left;
            let mut conversion = Ok(());
            self.read(&mut |frame| {
                match change(frame) {
                    Ok(frame) => open = frames.blocking_send(frame).is_ok(),
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
        Ok(())
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

fn file(path: &Path) -> Result<Source, Failure> {
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
        _ => Ok(Source::Video(path.display().to_string())),
    }
}

fn is_picture_name(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| PICTURE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(Source::open("rtsp://camera/1").expect("an address"), Source::Video("rtsp://camera/1".to_owned()));
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

    fn fed(repeat: u64, limit: Option<u64>) -> Vec<String> {
        let folder = folder_of(&["1.png", "2.png"]);
        let source = Source::open(&folder.path().to_string_lossy()).expect("a folder of pictures");
        let (sender, mut frames) = mpsc::channel(100);
        source.feed(repeat, limit, Ok, &sender).expect("readable pictures");
        drop(sender);
        std::iter::from_fn(|| frames.blocking_recv()).map(|frame| frame.name).collect()
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
        let frame =
            |name: &str| OutgoingFrame { name: name.to_owned(), payload: Payload::Encoded(Bytes::from("no picture")) };
        let source = Source::Ready(vec![frame("a"), frame("b")]);
        let (sender, mut frames) = mpsc::channel(100);
        let failure = source.feed(0, Some(3), into_pixels, &sender).expect_err("no picture");
        assert!(failure.to_string().starts_with("cannot decode a: "), "{failure}");
        assert!(frames.try_recv().is_err());
        source.feed(0, Some(3), Ok, &sender).expect("frames as they are");
        assert_eq!([(); 3].map(|()| frames.try_recv().expect("three frames").name), ["a", "b", "a"]);
    }
}
