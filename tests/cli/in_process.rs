//! Commands without a server: each starts one in its own process, which needs no folder that can be written to.

use std::path::Path;

use super::{camlens, run, text};

/// Runs a command where nothing can be written but what it is told to write. Returns what it prints.
fn run_with_no_temporary_folder(arguments: &[&str]) -> String {
    let mut command = camlens(&[arguments, &["--models", "builtin:identity"]].concat());
    command.env("TMPDIR", "/nonexistent").env("HOME", "/nonexistent").current_dir("/proc");
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
    stdout
}

#[test]
fn explain_says_whether_the_model_predicts_what_was_expected() {
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing/444.jpg");
    let photograph = text(&photograph);
    let out = tempfile::tempdir().expect("a temporary folder");
    let explain = |more: &[&str]| {
        run_with_no_temporary_folder(&[&["explain", photograph, "--out", text(out.path())], more].concat())
    };
    let json = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&explain(&[&["--json"], more].concat())).expect("JSON")
    };
    let before = json(&[]);
    assert!(before[0]["agreement"].is_null(), "nothing was expected");
    let top = &before[0]["predictions"][0];
    let (class, probability) = (top["class_index"].to_string(), top["probability"].as_f64().expect("a number") as f32);
    let label = top["label"].as_str().expect("the built-in model has labels");
    let same = explain(&["--expected", &format!("class:{class}:{probability}")]);
    assert!(same.contains(&format!("agrees with what was expected: {label} with {probability}")), "{same}");
    let other = format!("{}:0.125", before[0]["predictions"][1]["class_index"]);
    let printed = explain(&["--expected", &other]);
    assert!(
        printed.contains("disagrees with what was expected")
            && printed.contains("with probability 0.125; the top class here is"),
        "{printed}"
    );
    let agreement = &json(&["--expected", &other])[0]["agreement"];
    assert_eq!((agreement["agrees"].as_bool(), agreement["expected_probability"].as_f64()), (Some(false), Some(0.125)));
    assert_eq!(agreement["top"]["class_index"], top["class_index"]);
}

#[test]
fn commands_with_a_server_of_their_own_need_no_temporary_folder() {
    let photograph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing/444.jpg");
    let photograph = text(&photograph);
    let out = tempfile::tempdir().expect("a temporary folder");
    let out = text(out.path());
    assert!(run_with_no_temporary_folder(&["models"]).contains("identity@1"));
    run_with_no_temporary_folder(&["explain", photograph, "--out", out]);
    run_with_no_temporary_folder(&["stream", photograph, "--out", out]);
    run_with_no_temporary_folder(&["trace", photograph, "--frames", "3"]);
    let bench = ["bench", "--frames", "20", "--streams", "2", "--connections", "2", "--json"];
    let report = run_with_no_temporary_folder(&bench);
    assert!(report.contains("\"missing\""), "{report}");
}
