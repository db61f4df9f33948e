//! The report of a stream: one HTML file with its frames and their maps.

use std::path::{Path, PathBuf};

use super::sink::{End, Sink};
use crate::cli::failure::Failure;
use crate::cli::scene::SceneMaps;
use crate::cli::summary::stage_rows;
use crate::client::Event;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::render::report::{Frames, Report};

/// Keeps a stream's frames for its report.
pub struct ReportSink {
    path: PathBuf,
    /// The maps that the stream asks for. `None`: it asks for none, and the report has numbers alone.
    maps: Option<SceneMaps>,
    frames: Frames,
}

impl ReportSink {
    pub fn new(path: &Path, maps: Option<SceneMaps>) -> Self {
        ReportSink { path: path.to_owned(), maps, frames: Frames::default() }
    }
}

impl Sink for ReportSink {
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let Event::Message(Response::Explanation(answer), Some(answered)) = event else { return Ok(()) };
        let maps = self.maps.filter(|_| self.frames.keeps_next());
        match maps.and_then(|maps| maps.scene(answer, &answered.frame.payload)) {
            Some(scene) => {
                if let Err(error) = self.frames.push(scene) {
                    tracing::debug!(%error, "a frame could not be drawn for the report");
                }
            }
            None => self.frames.skip(),
        }
        Ok(())
    }

    fn finish(self: Box<Self>, end: &End<'_>) -> Result<Option<String>, Failure> {
        let mut facts = vec![("source".to_owned(), end.source.to_owned())];
        if let Some(model) = end.model {
            facts.push(("model".to_owned(), format!("{} version {}", model.name, model.version)));
            facts.push(("digest".to_owned(), model.digest.clone()));
        }
        facts.extend(end.summary.facts());
        let stages = stage_rows(end.summary.stages());
        let title = "What the model looks at".to_owned();
        let report = Report { title, facts, frames: self.frames, stages, ..Default::default() };
        let written = std::fs::write(&self.path, report.html());
        written.map_err(|error| Failure::from_io("write", &self.path, &error))?;
        Ok(Some(format!("the report is {}", self.path.display())))
    }
}
