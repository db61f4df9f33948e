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
