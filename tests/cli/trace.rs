//! `camlens trace` against the fake server, and against the real one.

use camlens::proto::v1;
use serde_json::Value;

use super::fake_server::FakeServer;
use super::{camlens, pictures, run, summary, text};

fn ms(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

#[test]
fn the_stages_of_each_drawn_frame_add_up_to_the_servers_time_and_with_the_rest_to_the_round_trip() {
    let (code, stdout, stderr) =
        run(&mut camlens(&["trace", "--models", "builtin:identity", "--frames", "20", "--frame", "3", "--json"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let result = summary(&stdout);
    assert_eq!((&result["answered"], &result["model"]["name"]), (&20.into(), &"identity".into()));
    let frames = result["frames"].as_array().expect("frames are drawn");
    assert!(frames.len() >= 2, "the median, the slowest, and the third unless it is one of them");
    for frame in frames {
        let stages = frame["stages"].as_array().expect("stages");
        let mut end = 0.0;
        for stage in stages {
            assert!((ms(stage, "start_ms") - end).abs() < 1e-6, "{stage} begins where the one before ended: {end}");
            end += ms(stage, "duration_ms");
        }
        assert!((end - ms(frame, "server_ms")).abs() < 1e-6, "{end} in {frame}");
        let whole = ms(frame, "server_ms") + ms(frame, "outside_ms");
        assert!((whole - ms(frame, "round_trip_ms")).abs() < 1e-6, "{whole} in {frame}");
        assert_eq!(frame["trace_id"].as_str().map(str::len), Some(32));
    }
    let stages = result["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().filter_map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(names.first(), Some(&"receive"));
    let sum: f64 = stages.iter().map(|stage| ms(stage, "total_ms")).sum();
    assert!((sum - ms(&result["server"], "total_ms")).abs() < 1e-3, "{sum} in {result}");
    assert!(stages[0]["p90_ms"].is_number() && stages[0]["p99_ms"].is_null(), "a p99 needs 100 frames");
}

#[test]
fn people_get_waterfalls_percentiles_and_a_sentence() {
    let arguments = ["trace", "--models", "builtin:identity", "--frames", "12", "--width", "80"];
    let (code, stdout, stderr) = run(camlens(&arguments).env("LC_ALL", "C"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("12 frames sent: 12 answered, 0 dropped, 0 failed\n"), "{stdout}");
    for part in ["median: frame ", "slowest: frame ", "12 frames, in ms", " takes the most time: "] {
        assert!(stdout.contains(part), "no {part:?} in\n{stdout}");
    }
    assert!(stdout.is_ascii(), "not every terminal speaks UTF-8\n{stdout}");
    assert!(stdout.lines().all(|line| line.len() <= 80), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "no colours where nobody sees them");
}

#[test]
fn a_source_without_frames_and_a_server_that_is_away_are_told() {
    let empty = tempfile::tempdir().expect("a folder");
    let server = FakeServer::start();
    let (code, stdout, stderr) = run(&mut camlens(&["trace", text(empty.path()), "--server", &server.address()]));
    assert_ne!(code, 0, "{stdout}{stderr}");
    assert!(stderr.contains(text(empty.path())), "{stderr}");
    let (code, _, stderr) = run(&mut camlens(&["trace", "--server", "127.0.0.1:1"]));
    assert_ne!(code, 0);
    assert!(stderr.contains("127.0.0.1:1"), "{stderr}");
}

#[test]
fn frames_that_are_dropped_or_fail_are_told_and_not_drawn() {
    let server = FakeServer::start();
    let frames = pictures(&["bad1.jpg", "f2.jpg", "old3.jpg"]);
    let address = server.address();
    let arguments = ["trace", text(frames.path()), "--frames", "3", "--frame", "1,3", "--server", &address];
    let (code, stdout, stderr) = run(&mut camlens(&arguments));
    assert_eq!((code, stderr.as_str()), (4, "error: 1 of 3 frames failed\n"));
    for part in [
        "frame 1 (bad1.jpg): encoded.data: not an image (INVALID_ARGUMENT)",
        "3 frames sent: 1 answered, 1 dropped (replaced 1), 1 failed",
        "frame 1 was not answered",
        "frame 3 was not answered",
    ] {
        assert!(stdout.contains(part), "no {part:?} in\n{stdout}");
    }
    assert!(!stdout.contains("frames, in ms"), "one frame has no percentiles\n{stdout}");

    let (code, stdout, _) = run(camlens(&arguments).env("CAMLENS_JSON", "1"));
    let result = summary(&stdout);
    assert_eq!(
        (code, &result["failed"]["INVALID_ARGUMENT"], &result["dropped"]["replaced"]),
        (4, &1.into(), &1.into())
    );
    assert_eq!(result["frames"].as_array().map(Vec::len), Some(1));
}

#[test]
fn when_nothing_is_answered_there_is_nothing_to_draw() {
    let server = FakeServer::start();
    let frames = pictures(&["bad1.jpg"]);
    let arguments = ["trace", text(frames.path()), "--frames", "2", "--server", &server.address()];
    let (code, stdout, stderr) = run(&mut camlens(&arguments));
    assert_eq!((code, stderr.as_str()), (4, "error: 2 of 2 frames failed\n"));
    assert!(stdout.ends_with("no frame was answered: there is nothing to draw\n"), "{stdout}");
}

#[test]
fn the_stream_is_opened_as_the_sending_says() {
    let server = FakeServer::start();
    let address = server.address();
    let opened_with = |more: &[&str]| {
        let arguments = [&["trace", "--frames", "3", "--server", &address], more].concat();
        let (code, _, stderr) = run(&mut camlens(&arguments));
        assert_eq!((code, stderr.as_str()), (0, ""));
        let mut seen = server.seen.lock().expect("the server lives");
        let frames = std::mem::take(&mut seen.frames);
        (seen.opens.pop().expect("a stream was opened"), frames)
    };
    let overflow = |open: &v1::Open| open.policy.as_ref().map(|policy| policy.overflow());
    let (one_by_one, frames) = opened_with(&[]);
    assert_eq!(overflow(&one_by_one), Some(v1::stream_policy::Overflow::Block));
    assert_eq!((one_by_one.source.as_str(), frames.len()), ("camlens trace", 3));
    let (as_a_camera, _) = opened_with(&["--rate", "50"]);
    assert_eq!(overflow(&as_a_camera), Some(v1::stream_policy::Overflow::Latest));
    let (_, pixels) = opened_with(&["--raw", "--size", "32x16"]);
    for frame in pixels {
        match frame.payload {
            Some(v1::frame::Payload::Raw(raw)) => assert_eq!((raw.width, raw.height), (32, 16)),
            other => panic!("no pixels: {other:?}"),
        }
    }
}

#[test]
fn a_terminal_that_speaks_utf_8_gets_finer_bars() {
    let arguments = ["trace", "--models", "builtin:identity", "--frames", "4"];
    let (code, stdout, _) = run(camlens(&arguments).env("LC_ALL", "C.UTF-8"));
    assert_eq!(code, 0);
    assert!(stdout.contains('█'), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "no colours where nobody sees them");
}
