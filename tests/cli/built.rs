//! What was built: the version that the program tells, and where it looks for its libraries.

use std::path::Path;
use std::process::Command;

use super::{camlens, run};

#[test]
fn the_version_is_one_line() {
    let line = format!("camlens {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(run(&mut camlens(&[flag])), (0, line.clone(), String::new()), "{flag}");
    }
}

#[test]
fn the_verbose_version_has_the_facts_of_the_build() {
    let (code, stdout, stderr) = run(&mut camlens(&["--version", "--verbose"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some(concat!("camlens ", env!("CARGO_PKG_VERSION"))));
    let facts: Vec<(&str, &str)> = lines.map(|line| line.split_once(": ").expect("NAME: VALUE")).collect();
    let names: Vec<&str> = facts.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["commit", "rustc", "target", "profile", "libtorch", "cuda bridge", "protocol"]);
    let fact = |name: &str| facts.iter().find(|(known, _)| *known == name).expect("it is listed").1;
    assert!(fact("rustc").starts_with("rustc 1."), "{stdout}");
    assert!(fact("target").starts_with(std::env::consts::ARCH), "{stdout}");
    assert_eq!((fact("libtorch"), fact("protocol")), ("2.11.0", "camlens.v1"));
    let bridge = if beside_the_program("libcamlens_cuda.so").exists() { "built" } else { "not built" };
    assert_eq!(fact("cuda bridge"), bridge);
    let head = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]).output();
    let head =
        head.ok().filter(|head| head.status.success()).map(|head| String::from_utf8_lossy(&head.stdout).into_owned());
    match (option_env!("CAMLENS_COMMIT"), head) {
        (Some(given), _) if !given.is_empty() => assert_eq!(fact("commit"), given),
        // A tree whose git keeps no log of HEAD does not know it.
        (_, Some(head)) => assert!([head.trim(), "unknown"].contains(&fact("commit")), "{stdout}"),
        (_, None) => assert_eq!(fact("commit"), "unknown"),
    }
}

#[test]
fn without_a_command_the_program_says_what_there_is() {
    for (arguments, said) in
        [(&[][..], "Usage: camlens"), (&["--log", "debug"], "a command is missing"), (&["--verbose"], "--version")]
    {
        let (code, _, stderr) = run(&mut camlens(arguments));
        assert!(code == 2 && stderr.contains(said), "{arguments:?}: {code} {stderr}");
    }
}

fn beside_the_program(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_BIN_EXE_camlens")).with_file_name(name)
}

/// The values of RUNPATH and RPATH in a file's dynamic section.
fn run_paths(file: &Path) -> Vec<String> {
    let read = Command::new("readelf").arg("-dW").arg(file).env("LC_ALL", "C").output().expect("readelf, of binutils");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let section = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(section.contains("(NEEDED)"), "{}: {section}", file.display());
    let paths = section.lines().filter(|line| line.contains("(RUNPATH)") || line.contains("(RPATH)"));
    paths.map(|line| line.split_once('[').expect("[PATH]").1.trim_end_matches(']').to_owned()).collect()
}

#[test]
fn no_binary_looks_for_libraries_where_it_was_built() {
    let program = Path::new(env!("CARGO_BIN_EXE_camlens"));
    let this_test = std::env::current_exe().expect("a path");
    for file in [program, &this_test] {
        assert_eq!(run_paths(file), ["$ORIGIN/../lib:$ORIGIN"], "{}", file.display());
    }
    let bridge = beside_the_program("libcamlens_cuda.so");
    if bridge.exists() {
        assert_eq!(run_paths(&bridge), [""; 0], "whoever loads it says where libraries are");
    }
}

#[test]
fn the_program_runs_from_anywhere_with_its_libraries_beside_it() {
    // In the target folder, so that the program need not be copied.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (bin, lib) = (folder.path().join("bin"), folder.path().join("lib"));
    std::fs::create_dir(&bin).expect("a folder");
    let moved = bin.join("camlens");
    std::fs::hard_link(env!("CARGO_BIN_EXE_camlens"), &moved).expect("one file system");
    let version =
        || Command::new(&moved).arg("--version").env_remove("LD_LIBRARY_PATH").output().expect("it is a program");
    let alone = version();
    let missing = String::from_utf8_lossy(&alone.stderr);
    assert!(!alone.status.success() && missing.contains("libtorch_cpu.so"), "{missing}");
    std::os::unix::fs::symlink(beside_the_program("../lib").canonicalize().expect("libtorch"), &lib).expect("a link");
    let with_libraries = version();
    assert!(with_libraries.status.success(), "{}", String::from_utf8_lossy(&with_libraries.stderr));
}
