//! Cameras of `camlens stream`, with a fake ffmpeg that dies, stalls, sends garbage, and is late.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::fake_server::FakeServer;
use super::{camlens, files, pictures, run, script_named_ffmpeg, summary, text};

/// What every fake ffmpeg can do: `frame TIME` writes a frame of 2 × 1 pixels with its time, and `run` is the number of
/// times that ffmpeg has been started before.
const FAKE: &str = r#"
PATH=/usr/bin:/bin
here=$(dirname "$0")
run=$(cat "$here/runs" 2>/dev/null || echo 0)
echo $((run + 1)) > "$here/runs"
frame() {
  echo "[Parsed_showinfo_0 @ 0x1] [info] n:   0 pts:  0 pts_time:$1 fmt:yuv420p" >&2
  printf 'P6\n2 1\n255\nabcdef'
}
error() { echo "[rtsp @ 0x1] [error] $1" >&2; }
"#;

fn fake_ffmpeg(lines: &str) -> tempfile::TempDir {
    script_named_ffmpeg(&format!("{FAKE}\n{lines}"))
}

/// Streams `source` with the fake ffmpeg: exit code, standard output, standard error.
fn stream(ffmpeg: &Path, server: &FakeServer, arguments: &[&str]) -> (i32, String, String) {
    let out = ffmpeg.join("out");
    let fixed = ["stream", "--out", text(&out), "--server", &server.address()];
    run(camlens(&fixed).args(arguments).env("PATH", ffmpeg))
}

fn events(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["event"] == name).count()
}

