//! The command line as users run it, against a fake server that computes nothing.

mod bench;
mod built;
mod cameras;
mod capacity;
mod cgroups;
mod fake_server;
mod in_process;
mod kernels;
mod processor_time;
mod readme;
mod shown;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use camlens::proto::v1;
use fake_server::FakeServer;
use serde_json::Value;

fn camlens(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_camlens"));
    // The environment of the test run must not reach the program.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMLENS_") || name == "NO_COLOR") {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The exit code, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit code, not a signal"), text(stdout), text(stderr))
}

/// A folder with a file for each name. The fake server looks at names only.
fn pictures(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    names.iter().for_each(|name| fs::write(folder.path().join(name), b"pixels").expect("a small file"));
    folder
}

/// Kills a process that is there after `patience`, unless what is returned was dropped before: a log line that never
/// comes must not hold up the tests.
fn killed_after(patience: Duration, process: &Child) -> Sender<()> {
    let (alive, is_over) = mpsc::channel();
    let id = process.id().to_string();
    thread::spawn(move || {
        if is_over.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-9", &id]).status();
        }
    });
    alive
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn summary(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn a_stream_writes_a_numbered_picture_for_each_answer_and_accounts_for_every_frame() {
    let server = FakeServer::start();
    let frames = pictures(&["f1.jpg", "f2.jpg", "old3.jpg", "f10.jpg"]);
    let out = frames.path().join("out");
    let (code, stdout, stderr) =
        run(&mut camlens(&["stream", text(frames.path()), "--out", text(&out), "--server", &server.address()]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(files(&out), ["000001-f1.overlay.jpg", "000002-f2.overlay.jpg", "000003-f10.overlay.jpg"]);
    assert!(stdout.contains("4 frames sent: 3 answered, 1 dropped (replaced 1), 0 failed"), "{stdout}");
    assert!(stdout.contains("every frame is accounted for") && stdout.contains("forward "), "{stdout}");
    let seen = server.seen.lock().expect("the server lives");
    assert_eq!(seen.opens[0].source, text(frames.path()));
    assert!(seen.frames.iter().all(|frame| frame.capture_time.is_some()));
}

#[test]
fn a_failing_frame_is_shown_and_makes_the_exit_code_4() {
    let server = FakeServer::start();
    let frames = pictures(&["bad1.jpg", "f2.jpg"]);
    let out = frames.path().join("out");
    let arguments = ["stream", text(frames.path()), "--out", text(&out), "--server", &server.address()];
    let (code, stdout, stderr) = run(&mut camlens(&arguments));
    assert_eq!((code, stderr.as_str()), (4, "error: 1 of 2 frames failed\n"));
    assert!(stdout.contains("frame 1 (bad1.jpg): encoded.data: not an image (INVALID_ARGUMENT)"), "{stdout}");

    let (code, stdout, _) = run(camlens(&arguments).env("CAMLENS_JSON", "1"));
    assert_eq!(code, 4);
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().expect("an event")).collect();
    assert_eq!(events, ["opened", "failed", "answered", "summary"]);
    assert_eq!((&lines[1]["field"], &lines[2]["tag"]), (&"encoded.data".into(), &"f2.jpg".into()));
    assert_eq!(lines[3]["failed"]["INVALID_ARGUMENT"], 1);
}

#[test]
fn a_frame_that_never_ends_ends_twice_or_comes_back_altered_is_the_servers_fault_and_noticed() {
    let server = FakeServer::start();
    for (name, said) in [
        ("lost2.jpg", "1 frames have no ending; the first is frame 2"),
        ("twice2.jpg", "1 endings of frames that were not open"),
        ("mixed2.jpg", "another tag or capture time for 1 frames; the first is frame 2"),
        ("late2.jpg", "another tag or capture time for 1 frames; the first is frame 2"),
    ] {
        let frames = pictures(&["f1.jpg", name]);
        let out = frames.path().join("out");
        let (code, _, stderr) =
            run(&mut camlens(&["stream", text(frames.path()), "--out", text(&out), "--server", &server.address()]));
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn a_server_that_goes_away_ends_the_sending_and_says_so() {
    let server = FakeServer::start();
    let frames = pictures(&["a1.jpg", "bye2.jpg"]);
    let out = frames.path().join("out");
    let (code, stdout, stderr) = run(&mut camlens(&[
        "stream",
        text(frames.path()),
        "--out",
        text(&out),
        "--server",
        &server.address(),
        "--repeat",
        "0",
        "--reconnect",
        "0",
        "--json",
    ]));
    assert_eq!(code, 3, "{stderr}");
    let summary = summary(&stdout);
    assert_eq!((&summary["answered"], &summary["missing"]), (&1.into(), &0.into()));
    assert!(summary["not_accepted"].as_u64().is_some_and(|count| count >= 1), "{summary}");
}

#[test]
fn frames_that_were_not_accepted_are_sent_again_with_their_sequences() {
    let server = FakeServer::start();
    let frames = pictures(&["a1.jpg", "bye2.jpg", "c3.jpg"]);
    let out = frames.path().join("out");
    let (code, stdout, stderr) =
        run(&mut camlens(&["stream", text(frames.path()), "--out", text(&out), "--server", &server.address()]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.starts_with("the server is going away: SIGTERM\nthe server is lost: "), "{stderr}");
    assert!(stdout.starts_with("3 frames sent: 3 answered, 0 dropped, 0 failed\n"), "{stdout}");
    assert!(stdout.contains("the stream was opened 2 times\nevery frame is accounted for\n"), "{stdout}");
    assert_eq!(files(&out), ["000001-a1.overlay.jpg", "000002-bye2.overlay.jpg", "000003-c3.overlay.jpg"]);
    assert_eq!(server.seen.lock().expect("the server lives").opens.len(), 2);
}

#[test]
fn a_frame_that_breaks_the_connection_each_time_is_lost_and_the_others_are_answered() {
    let server = FakeServer::start();
    let frames = pictures(&["a1.jpg", "break2.jpg", "c3.jpg"]);
    let out = frames.path().join("out");
    let arguments = ["stream", text(frames.path()), "--out", text(&out), "--server", &server.address(), "--json"];
    let (code, stdout, stderr) = run(&mut camlens(&arguments));
    assert_eq!((code, stderr.as_str()), (4, "error: 1 of 3 frames were lost with their connection\n"));
    let summary = summary(&stdout);
    assert_eq!((&summary["answered"], &summary["lost"], &summary["connections"]), (&2.into(), &1.into(), &4.into()));
    assert_eq!(summary["accounted_for"], true);
    let seen = server.seen.lock().expect("the server lives");
    assert_eq!(seen.frames.iter().filter(|frame| frame.sequence == 2).count(), 3);
}

#[test]
fn a_long_stream_keeps_within_its_credit_and_is_cut_at_its_limit() {
    let server = FakeServer::start();
    let frames = pictures(&["f1.jpg", "f2.jpg", "f3.jpg"]);
    let out = frames.path().join("out");
    let (code, stdout, stderr) = run(&mut camlens(&[
        "stream",
        text(frames.path()),
        "--out",
        text(&out),
        "--server",
        &server.address(),
        "--repeat",
        "0",
        "--limit",
        "50",
        "--json",
        "--rate",
        "2000",
        "--target",
        "cup",
        "--model",
        "fake@3",
    ]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let summary = summary(&stdout);
    assert_eq!(
        (&summary["sent"], &summary["answered"], &summary["accounted_for"]),
        (&50.into(), &50.into(), &true.into())
    );
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds >= 49.0 / 2000.0), "{summary}");
    let seen = server.seen.lock().expect("the server lives");
    let open = &seen.opens[0];
    assert_eq!(open.model, Some(v1::ModelSelector { name: "fake".into(), version: Some(3) }));
    assert_eq!(open.options.as_ref().map(|options| options.targets.len()), Some(1));
    let sequences: Vec<u64> = seen.frames.iter().map(|frame| frame.sequence).collect();
    assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
}

#[test]
fn a_stream_that_cannot_be_opened_says_why() {
    let server = FakeServer::start();
    let frames = pictures(&["f1.jpg"]);
    let (code, _, stderr) = run(&mut camlens(&[
        "stream",
        text(frames.path()),
        "--out",
        text(frames.path()),
        "--server",
        &server.address(),
        "--model",
        "unknown",
    ]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("there is no unknown; there is fake (NOT_FOUND)"), "{stderr}");
}

/// A folder with an `ffmpeg` that is a shell script.
fn script_named_ffmpeg(lines: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ffmpeg");
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("a small file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    folder
}

#[test]
fn a_video_comes_through_ffmpeg_as_raw_pixels() {
    let server = FakeServer::start();
    let folder = pictures(&["clip.mp4"]);
    let (clip, out) = (folder.path().join("clip.mp4"), folder.path().join("out"));
    let ffmpeg = script_named_ffmpeg(r"printf 'P6\n2 1\n255\nabcdefP6\n2 1\n255\nghijkl'");
    let arguments = ["stream", text(&clip), "--out", text(&out), "--server", &server.address()];
    let (code, _, stderr) = run(camlens(&arguments).env("PATH", ffmpeg.path()));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(files(&out), ["000001-clip.mp4-1.overlay.jpg", "000002-clip.mp4-2.overlay.jpg"]);
    let seen = server.seen.lock().expect("the server lives");
    let Some(v1::frame::Payload::Raw(raw)) = &seen.frames[1].payload else { panic!("{:?}", seen.frames[1].payload) };
    assert_eq!(
        (raw.width, raw.height, raw.pixel_format(), &raw.data[..]),
        (2, 1, v1::PixelFormat::Rgb8, &b"ghijkl"[..])
    );
}

#[test]
fn a_video_that_breaks_off_or_an_ffmpeg_that_is_missing_is_said() {
    let server = FakeServer::start();
    let folder = pictures(&["clip.mp4"]);
    let (clip, out) = (folder.path().join("clip.mp4"), folder.path().join("out"));
    let arguments = ["stream", text(&clip), "--out", text(&out), "--server", &server.address()];
    let broken = script_named_ffmpeg(r"printf 'P6\n1 1\n255\nabcP6\n1 1\n'; echo 'moov atom not found' >&2; exit 1");
    let (code, _, stderr) = run(camlens(&arguments).env("PATH", broken.path()));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("breaks off after 1 frames; ffmpeg says: moov atom not found"), "{stderr}");

    let (code, _, stderr) = run(camlens(&arguments).env("PATH", folder.path()));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("needs ffmpeg, which is not installed\nhint: install it"), "{stderr}");
}

#[test]
fn pictures_are_explained_into_files_json_and_a_report() {
    let server = FakeServer::start();
    let folder = pictures(&["cup.png", "bad.png"]);
    let (out, html) = (folder.path().join("out"), folder.path().join("report.html"));
    let cup = folder.path().join("cup.png");
    let (code, stdout, stderr) = run(&mut camlens(&[
        "explain",
        text(&cup),
        text(&folder.path().join("bad.png")),
        "--out",
        text(&out),
        "--server",
        &server.address(),
        "--map",
        "grad-cam",
        "--html",
        text(&html),
        "--json",
        "--layer",
        "layer4",
        "--opacity",
        "0",
    ]));
    assert_eq!(code, 4, "{stderr}");
    let results: Value = serde_json::from_str(&stdout).expect("one JSON document");
    assert_eq!(results[0]["predictions"][0]["label"], "cup <1>");
    let overlay = PathBuf::from(results[0]["targets"][0]["files"]["overlay"].as_str().expect("a path"));
    assert_eq!(fs::read(overlay).expect("a file"), b"picture of cup.png");
    assert_eq!(files(&out), ["cup.grad_cam.npy", "cup.guided_grad_cam.png", "cup.heat_map.png", "cup.overlay.png"]);
    assert!(results[1]["error"].as_str().is_some_and(|error| error.contains("INVALID_ARGUMENT")), "{results}");
    let html = fs::read_to_string(html).expect("a report");
    assert!(html.contains("cup &lt;1&gt;") && html.contains("data:image/png;base64,"));
    let seen = server.seen.lock().expect("the server lives");
    let options = seen.requests[0].options.as_ref().expect("options");
    assert_eq!(options.target_layers, ["layer4"]);
    assert_eq!(options.pictures[0].opacity, Some(0.0));
}

#[test]
fn one_picture_that_fails_is_one_sentence_and_no_colours_leave_a_pipe() {
    let server = FakeServer::start();
    let folder = pictures(&["bad.png", "cup.png"]);
    let out = folder.path().join("out");
    let explain = |name: &str| {
        let image = folder.path().join(name);
        run(&mut camlens(&["explain", text(&image), "--out", text(&out), "--server", &server.address()]))
    };
    let (code, _, stderr) = explain("bad.png");
    assert_eq!(
        (code, stderr.as_str()),
        (2, "error: cannot explain bad.png: encoded.data: not an image (INVALID_ARGUMENT)\n")
    );
    let (code, stdout, _) = explain("cup.png");
    assert_eq!(code, 0);
    assert!(stdout.contains("1. cup <1>") && stdout.contains("75.0 %"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "{stdout:?}");
    let (code, _, stderr) = explain("none.png");
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cannot read") && stderr.contains("none.png"), "{stderr}");
}

#[test]
fn a_flag_wins_over_the_environment() {
    let server = FakeServer::start();
    let (code, stdout, stderr) =
        run(camlens(&["models", "fake", "--server", &server.address()]).env("CAMLENS_SERVER", "unix:/nowhere"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("fake@3") && stdout.contains("target layer   layer4"), "{stdout}");
    let (code, _, stderr) = run(camlens(&["models", "fake"]).env("CAMLENS_SERVER", "unix:/nowhere"));
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("no server at unix:/nowhere: No such file or directory"), "{stderr}");
    let (code, _, stderr) = run(&mut camlens(&["models", "none", "--server", &server.address()]));
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let server = FakeServer::start();
    let mut child = camlens(&["models", "--server", &server.address()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an exit");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn health_is_the_exit_code() {
    let server = FakeServer::start();
    let ask = |more: &[&str]| run(camlens(&["health", "--server", &server.address()]).args(more));
    assert_eq!(ask(&[]), (0, String::new(), String::new()));
    let (code, _, stderr) = ask(&["--service", "asleep"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("NOT_SERVING"), "{stderr}");
}

#[test]
fn health_waits_for_a_server_that_is_still_starting() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let link = folder.path().join("late.sock");
    let address = format!("unix:{}", link.display());
    let mut probe = camlens(&["health", "--server", &address, "--wait", "60"]).spawn().expect("the program starts");
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(probe.try_wait().expect("a child").is_none(), "the probe gave up at once");
    let server = FakeServer::start();
    std::os::unix::fs::symlink(server.socket(), &link).expect("a link in a fresh folder");
    assert_eq!(probe.wait().expect("an exit").code(), Some(0));
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_shows_examples() {
    let (code, _, stderr) = run(&mut camlens(&["explain"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("<IMAGE>"), "{stderr}");
    let (code, _, stderr) = run(&mut camlens(&["models", "--log", "camlens=loud"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("`camlens=loud` is no log filter"), "{stderr}");
    let (code, stdout, _) = run(&mut camlens(&["stream", "--help"]));
    assert_eq!(code, 0);
    assert!(stdout.contains("camlens stream clip.webp --overflow latest --rate 30"), "{stdout}");
}
