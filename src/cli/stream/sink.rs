//! Where a stream's frames and answers go beside files and terminal: a report, a video.

use crate::cli::failure::Failure;
use crate::cli::summary::Summary;
use crate::client::Event;
use crate::proto::v1;

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
