//! `camlens bench` against the fake server, and against the real one with the built-in model.

use std::io;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fake_server::FakeServer;
use super::{camlens, pictures, run, summary, text};

fn count(result: &Value, field: &str) -> u64 {
    result.pointer(field).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {field} in {result}"))
}

fn number(result: &Value, field: &str) -> f64 {
    result.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {field} in {result}"))
}

#[test]
fn an_open_loop_sends_what_is_due_on_every_stream_and_accounts_for_it() {
    let server = FakeServer::start();
    let address = server.address();
    let loaded = ["--streams", "4", "--connections", "2", "--rate", "50", "--duration", "1", "--warm-up", "0.5"];
    let arguments = [&["bench", "--server", &address, "--size", "16x16", "--json"][..], &loaded].concat();
    let (code, stdout, stderr) = run(&mut camlens(&arguments));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let result = summary(&stdout);
    // 50 frames a second for a second and a half, on each of four streams.
    assert_eq!(count(&result, "/frames/sent") + count(&result, "/frames/unsent"), 300);
    assert_eq!(count(&result, "/frames/answered"), count(&result, "/frames/sent"));
    assert_eq!(number(&result, "/offered_hz").round(), 200.0);
    assert_eq!(result["frames"]["accounted_for"], true);
    assert_eq!((&result["load"]["loop"], &result["model"]["name"]), (&"open".into(), &"fake".into()));
    let measured = count(&result, "/latency_ms/count");
    assert!((1..=200).contains(&measured), "{measured} of the 200 frames after the warm-up");
    assert!(number(&result, "/stages_ms/forward/p50") > 39.9, "the fake says 40 ms");
    assert_eq!(count(&result, "/fairness/streams"), 4);
    assert_eq!(result["processor"], Value::Null, "the fake server's process is this test");
    let seen = server.seen.lock().expect("the server lives");
    assert_eq!((seen.opens.len(), seen.frames.len() as u64), (4, count(&result, "/frames/sent")));
    assert!(seen.frames.iter().any(|frame| frame.tag != seen.frames[0].tag));
}

