//! `camlens trace` against the server that computes nothing, and against the real one.

use serde_json::Value;

use super::fake_server::FakeServer;
use super::{camlens, run, summary, text};

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
    assert!(stages[0]["p90_ms"].is_number() && stages[0]["p99_ms"].is_null(), "twenty frames carry no p99");
}

#[test]
fn people_get_waterfalls_percentiles_and_a_sentence() {
    let arguments = ["trace", "--models", "builtin:identity", "--frames", "12", "--width", "80"];
    let (code, stdout, stderr) = run(camlens(&arguments).env("LC_ALL", "C"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("12 frames sent: 12 answered, 0 dropped, 0 failed\n"), "{stdout}");
    for part in ["median: frame ", "slowest: frame ", "12 frames, in ms", " takes the most: "] {
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
