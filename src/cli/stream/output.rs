//! Writes a stream's messages to files, the terminal and the stream's sinks.

use std::time::Duration;

use serde_json::json;

use super::printer::Printer;
use super::sink::Sink;
use crate::cli::answer::{self, OutputFolder, class_name, identity_json};
use crate::cli::failure::Failure;
use crate::cli::summary::{self, FAILURES_SHOWN};
use crate::client::{Answered, Event, names};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::telemetry::status_name;

/// The output of one source's stream.
pub struct Output {
    pub printer: Printer,
    pub folder: OutputFolder,
    pub sinks: Vec<Box<dyn Sink>>,
    pub model: Option<v1::ModelIdentity>,
    /// Whether capture times are a camera's.
    pub is_live: bool,
    failures: usize,
}

impl Output {
    pub fn new(printer: Printer, folder: OutputFolder, sinks: Vec<Box<dyn Sink>>, is_live: bool) -> Self {
        Output { printer, folder, sinks, model: None, is_live, failures: 0 }
    }

    pub fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        for sink in &mut self.sinks {
            sink.take(event)?;
        }
        match event {
            Event::Message(message, answered) => self.message(message, *answered),
            Event::Disconnected { why, wait } => {
                let wait_s = wait.as_secs_f64();
                self.printer.warn(&format!("the server is lost: {why}; trying again"))?;
                self.printer.event(json!({"event": "server_lost", "reason": why, "retry_in_seconds": wait_s}))
            }
        }
    }

    fn message(&mut self, message: &Response, answered: Option<&Answered>) -> Result<(), Failure> {
        match message {
            Response::Opened(opened) => {
                self.model = opened.model.clone();
                self.printer.event(json!({
                    "event": "opened",
                    "stream_id": opened.stream_id,
                    "model": opened.model.as_ref().map(identity_json),
                    "max_in_flight": opened.max_in_flight,
                }))
            }
            Response::Explanation(answer) => self.answered(answer, answered),
            Response::Dropped(run) => {
                self.printer.bar.inc(run.count);
                self.printer.event(json!({
                    "event": "dropped",
                    "first_sequence": run.first_sequence,
                    "last_sequence": run.last_sequence,
                    "count": run.count,
                    "reason": names::drop_reason(run.reason),
                }))
            }
            Response::FrameError(error) => self.failed(error),
            Response::GoingAway(going) => {
                self.printer.warn(&format!("the server is going away: {}", going.reason))?;
                self.printer.event(json!({
                    "event": "going_away",
                    "last_accepted_sequence": going.last_accepted_sequence,
                    "reason": going.reason,
                }))
            }
        }
    }

    fn answered(&mut self, answer: &v1::Explanation, answered: Option<&Answered>) -> Result<(), Failure> {
        let tag = String::from_utf8_lossy(&answer.tag).into_owned();
        let name =
            tag.rsplit_once('.').filter(|(_, ending)| !ending.contains('#')).map_or(tag.as_str(), |(stem, _)| stem);
        let stem = self.folder.stem_of(answer.sequence, name);
        let written = self.folder.write(&stem, answer, 0)?;
        if let Some(top) = answer.predictions.first() {
            let class = class_name(&top.label, top.class_index);
            self.printer.bar.set_message(format!("{class} {:.0} %", top.probability * 100.0));
        }
        self.printer.bar.inc(1);
        let ms = |of: fn(&Answered) -> Duration| answered.map(|answered| of(answered).as_secs_f64() * 1e3);
        let mut event = answer::to_json(answer, &written);
        event["event"] = "answered".into();
        event["tag"] = tag.into();
        event["round_trip_ms"] = ms(|answered| answered.round_trip).into();
        event["glass_to_answer_ms"] = ms(|answered| answered.glass_to_answer).filter(|_| self.is_live).into();
        self.printer.event(event)
    }

    fn failed(&mut self, error: &v1::FrameError) -> Result<(), Failure> {
        self.printer.bar.inc(1);
        self.failures += 1;
        if self.failures <= FAILURES_SHOWN {
            self.printer.say(&summary::failure_line(error))?;
        }
        self.printer.event(json!({
            "event": "failed",
            "sequence": error.sequence,
            "tag": String::from_utf8_lossy(&error.tag),
            "code": status_name(error.code),
            "message": error.message,
            "field": error.field,
        }))
    }
}
