//! What the streams of a run share: what they send, when, and what is measured of it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::schedule::{Length, Schedule, phase};
use crate::client::latency::{Latencies, Stages};
use crate::client::names;
use crate::proto::v1;
use crate::proto::v1::frame::Payload;

/// When the next frame is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// At fixed times, whatever the server does.
    Open { rate_hz: f64 },
    /// As soon as fewer than this many frames of the stream are on their way.
    Closed { in_flight: u32 },
}

/// What the streams of a run share.
pub struct Run {
    /// Sent in turn; each stream begins with another one.
    pub payloads: Vec<Payload>,
    pub pace: Pace,
    /// Streams whose answers are read.
    pub streams: usize,
    /// Of the whole, the warm-up included.
    pub length: Length,
    /// Frames of the beginning are accounted for and not measured.
    pub warm_up: Duration,
    /// How long a stream may go without a frame taken or an ending, while there are frames without one.
    pub patience: Duration,
    /// Ends the sending.
    pub stop: CancellationToken,
    pub meter: Mutex<Meter>,
}

/// What is measured over all streams, of frames that belong to the measured time.
#[derive(Debug, Default)]
pub struct Meter {
    /// From when a frame should have been sent to its answer.
    pub latency: Latencies,
    /// From when a frame should have been sent to when the transport took it.
    pub send_delay: Latencies,
    pub stages: Stages,
    /// Over all answers: how many ran together.
    pub batch_sizes: u64,
    pub max_batch_size: u32,
    /// Bytes of images that the transport took.
    pub sent_bytes: u64,
    /// When the last answer came, from the beginning.
    pub last_answer: Duration,
}

impl Run {
    pub fn meter(&self) -> MutexGuard<'_, Meter> {
        // Recording does not panic half-way; what was recorded stands.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a time, counted from the beginning, belongs to the measured part.
    pub fn measures(&self, time: Duration) -> bool {
        time >= self.warm_up && !matches!(self.length, Length::For(length) if time >= length)
    }

    pub fn schedule(&self, rate_hz: f64, stream: usize) -> Schedule {
        Schedule { rate_hz, phase: phase(stream, self.streams, rate_hz), length: self.length }
    }
}

impl Meter {
    /// An answer of a frame of the measured time; `came` counts from the beginning.
    pub fn answer(&mut self, answer: &v1::Explanation, latency: Duration, came: Duration) {
        self.latency.record(latency);
        for timing in &answer.timings {
            self.stages.record(&names::stage(timing.stage), Duration::from_nanos(timing.duration_ns));
        }
        self.batch_sizes += u64::from(answer.batch_size);
        self.max_batch_size = self.max_batch_size.max(answer.batch_size);
        self.last_answer = self.last_answer.max(came);
    }
}
