//! The Python process that runs the other libraries, and the requests to it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{Arguments, Result};

pub struct Peers {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Its first line: the libraries that run, and those that cannot, with the reason.
    pub facts: serde_json::Value,
}

impl Peers {
    pub fn start(arguments: &Arguments, model: &str, rows: usize, scratch: &Path) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = match &arguments.python {
            Some(python) => python.clone(),
            None => {
                let made =
                    Command::new(root.join("deploy/python-env")).arg("bench").stderr(Stdio::inherit()).output()?;
                if !made.status.success() {
                    return Err("deploy/python-env bench failed; what it says is above".into());
                }
                PathBuf::from(String::from_utf8(made.stdout)?.trim())
            }
        };
        let mut child = Command::new(python)
            .arg(root.join("tests/bench/peers.py"))
            .args([
                "--model",
                model,
                "--rows",
                &rows.to_string(),
                "--threads",
                &arguments.threads.to_string(),
                "--export",
            ])
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut peers = Peers { child, questions, answers, facts: serde_json::Value::Null };
        peers.facts = peers.read()?;
        for (name, reason) in peers.facts["cannot"].as_object().into_iter().flatten() {
            println!("{name} cannot run it: {reason}");
        }
        if peers.facts["guided"] == false {
            println!("the libraries guide nothing here: the network has no ReLU modules");
        }
        Ok(peers)
    }

    /// The runs that it supports.
    pub fn runs(&self) -> Vec<String> {
        let runs = self.facts["runs"].as_array().into_iter().flatten();
        runs.filter_map(|run| run.as_str().map(str::to_owned)).collect()
    }

    pub fn ask(&mut self, question: &str) -> Result<serde_json::Value> {
        writeln!(self.questions, "{question}")?;
        self.questions.flush()?;
        self.read()
    }

    pub fn seconds(&mut self, run: &str) -> Result<f64> {
        Ok(self.ask(&format!("run {run}"))?["seconds"].as_f64().ok_or("no seconds in the answer")?)
    }

    fn read(&mut self) -> Result<serde_json::Value> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // Lines that the libraries print are skipped: answers are JSON objects.
            if line.starts_with('{') {
                let answer: serde_json::Value = serde_json::from_str(&line)?;
                return match answer.get("error") {
                    Some(error) => Err(format!("peers.py: {error}").into()),
                    None => Ok(answer),
                };
            }
            line.clear();
        }
        Err("tests/bench/peers.py ended; its last words are above".into())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = writeln!(self.questions, "quit");
        let _ = self.child.wait();
    }
}