#[test]
fn a_camera_that_dies_is_read_again_and_every_frame_is_accounted_for() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("error 'Connection reset by peer'; frame 0; frame 0.04; exit 1");
    let (code, stdout, stderr) =
        stream(ffmpeg.path(), &server, &["rtsp://me:secret@camera/gate", "--limit", "6", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let events = events(&stdout);
    assert_eq!((count(&events, "camera_lost"), count(&events, "camera_back")), (2, 2), "{stdout}");
    let summary = summary(&stdout);
    assert_eq!((&summary["read"], &summary["accounted_for"]), (&6.into(), &true.into()), "{summary}");
    let number = |key: &str| summary[key].as_u64().expect("a number");
    assert_eq!(number("sent") + number("unsent"), 6, "{summary}");
    assert_eq!(number("answered"), number("sent"), "{summary}");
    assert_eq!((&summary["camera"]["reconnections"], &summary["decode_errors"]), (&2.into(), &3.into()));
    assert_eq!(summary["camera"]["last_loss"], "ffmpeg says: Connection reset by peer");
    assert_eq!(summary["glass_to_answer_ms"]["count"], summary["answered"]);
    assert!(!stdout.contains("secret") && summary["source"] == "rtsp://camera/gate", "{stdout}");
    let seen = server.seen.lock().expect("the server lives");
    let policy = seen.opens[0].policy.as_ref().expect("a policy");
    assert_eq!(policy.overflow(), camlens::proto::v1::stream_policy::Overflow::Latest);
    assert_eq!((seen.opens.len(), seen.opens[0].source.as_str()), (1, "rtsp://camera/gate"));
}

#[test]
fn a_camera_that_sends_garbage_or_stalls_is_read_again() {
    let server = FakeServer::start();
    for (first_run, loss) in [
        ("printf 'GIF89a ...'", "ffmpeg's output is not a portable pixmap"),
        ("frame 0; exec sleep 600", "no frame for 1 s"),
        ("printf 'P6\\n2 1\\n255\\nab'; error 'out of memory'; exit 1", "ffmpeg says: out of memory"),
    ] {
        let ffmpeg = fake_ffmpeg(&format!("[ $run -gt 0 ] || {{ {first_run}; exit; }}\nframe 0; frame 1; frame 2"));
        let arguments = ["rtsp://camera/1", "--limit", "3", "--stall", "1", "--json"];
        let (code, stdout, stderr) = stream(ffmpeg.path(), &server, &arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{first_run}");
        let summary = summary(&stdout);
        assert_eq!((&summary["read"], &summary["accounted_for"]), (&3.into(), &true.into()), "{summary}");
        assert_eq!(summary["camera"]["last_loss"], loss, "{summary}");
    }
}

#[test]
fn a_camera_that_cannot_be_read_ends_the_stream_after_a_while_and_keeps_its_password() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("error 'rtsp://me:secret@camera/1: Server returned 401 Unauthorized'; exit 1");
    let arguments = ["rtsp://me:secret@camera/1", "--reconnect", "1"];
    let (code, stdout, stderr) = stream(ffmpeg.path(), &server, &arguments);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let last = "error: the camera rtsp://camera/1 cannot be read; \
                ffmpeg says: rtsp://camera/1: Server returned 401 Unauthorized";
    assert_eq!(stderr.lines().last(), Some(last), "{stderr}");
    assert!(stderr.starts_with("the camera is lost: ffmpeg says: ") && !stderr.contains("secret"), "{stderr}");
    let runs = fs::read_to_string(ffmpeg.path().join("runs")).expect("a number").trim().parse::<u32>();
    assert!(runs.is_ok_and(|runs| runs > 1), "it was tried again");
}

#[test]
fn a_frame_that_waited_before_it_came_is_known_to_be_old() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("frame 0; sleep 0.5; frame 0.04; sleep 600");
    let (code, stdout, stderr) = stream(ffmpeg.path(), &server, &["rtsp://camera/1", "--limit", "2", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let ages = events(&stdout).into_iter().filter(|event| event["event"] == "answered");
    let ages: Vec<f64> = ages.map(|event| event["glass_to_answer_ms"].as_f64().expect("milliseconds")).collect();
    assert_eq!(ages.len(), 2, "{stdout}");
    // It came half a second after the first, and was taken 40 ms after it.
    assert!(ages[1] >= 450.0 && ages[1] > ages[0], "{ages:?}");
}

#[test]
fn an_ffmpeg_before_5_1_is_asked_in_its_own_words() {
    let server = FakeServer::start();
    let old = r#"case "$*" in *-fps_mode*) echo "Unrecognized option 'fps_mode'." >&2; exit 1 ;; esac"#;
    let ffmpeg = fake_ffmpeg(&format!("{old}\nframe 0; frame 1"));
    let folder = pictures(&["clip.mp4"]);
    for source in [text(&folder.path().join("clip.mp4")), "rtsp://camera/1"] {
        let arguments = [source, "--limit", "2", "--overflow", "block", "--json"];
        let (code, stdout, stderr) = stream(ffmpeg.path(), &server, &arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{source}");
        let summary = summary(&stdout);
        assert_eq!((&summary["answered"], &summary["decode_errors"]), (&2.into(), &0.into()), "{summary}");
    }
}

#[test]
fn several_sources_have_a_stream_a_folder_and_a_row_each() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("frame 0; error 'error while decoding MB 21 15'; frame 1");
    let folder = pictures(&["f1.jpg", "bad2.jpg"]);
    let arguments = [text(folder.path()), "rtsp://camera/gate", "--overflow", "block", "--limit", "2"];
    let (code, stdout, stderr) = stream(ffmpeg.path(), &server, &arguments);
    assert_eq!(code, 4, "{stderr}");
    assert_eq!(stderr, format!("error: {}: 1 of 2 frames failed\n", folder.path().display()));
    let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = |name: &str| rows.iter().find(|row| row.first() == Some(&name)).expect("a row")[1..8].to_vec();
    assert_eq!(row(text(folder.path())), ["2", "0", "2", "1", "0", "1", "0"]);
    assert_eq!(row("rtsp://camera/gate"), ["2", "0", "2", "2", "0", "0", "0"]);
    assert!(stdout.contains("rtsp://camera/gate: the decoder reported 1 errors\n"), "{stdout}");
    assert!(stdout.contains("every frame is accounted for"), "{stdout}");
    let folders = files(&ffmpeg.path().join("out"));
    assert_eq!(folders.len(), 2);
    assert_eq!(folders[1], "2-gate");
    assert_eq!(files(&ffmpeg.path().join("out/2-gate")), ["000001-gate-1.overlay.jpg", "000002-gate-2.overlay.jpg"]);

    let (_, stdout, _) = stream(ffmpeg.path(), &server, &[&arguments[..], &["--json"]].concat());
    let summary = summary(&stdout);
    assert_eq!((&summary["sent"], &summary["answered"]), (&4.into(), &3.into()), "{summary}");
    assert_eq!(summary["sources"][1]["source"], "rtsp://camera/gate");
}

#[test]
fn settings_of_a_video_reach_ffmpeg() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("echo \"$*\" > \"$here/arguments\"; frame 0");
    let arguments =
        ["testsrc", "--fps", "2", "--width", "320", "--ffmpeg-option", "f=lavfi", "--limit", "1", "--live=false"];
    let (code, _, stderr) = stream(ffmpeg.path(), &server, &arguments);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let said = fs::read_to_string(ffmpeg.path().join("arguments")).expect("ffmpeg was started");
    assert!(said.contains("-f lavfi -i testsrc ") && said.contains("min(320,iw)") && said.contains("t*2"), "{said}");
}

#[test]
fn a_camera_outlives_its_server() {
    let server = FakeServer::start();
    let ffmpeg = fake_ffmpeg("while :; do frame $run; sleep 0.02; done");
    let out = ffmpeg.path().join("out");
    let mut child = camlens(&["stream", "rtsp://camera/1", "--out", text(&out), "--json"])
        .args(["--server", &server.address()])
        .env("PATH", ffmpeg.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut until = |event: &str| loop {
        let line: Value = serde_json::from_str(&lines.next().expect("another line").expect("text")).expect("JSON");
        if line["event"] == event {
            break line;
        }
    };
    until("answered");
    let server = server.restart();
    until("server_lost");
    until("opened");
    until("answered");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(interrupted.success());
    let summary = until("summary");
    assert!(child.wait().expect("an exit").success());
    assert_eq!((&summary["connections"], &summary["accounted_for"]), (&2.into(), &true.into()), "{summary}");
    let number = |key: &str| summary[key].as_u64().expect("a number");
    assert_eq!(number("read"), number("unsent") + number("answered") + number("lost"), "{summary}");
    let sequences: Vec<u64> = server.seen.lock().expect("the server lives").frames.iter().map(|f| f.sequence).collect();
    assert!(sequences.first() > Some(&1) && sequences.is_sorted(), "numbers go on: {sequences:?}");
}
