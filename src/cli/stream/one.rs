//! One source and its stream: a thread reads the frames, a session sends them, the output takes the answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::sink::End;
use crate::cli::connection::Connection;
use crate::cli::failure::{Exit, Failure};
use crate::cli::options::Overflow;
use crate::cli::source::Source;
use crate::cli::source::camera::{self, CameraAccount, Retry};
use crate::cli::summary::{SourceFacts, Summary};
use crate::client::{Adjust, Backoff, Event, FrameQueue, Full, Link, Pace, Reconnect, Session, Unanswered};
use crate::proto::v1;

/// Frames of a recording that are read ahead.
const READ_AHEAD: usize = 2;
/// Most times that a frame is sent to servers which may have read it, under `block` and `reject`.
const MOST_TRIES: u32 = 3;

/// A source that is to be explained.
pub struct OneStream {
    pub source: Source,
    pub name: String,
    pub open: v1::Open,
    pub adjust: Adjust,
    pub overflow: Overflow,
    pub rate_hz: Option<f64>,
    pub repeat: u64,
    pub limit: Option<u64>,
    /// How long to try a lost camera or server.
    pub give_up_after: Duration,
    pub stall_after: Duration,
    pub stop: CancellationToken,
}

/// A stream that has ended.
pub struct Outcome {
    pub name: String,
    pub summary: Summary,
    /// Sentences about what the sinks made.
    pub made: Vec<String>,
    /// What went wrong besides frames that failed.
    pub result: Result<(), Failure>,
}

impl OneStream {
    pub async fn run(self, connection: Arc<Connection>, link: Link, mut output: Output) -> Outcome {
        let is_live = self.source.camera().is_some();
        let frames = Arc::new(match (is_live, self.overflow) {
            (true, Overflow::Latest | Overflow::Reject) => FrameQueue::new(1, Full::Replace),
            _ => FrameQueue::new(READ_AHEAD, Full::Wait),
        });
        let reading = self.start_reading(&frames, &output);
        let unanswered = match self.overflow {
            Overflow::Latest => Unanswered::Lose,
            Overflow::Block | Overflow::Reject => Unanswered::SendAgain { tries: MOST_TRIES },
        };
        let pace = Pace { rate_hz: self.rate_hz, within_credit: self.overflow == Overflow::Block, in_flight: None };
        let session = Session { open: self.open, pace, unanswered, adjust: self.adjust, stop: self.stop };
        let reconnect = Reconnect {
            connect: || connection.another(),
            may_pass: |failure: &Failure| failure.exit() == Exit::Unavailable,
            backoff: Backoff::default(),
            give_up_after: self.give_up_after,
        };
        let began = Instant::now();
        let mut take = |event: Event<'_>| output.take(&event);
        let (account, streamed) = session.run_persistently(link, reconnect, frames, &mut take).await;
        let took = began.elapsed();
        let (read_facts, read) = reading.await.unwrap_or_else(|_| {
            (ReadFacts::default(), Err(Failure::failed("the thread that reads the source panicked")))
        });
        let facts =
            SourceFacts { camera: is_live.then_some(read_facts.camera), decode_errors: read_facts.decode_errors };
        let summary = Summary::new(account, took).of_source(facts);
        let mut outcome = Outcome { name: self.name, summary, made: Vec::new(), result: Ok(()) };
        outcome.result = if outcome.summary.sent() == 0 {
            // The reader's or the stream's own error explains more than an empty account.
            read.and(streamed).and_then(|()| Err(Failure::failed(format!("{} has no frames", outcome.name))))
        } else {
            streamed.and(read)
        };
        outcome.finish_sinks(output);
        outcome
    }

    /// Starts the thread that reads the source. It ends the queue.
    fn start_reading(
        &self,
        frames: &Arc<FrameQueue>,
        output: &Output,
    ) -> tokio::task::JoinHandle<(ReadFacts, Result<(), Failure>)> {
        let (source, frames, printer) = (self.source.clone(), frames.clone(), output.printer.clone());
        let (repeat, limit) = (self.repeat, self.limit);
        let retry =
            Retry { backoff: Backoff::default(), give_up_after: self.give_up_after, stall_after: self.stall_after };
        tokio::task::spawn_blocking(move || match source.camera() {
            Some(input) => {
                let (camera, result) = camera::read(input, retry, limit, &frames, &|notice| printer.camera(&notice));
                frames.end();
                (ReadFacts { decode_errors: camera.decode_errors, camera }, result)
            }
            None => {
                let fed = source.feed(repeat, limit, Ok, &frames);
                let decode_errors = *fed.as_ref().unwrap_or(&0);
                (ReadFacts { decode_errors, ..ReadFacts::default() }, fed.map(|_| ()))
            }
        })
    }
}

/// What reading a source has met.
#[derive(Default)]
struct ReadFacts {
    decode_errors: u64,
    camera: CameraAccount,
}

impl Outcome {
    fn finish_sinks(&mut self, output: Output) {
        let end = End { source: &self.name, model: output.model.as_ref(), summary: &self.summary };
        let mut result = Ok(());
        for sink in output.sinks {
            match sink.finish(&end) {
                Ok(made) => self.made.extend(made),
                Err(failure) => result = result.and(Err(failure)),
            }
        }
        // An earlier error explains more.
        let before = std::mem::replace(&mut self.result, Ok(()));
        self.result = before.and(result);
    }

    /// The outcome's failure, if any: of the stream, or of its frames.
    pub fn verdict(self) -> Result<(), Failure> {
        self.result.and(self.summary.verdict())
    }
}
