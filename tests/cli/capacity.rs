//! `camlens capacity`, and the tables of `deploy/capacity.md`: each of its rows is what the command says.

use serde_json::Value;

use super::{camlens, run};

const PAGE: &str = include_str!("../../deploy/capacity.md");

fn json(arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = run(camlens(&["capacity", "--json"]).args(arguments));
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).expect("JSON")
}

/// The blocks of the page that show a command line and what it prints.
fn sessions() -> Vec<(Vec<String>, String)> {
    let blocks = PAGE.split("\n```console\n").skip(1).map(|block| block.split("\n```").next().expect("its end"));
    let session = |block: &str| {
        let (command, output) = block.split_once('\n').expect("a command and its output");
        let words = command.strip_prefix("$ camlens ").expect("a command line of camlens").split_whitespace();
        (words.map(str::to_owned).collect(), format!("{output}\n"))
    };
    blocks.map(session).collect()
}

#[test]
fn the_page_shows_what_the_command_prints() {
    let sessions = sessions();
    assert!(sessions.len() >= 2, "{} sessions", sessions.len());
    for (command, output) in sessions {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = run(&mut camlens(&words));
        assert_eq!((code, stdout), (0, output), "{command:?}: {stderr}");
    }
}

#[test]
fn the_table_of_the_page_is_made_of_the_commands_answers() {
    // | cameras | devices … |, one column for each kind of device, whose options stand in the head.
    let mut rows = PAGE.lines().skip_while(|line| !line.starts_with("| cameras |"));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace(',', "")).collect()
    };
    let head = cells(rows.next().expect("the table's head"));
    let kinds: Vec<Vec<String>> = head[1..]
        .iter()
        .map(|cell| cell.split('`').nth(1).expect("options").split_whitespace().map(str::to_owned).collect())
        .collect();
    let mut checked = 0;
    for line in rows.skip(1).take_while(|line| line.starts_with('|')) {
        let row = cells(line);
        for (kind, cell) in kinds.iter().zip(&row[1..]) {
            let mut options: Vec<&str> = kind.iter().map(String::as_str).collect();
            options.extend(["--streams", &row[0]]);
            assert_eq!(json(&options)["devices"].to_string(), *cell, "{options:?}");
            checked += 1;
        }
    }
    assert!(checked >= 18, "{checked} cells");
}

#[test]
fn a_goal_that_no_device_keeps_is_an_error_that_says_what_it_can_do() {
    let (code, _, stderr) = run(&mut camlens(&["capacity", "--frame-ms", "50", "--rate", "30"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("explains 16.0 frames per second with --utilisation 0.8"), "{stderr}");
    let (code, _, stderr) =
        run(&mut camlens(&["capacity", "--frame-ms", "50", "--rate", "5", "--latency-ms", "60", "--other-ms", "11"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("a frame alone takes 61 ms, more than the goal of 60.0 ms"), "{stderr}");
    for wrong in [
        &["--frame-ms", "0", "--rate", "5"][..],
        &["--frame-ms", "20", "--rate", "5", "--batch", "8"],
        &["--frame-ms", "20", "--rate", "5", "--batch", "8", "--batch-ms", "19"],
        &["--frame-ms", "20", "--rate", "5", "--utilisation", "1.1"],
        &["--frame-ms", "20", "--rate", "5", "--max-streams", "100001"],
    ] {
        let (code, _, stderr) = run(camlens(&["capacity"]).args(wrong));
        assert_eq!(code, 2, "{wrong:?}: {stderr}");
    }
}

#[test]
fn the_largest_and_smallest_numbers_that_are_allowed_have_an_answer() {
    let large =
        ["--streams", "10000000", "--max-streams", "100000", "--devices-per-node", "10000", "--lost-nodes", "10000"];
    for placement in ["even", "random"] {
        let fast = json(&[&["--frame-ms", "0.001", "--rate", "0.001", "--placement", placement][..], &large].concat());
        assert_eq!(fast["streams_per_device"], 100_000, "the servers' limit");
        let slow = ["--frame-ms", "800", "--rate", "1", "--latency-ms", "3600000", "--placement", placement];
        assert_eq!(json(&[&slow[..], &large].concat())["streams_per_device"], 1);
    }
}

#[test]
fn a_lost_node_needs_its_devices_again() {
    let options = ["--frame-ms", "20", "--rate", "5", "--streams", "160", "--devices-per-node", "4"];
    let plan = json(&options);
    assert_eq!((&plan["devices"], &plan["nodes"]), (&20.into(), &5.into()), "8 streams a device");
    assert_eq!(plan["devices_with_spare"], 24);
    // 16 devices of 50 frames a second are just enough for 800.
    assert_eq!(plan["answered_without_spare"], 1.0);
    let two = json(&[&options[..], &["--lost-nodes", "2"]].concat());
    assert_eq!((&two["devices_with_spare"], &two["answered_without_spare"]), (&28.into(), &0.75.into()));
}
