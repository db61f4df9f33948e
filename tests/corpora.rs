//! Runs every input of the fuzz targets' corpora (`tests/fuzz/corpus`) on the stable toolchain: seeds, inputs that
//! added coverage, and findings. None may panic or fail the checks of its target.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use zip::ZipArchive;

#[path = "fuzz/src/archive.rs"]
mod archive;
#[path = "fuzz/src/frame.rs"]
mod frame;
#[path = "fuzz/src/onnx.rs"]
mod onnx;
#[path = "fuzz/src/settings.rs"]
mod settings;
#[path = "fuzz/src/stream.rs"]
mod stream;

mod seeds {
    //! The inputs from which fuzzing starts.

    use std::path::Path;

    use camlens::config::Config;
    use camlens::model::description::Description;
    use camlens::proto::v1;
    use camlens::proto::v1::explain_stream_request::Message as Request;

    use super::frame::Kind;
    use super::{archive, root, stream};

    type Seeds = Vec<(String, Vec<u8>)>;

    /// Pseudo-random bytes from which a target makes its choices; the same each time.
    fn choices(first: u8, count: usize, length: usize) -> Seeds {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut roll = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..count)
            .map(|n| {
                let bytes = std::iter::once(first).chain((1..length).map(|_| roll())).collect();
                (format!("choices-{n:02}"), bytes)
            })
            .collect()
    }

    pub fn frame() -> Seeds {
        let header = |kind: Kind, variety: u8, [width, height, stride]: [u16; 3], n: u8| {
            let sizes = [width, height, stride].map(u16::to_le_bytes);
            let steps = [n.wrapping_mul(37), n.wrapping_mul(91), n.wrapping_mul(53), n];
            [&[kind as u8, variety][..], &sizes.concat(), &steps].concat()
        };
        let mut seeds: Seeds = Vec::new();
        let folder = root().join("tests/fixtures/preprocessing");
        for entry in std::fs::read_dir(folder).expect("the fixtures are there") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let data = std::fs::read(&path).expect("a fixture");
            if ["jpg", "png", "webp"].iter().any(|end| name.ends_with(end)) && data.len() < 12_000 {
                let n = name.bytes().fold(0u8, u8::wrapping_add);
                if name.ends_with("jpg") {
                    // The same file, cut, and with a part of it twice: read as far as it goes.
                    let (cut, half) = (data.len() * 3 / 4, data.len() / 2);
                    let header = header(Kind::Encoded, super::frame::ALLOW_DAMAGED, [0; 3], n);
                    seeds.push((format!("cut-{name}"), [&header[..], &data[..cut]].concat()));
                    seeds.push((format!("twice-{name}"), [&header[..], &data[..cut], &data[half..]].concat()));
                }
                seeds.push((name, [header(Kind::Encoded, 0, [0; 3], n), data].concat()));
            }
        }
        for (variety, pixel) in [(0, 3u16), (1, 3), (2, 1)] {
            let data: Vec<u8> = (0..6 * 20 * pixel).map(|n| n as u8).collect();
            let sizes = [6, 4, 20 * pixel];
            seeds.push((format!("raw-{variety}"), [header(Kind::Raw, variety, sizes, variety), data].concat()));
        }
        for (name, variety) in [("tensor", 3), ("tensor-of-one", 67)] {
            let data = [1.5f32, -0.0, 1e-40].map(f32::to_le_bytes).concat().repeat(8);
            seeds.push((name.to_owned(), [header(Kind::Tensor, variety, [2, 4, 0], 0), data].concat()));
        }
        let webp = std::fs::read(root().join("tests/fixtures/preprocessing/444.jpg")).expect("a fixture");
        seeds.push(("declared".to_owned(), [header(Kind::Declared, 0, [0; 3], 9), webp].concat()));
        seeds
    }

    pub fn archive() -> Seeds {
        let mut seeds = choices(0, 40, 120);
        seeds.push(("whole".to_owned(), [&[archive::RAW], archive::BASES[0]].concat()));
        seeds.extend((0..archive::BASES.len()).map(|base| (format!("unchanged-{base}"), vec![0, base as u8, 0, 0, 0])));
        seeds
    }

    pub fn settings() -> Seeds {
        let mut seeds: Seeds = vec![
            ("config".to_owned(), toml::to_string(&Config::default()).expect("TOML").into()),
            ("description".to_owned(), toml::to_string(&Description::default()).expect("TOML").into()),
        ];
        for (name, text) in [
            (
                "model",
                "summary = \"s\"\n[input]\nresize = 256\ncrop = [224, 224]\n\
                 mean = [0.485, 0.456, 0.406]\nstd = [0.229]\n",
            ),
            (
                "exact",
                "[input]\nresize = [8, 8]\ninterpolation = \"lanczos\"\ncolor = \"gray\"\n[limits]\nmax_batch = 2\n",
            ),
            (
                "explain",
                "[output]\nlabels = [\"a\"]\nlogits = \"x\"\n[explain]\ntoken_grid = [14, 14]\nclass_tokens = 1\n",
            ),
            ("misspelt", "[input]\nreszie = 256\n"),
            (
                "listen",
                "[server]\nlisten = [\"0.0.0.0:1\", \"unix:/a\"]\n\
                 unix_socket_mode = 0o660\n[server.tls]\nkey = \"k\"\n",
            ),
            ("limits", "[limits]\nmax_batch = 0\nqueued_bytes = 9223372036854775807\n[telemetry]\ntrace_ratio = nan\n"),
        ] {
            seeds.push((name.to_owned(), text.into()));
        }
        seeds
    }

    pub fn stream() -> Seeds {
        let say = |message| v1::ExplainStreamRequest { message: Some(message) };
        let open = |overflow: i32, unordered| {
            let policy = v1::StreamPolicy { overflow, unordered, ..Default::default() };
            say(Request::Open(v1::Open { policy: Some(policy), source: "a seed".to_owned(), ..Default::default() }))
        };
        let frame = |sequence| {
            let raw = v1::RawImage {
                data: vec![sequence as u8; 36].into(),
                width: 4,
                height: 3,
                pixel_format: v1::PixelFormat::Rgb8 as i32,
                ..Default::default()
            };
            let payload = Some(v1::frame::Payload::Raw(raw));
            say(Request::Frame(v1::Frame { sequence, payload, ..Default::default() }))
        };
        let cancel = |sequence| say(Request::Cancel(v1::Cancel { sequence }));
        let update = |overflow: i32| {
            let policy = v1::StreamPolicy { overflow, ..Default::default() };
            let options = v1::ExplainOptions { predictions_only: Some(true), ..Default::default() };
            say(Request::Update(v1::Update { options: Some(options), policy: Some(policy) }))
        };
        let nothing = v1::ExplainStreamRequest { message: None };
        let bad = say(Request::Frame(v1::Frame { sequence: 3, ..Default::default() }));
        let conversations = [
            ("latest", [vec![open(1, false)], (1..9).map(frame).collect()].concat()),
            ("block", [vec![open(2, false)], (1..9).map(frame).collect()].concat()),
            ("unordered", [vec![open(2, true)], (1..4).map(frame).collect(), vec![cancel(2), bad.clone()]].concat()),
            ("cancelled", vec![open(2, false), frame(1), frame(2), cancel(1), cancel(7), bad, frame(4)]),
            ("updated", vec![open(1, false), frame(1), update(2), frame(2), update(1), frame(3)]),
            ("twice", vec![open(2, false), frame(5), frame(5)]),
            ("opened-twice", vec![open(2, false), frame(5), open(2, false)]),
            ("nothing", vec![open(2, false), frame(5), nothing]),
            ("no-open", vec![frame(1)]),
        ];
        let mut seeds = choices(0, 40, 400);
        seeds.extend(conversations.map(|(name, messages)| (name.to_owned(), stream::seed(&messages))));
        seeds
    }

    pub fn write(folder: &Path, seeds: Seeds) {
        std::fs::create_dir_all(folder).expect("a folder");
        for (name, bytes) in seeds {
            std::fs::write(folder.join(name), bytes).expect("a seed");
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Gives each input of the target's corpus to `run`, and names those that fail.
fn replay(target: &str, run: fn(&[u8])) {
    let archive = root().join(format!("tests/fuzz/corpus/{target}.zip"));
    let mut archive = ZipArchive::new(File::open(archive).expect("the corpus is there")).expect("a zip");
    assert!(archive.len() > 100, "{} inputs of {target}", archive.len());
    let mut failed = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("an input");
        if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
            failed.push(entry.name().expect("a name").into_owned());
        }
    }
    assert!(failed.is_empty(), "inputs of {target}.zip that fail: {failed:#?}");
}

#[test]
fn frames_do_no_harm() {
    replay("frame", frame::run);
}

#[test]
fn models_of_onnx_do_no_harm() {
    replay("onnx", onnx::run);
}

#[test]
fn archives_do_no_harm() {
    replay("archive", archive::run);
}

#[test]
fn settings_do_no_harm() {
    replay("settings", settings::run);
}

#[test]
fn streams_get_an_ending_for_each_frame() {
    replay("stream", stream::run);
}

#[test]
#[ignore = "writes the seeds to tests/fuzz/scratch/seeds; tests/fuzz/corpus.py adds them to a corpus"]
fn seeds_are_written() {
    let folder = root().join("tests/fuzz/scratch/seeds");
    seeds::write(&folder.join("frame"), seeds::frame());
    seeds::write(&folder.join("archive"), seeds::archive());
    seeds::write(&folder.join("settings"), seeds::settings());
    seeds::write(&folder.join("stream"), seeds::stream());
}
