//! Counts and latencies of a stream, over all of its connections.

use std::collections::BTreeSet;
use std::time::Duration;

use super::latency::{Latencies, Stages};
use super::names;
use super::tally::{Ended, Tally};
use crate::proto::v1::explain_stream_response::Message as Response;

/// Counts and latencies of a stream.
#[derive(Debug, Default)]
pub struct Account {
    pub tally: Tally,
    /// Frames without an ending although the server ended the stream without an error.
    pub missing: BTreeSet<u64>,
    /// Frames that were read from the source and never sent: a newer one came first, or the stream was over.
    pub unsent: u64,
    /// Connections on which the server has opened the stream.
    pub connections: u64,
    /// Time from sending a frame to reading its answer.
    pub round_trip: Latencies,
    /// Time from the capture of a frame to reading its answer.
    pub glass_to_answer: Latencies,
    /// Stage timings of the server, from each answer.
    pub stages: Stages,
}

impl Account {
    /// Counts a message. Returns the frames that it ends.
    pub(super) fn take(&mut self, message: &Response) -> Ended {
        let ended = self.tally.take(message);
        match message {
            Response::Opened(_) => self.connections += 1,
            Response::Explanation(answer) => {
                for timing in &answer.timings {
                    self.stages.record(&names::stage(timing.stage), Duration::from_nanos(timing.duration_ns));
                }
            }
            Response::Dropped(_) | Response::FrameError(_) | Response::GoingAway(_) => {}
        }
        ended
    }
}
