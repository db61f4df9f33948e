//! What a running stream prints: lines of JSON, or sentences beside the progress bar.

use std::io::{self, Write};

use indicatif::ProgressBar;
use serde_json::Value;

use crate::cli::failure::Failure;
use crate::cli::source::camera::CameraNotice;
use serde_json::json;

/// Prints for one source. Clones print to the same terminal.
#[derive(Debug, Clone)]
pub struct Printer {
    pub json: bool,
    pub bar: ProgressBar,
    /// The source's name, in every line of JSON.
    pub source: String,
    /// Whether sentences begin with the source's name: there are several sources.
    pub is_named: bool,
}

impl Printer {
    /// One event as a line of JSON. Without --json it prints nothing.
    pub fn event(&self, mut event: Value) -> Result<(), Failure> {
        if self.json {
            event["source"] = self.source.as_str().into();
            writeln!(io::stdout().lock(), "{event}")?;
        }
        Ok(())
    }

    /// A sentence on standard output. With --json it prints nothing.
    pub fn say(&self, sentence: &str) -> Result<(), Failure> {
        self.sentence(sentence, &mut io::stdout())
    }

    /// A sentence on standard error. With --json it prints nothing.
    pub fn warn(&self, sentence: &str) -> Result<(), Failure> {
        self.sentence(sentence, &mut io::stderr())
    }

    fn sentence(&self, sentence: &str, to: &mut dyn Write) -> Result<(), Failure> {
        if !self.json {
            let source = if self.is_named { format!("{}: ", self.source) } else { String::new() };
            self.bar.suspend(|| writeln!(to, "{source}{sentence}"))?;
        }
        Ok(())
    }

    /// A camera that is lost or back. A closed output ends the stream when its next answer is printed.
    pub fn camera(&self, notice: &CameraNotice) {
        let _ = match notice {
            CameraNotice::Lost { why, wait } => {
                let event = json!({"event": "camera_lost", "reason": why, "retry_in_seconds": wait.as_secs_f64()});
                self.event(event).and_then(|()| self.warn(&format!("the camera is lost: {why}; trying again")))
            }
            CameraNotice::Back { away } => {
                let away = away.as_secs_f64();
                let event = json!({"event": "camera_back", "away_seconds": away});
                self.event(event).and_then(|()| self.warn(&format!("the camera is back after {away:.1} s")))
            }
        };
    }
}