#[test]
fn a_closed_loop_ends_after_the_given_number_of_frames() {
    let server = FakeServer::start();
    let address = server.address();
    let arguments = ["bench", "--server", &address, "--in-flight", "3", "--frames", "40", "--size", "16x16"];
    let (code, stdout, stderr) = run(camlens(&arguments).env("CAMLENS_WARM_UP", "0"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("frames     40 sent, 40 answered\n"), "{stdout}");
    assert!(stdout.contains("every frame is accounted for") && stdout.contains("latency    p50"), "{stdout}");
    assert!(stdout.contains("forward"), "{stdout}");
}

/// The tags of `camlens bench` do not begin with a letter, so the fake server answers all; it refuses an unknown model.
#[test]
fn a_stream_that_cannot_be_opened_fails_the_bench_before_anything_is_sent() {
    let server = FakeServer::start();
    let (code, _, stderr) = run(&mut camlens(&["bench", "--server", &server.address(), "--model", "unknown"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("cannot open a stream: model.name: there is no unknown"), "{stderr}");
    assert!(server.seen.lock().expect("the server lives").frames.is_empty());
}

#[test]
fn a_source_is_sent_again_and_again() {
    let server = FakeServer::start();
    let frames = pictures(&["a.jpg", "b.jpg", "c.jpg"]);
    let address = server.address();
    let source = ["--payload", "encoded", "--source", text(frames.path()), "--frames", "7", "--warm-up", "0"];
    let (code, _, stderr) = run(&mut camlens(&[&["bench", "--server", &address][..], &source].concat()));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(server.seen.lock().expect("the server lives").frames.len(), 7);
}

/// Sends a signal once frames arrive at the server, and waits for the end.
fn signalled_at_work(server: &FakeServer, bench: Child, name: &str) -> io::Result<Output> {
    let began = Instant::now();
    while server.seen.lock().expect("the server lives").frames.len() < 20 {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing is sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    let kill = format!("kill -{name} {}", bench.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    bench.wait_with_output()
}

#[test]
fn an_interrupt_ends_the_sending_and_prints_what_was_measured() {
    let server = FakeServer::start();
    let address = server.address();
    let arguments = ["bench", "--server", &address, "--rate", "100", "--duration", "600", "--warm-up", "0", "--json"];
    let bench = camlens(&arguments).stdout(Stdio::piped()).spawn().expect("the program starts");
    let output = signalled_at_work(&server, bench, "INT").expect("an exit");
    assert_eq!(output.status.code(), Some(0));
    let result = summary(&String::from_utf8(output.stdout).expect("UTF-8"));
    assert_eq!((&result["interrupted"], &result["frames"]["accounted_for"]), (&true.into(), &true.into()));
    assert!(count(&result, "/frames/answered") >= 20 && number(&result, "/seconds") < 60.0, "{result}");
    // Frames that were due are counted up to the interrupt, not up to the planned end.
    assert!((number(&result, "/offered_hz") - 100.0).abs() < 10.0, "{result}");
}

#[test]
fn a_termination_ends_the_process_at_once_with_an_exit_code_of_its_own() {
    let server = FakeServer::start();
    let address = server.address();
    let arguments = ["bench", "--server", &address, "--rate", "100", "--duration", "600", "--warm-up", "0", "--json"];
    let bench = camlens(&arguments).stdout(Stdio::piped()).spawn().expect("the program starts");
    let output = signalled_at_work(&server, bench, "TERM").expect("an exit");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(143), 0), "handled, as process 1 must");
}

#[test]
fn wrong_usage_of_bench_says_what_is_allowed() {
    for (arguments, said) in [
        (&["--streams", "2", "--slow-readers", "2"][..], "at least one of the streams must read"),
        (&["--rate", "30", "--in-flight", "2"], "cannot be used with"),
        (&["--size", "0x7"], "WIDTHxHEIGHT"),
    ] {
        let (code, _, stderr) = run(&mut camlens(&[&["bench"][..], arguments].concat()));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    let (_, stdout, _) = run(&mut camlens(&["bench", "--help"]));
    assert!(stdout.contains("answered_hz") && stdout.contains("camlens bench --server"), "{stdout}");
}

/// Everything except a network: the command starts a server with the built-in model.
#[test]
fn the_real_server_with_identity_answers_every_frame_of_every_kind() {
    for (payload, answer) in
        [("raw", &[][..]), ("tensor", &["--element", "float16"]), ("encoded", &["--picture", "overlay"])]
    {
        let load =
            ["--streams", "3", "--in-flight", "4", "--overflow", "block", "--duration", "0.5", "--warm-up", "0.2"];
        let fixed = ["bench", "--models", "builtin:identity", "--json", "--size", "224x224", "--payload", payload];
        let (code, stdout, stderr) = run(&mut camlens(&[&fixed[..], &load, answer].concat()));
        assert_eq!((code, stderr.as_str()), (0, ""), "{payload}");
        let result = summary(&stdout);
        assert_eq!((&result["frames"]["accounted_for"], &result["model"]["name"]), (&true.into(), &"identity".into()));
        assert_eq!(count(&result, "/frames/answered"), count(&result, "/frames/sent"));
        assert!(number(&result, "/answered_hz") > 1.0, "{result}");
        assert!(number(&result, "/stages_ms/backward/max") > 0.0, "{result}");
        assert_eq!(result["processor"], Value::Null, "server and client are one process");
    }
}

#[test]
fn streams_that_never_read_are_counted_apart() {
    let load = ["--streams", "3", "--slow-readers", "1", "--rate", "20", "--duration", "1", "--warm-up", "0"];
    let fixed = ["bench", "--models", "builtin:identity", "--json", "--size", "64x64"];
    let (code, stdout, stderr) = run(&mut camlens(&[&fixed[..], &load].concat()));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let result = summary(&stdout);
    assert_eq!((count(&result, "/slow_readers/streams"), count(&result, "/fairness/streams")), (1, 2));
    assert!(count(&result, "/slow_readers/sent") > 0 && result["frames"]["accounted_for"] == true, "{result}");
}
