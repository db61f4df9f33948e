//! Where a stream's frames and answers go beside files and terminal: a report, a video.

use std::path::{Path, PathBuf};

use crate::cli::answer::class_name;
use crate::cli::failure::Failure;
use crate::cli::summary::{Summary, stage_rows};
use crate::client::{Event, names};
use crate::proto::v1;
use crate::proto::v1::explain_stream_response::Message as Response;
use crate::render::report::{Clip, Figure, Report};

/// Takes each event of a stream, in order: an answer comes with its frame.
pub trait Sink: Send {
    /// # Errors
    /// The sink cannot go on: this ends the stream.
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure>;

    /// Ends the sink after the last event. Returns a sentence about what it made.
    fn finish(self: Box<Self>, end: &End<'_>) -> Result<Option<String>, Failure>;
}

/// A stream that has ended.
pub struct End<'a> {
    pub source: &'a str,
    pub model: Option<&'a v1::ModelIdentity>,
    pub summary: &'a Summary,
}

/// The report of a stream: one HTML file that plays the pictures.
pub struct ReportSink {
    path: PathBuf,
    clip: Clip,
}

impl ReportSink {
    pub fn new(path: &Path) -> Self {
        ReportSink { path: path.to_owned(), clip: Clip::default() }
    }
}

impl Sink for ReportSink {
    fn take(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let Event::Message(Response::Explanation(answer), _) = event else { return Ok(()) };
        let picture = answer.targets.first().and_then(|target| target.pictures.first());
        if let (Some(top), Some(picture)) = (answer.predictions.first(), picture) {
            let (class, tag) = (class_name(&top.label, top.class_index), String::from_utf8_lossy(&answer.tag));
            self.clip.push(Figure {
                caption: format!("{tag}: {class} {:.1} %", top.probability * 100.0),
                media_type: names::image_format(picture.format).1,
                data: picture.data.to_vec(),
            });
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
        let report = Report { title, facts, clip: self.clip, stages, ..Default::default() };
        let written = std::fs::write(&self.path, report.html());
        written.map_err(|error| Failure::from_io("write", &self.path, &error))?;
        Ok(Some(format!("the report is {}", self.path.display())))
    }
}
