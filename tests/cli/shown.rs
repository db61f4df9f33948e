//! What people see: the report, and the live page of `camlens stream`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{camlens, files, killed_after, run, text};

fn photograph() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing/444.jpg")
}

/// The report that a command writes, its frames, and the files beside it.
fn reported(arguments: &[&str]) -> (String, Value, Vec<String>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (out, html) = (folder.path().join("out"), folder.path().join("report.html"));
    let more = ["--models", "builtin:identity", "--out", text(&out), "--html", text(&html)];
    let (code, _, stderr) = run(&mut camlens(&[arguments, &more].concat()));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let html = fs::read_to_string(html).expect("a report");
    let (_, frames) = html.split_once("id=\"frames\">").expect("frames");
    let (frames, _) = frames.split_once("</script>").expect("the frames end");
    (html.clone(), serde_json::from_str(frames).expect("JSON"), files(&out))
}

#[test]
fn the_report_of_a_picture_has_its_frame_and_every_map_and_writes_no_other_file() {
    let (html, report, files) = reported(&["explain", text(&photograph()), "--picture", "overlay,light"]);
    assert_eq!(files, ["444.light.png", "444.overlay.png"]);
    let frame = &report["frames"][0];
    let shown = STANDARD.decode(frame["j"].as_str().expect("a JPEG")).expect("base64");
    let (shown, sent) =
        (image::load_from_memory(&shown).expect("a picture"), image::open(photograph()).expect("it is"));
    assert_eq!((shown.width(), shown.height()), (sent.width(), sent.height()), "it is small enough to stay as it is");
    let target = &frame["t"][0];
    for layer in ["heat", "light", "guided", "area"] {
        assert!(!target[layer].is_null(), "{layer} is missing");
    }
    assert!(html.contains("How to read this") && html.contains("Where the time goes"));
}

#[test]
fn the_report_of_a_stream_shows_its_frames_in_less_than_two_megabytes() {
    let (html, report, files) = reported(&["stream", text(&photograph()), "--repeat", "40"]);
    assert_eq!((report["frames"].as_array().map(Vec::len), files.len()), (Some(40), 40));
    assert!(files.iter().all(|file| file.ends_with(".overlay.jpg")), "{files:?}");
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
    let stages = report["stages"].as_array().expect("stages");
    assert!(stages.iter().any(|stage| stage == "forward"), "{stages:?}");
    assert_eq!(report["frames"][39]["s"].as_array().map(Vec::len), Some(stages.len()));
}

#[test]
fn a_stream_shows_its_frames_on_a_page_of_this_machine() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let picture = photograph();
    let arguments = ["stream", text(&picture), "--repeat", "0", "--rate", "50", "--models", "builtin:identity"];
    let mut stream = camlens(&[&arguments[..], &["--out", text(out.path()), "--view", "127.0.0.1:0"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let _killer = killed_after(Duration::from_secs(120), &stream);
    let mut line = String::new();
    BufReader::new(stream.stderr.take().expect("a pipe")).read_line(&mut line).expect("it says where");
    let address = line.trim().strip_prefix("the live page is http://").expect("an address").to_owned();
    let ask = |path: &str| {
        let mut page = TcpStream::connect(&address).expect("it listens");
        page.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
            .expect("it reads");
        page
    };
    let mut page = String::new();
    ask("/").read_to_string(&mut page).expect("a page");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("camlens live"), "{page}");
    let mut live = ask("/live");
    let mut seen = Vec::new();
    let contains = |seen: &[u8], text: &str| seen.windows(text.len()).any(|part| part == text.as_bytes());
    while !(contains(&seen, "\"kind\":\"frame\"") && contains(&seen, "block, credit of")) {
        if contains(&seen, "\"stream\":null") {
            // It was not open yet. The page asks again, too.
            std::thread::sleep(Duration::from_millis(20));
            seen.clear();
            live = ask("/live");
        }
        let mut more = [0; 64 << 10];
        let count = live.read(&mut more).expect("it goes on");
        assert_ne!(count, 0, "the stream is over");
        seen.extend_from_slice(&more[..count]);
    }
    stream.kill().expect("it runs");
    stream.wait().expect("it ends");
}

#[test]
fn frames_are_not_shown_beyond_this_machine() {
    let picture = photograph();
    let arguments = ["stream", text(&picture), "--models", "builtin:identity", "--view", "0.0.0.0:0"];
    let (code, _, stderr) = run(&mut camlens(&arguments));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("beyond this machine") && stderr.contains("127.0.0.1"), "{stderr}");
}
