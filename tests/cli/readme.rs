//! The command lines that the READMEs print are ones that camlens accepts.

use clap::Parser;

/// With the fewest command lines that each must have.
const READMES: [(&str, usize, &str); 5] = [
    ("README.md", 6, include_str!("../../README.md")),
    ("deploy/README.md", 6, include_str!("../../deploy/README.md")),
    ("deploy/kubernetes.md", 4, include_str!("../../deploy/kubernetes.md")),
    ("deploy/capacity.md", 2, include_str!("../../deploy/capacity.md")),
    ("proto/README.md", 0, include_str!("../../proto/README.md")),
];

/// The lines of a document's shell blocks that run camlens, continued lines joined, comments removed.
fn command_lines(document: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for block in document.split("\n```sh\n").skip(1) {
        let block = block.split("\n```").next().expect("split gives at least one part");
        for line in block.replace("\\\n", " ").lines().filter(|line| line.starts_with("camlens ")) {
            // Comments: `# …` between backquotes within a continued line, # … at the end of one.
            let without: String = line.split('`').step_by(2).collect();
            let command = without.split(" #").next().expect("split gives at least one part");
            lines.push(command.split_whitespace().map(str::to_owned).collect());
        }
    }
    lines
}

#[test]
fn every_command_line_of_the_readmes_is_accepted() {
    for (name, fewest, document) in READMES {
        let lines = command_lines(document);
        assert!(lines.len() >= fewest, "{name} has {} command lines", lines.len());
        for line in lines {
            if let Err(error) = camlens::cli::Cli::try_parse_from(&line) {
                panic!("{name}: `{}`: {error}", line.join(" "));
            }
        }
    }
}
