//! The state that the streams of a run share: payloads, pace, length and measurements.

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
    /// At fixed times, regardless of the server's pace.
    Open { rate_hz: f64 },
    /// As soon as fewer than `in_flight` frames of the stream await their ending.
    Closed { in_flight: u32 },
}

/// One run of the benchmark, shared by its streams.
pub struct Run {
    /// Sent in rotation; each stream starts at a different payload.
    pub payloads: Vec<Payload>,
    pub pace: Pace,
    /// Number of streams that read their answers.
    pub streams: usize,
    /// Length of the run, warm-up included.
    pub length: Length,
    /// Frames due in this time from the start are accounted for but not measured.
    pub warm_up: Duration,
    /// Longest time without a sent frame or a received message while frames await their ending.
    pub patience: Duration,
    /// Cancelled to stop sending.
    pub stop: CancellationToken,
    pub meter: Mutex<Meter>,
}

/// Measurements over all streams, of the frames due in the measured time.
#[derive(Debug, Default)]
pub struct Meter {
    /// From a frame's due time to its answer.
    pub latency: Latencies,
    /// From a frame's due time to its acceptance by the transport.
    pub send_delay: Latencies,
    pub stages: Stages,
    /// Sum of the answers' batch sizes.
    pub batch_sizes: u64,
    pub max_batch_size: u32,
    /// Image bytes accepted by the transport.
    pub sent_bytes: u64,
    /// Arrival of the last answer, from the start of the run.
    pub last_answer: Duration,
}

impl Run {
    pub fn meter(&self) -> MutexGuard<'_, Meter> {
        // A poisoned lock is usable: recording does not panic between two updates.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The planned end of the measured time, from the start of the run. `None`: it ends with the last frame.
    pub fn end(&self) -> Option<Duration> {
        match self.length {
            Length::For(length) => Some(length),
            Length::Frames(_) => None,
        }
    }

    /// Whether `time`, from the start of the run, lies in the measured time.
    pub fn measures(&self, time: Duration) -> bool {
        time >= self.warm_up && self.end().is_none_or(|end| time < end)
    }

    pub fn schedule(&self, rate_hz: f64, stream: usize) -> Schedule {
        Schedule { rate_hz, phase: phase(stream, self.streams, rate_hz), length: self.length }
    }
}

impl Meter {
    /// Records the answer to a frame due in the measured time. `received`: its arrival, from the start of the run.
    pub fn answer(&mut self, answer: &v1::Explanation, latency: Duration, received: Duration) {
        self.latency.record(latency);
        for timing in &answer.timings {
            self.stages.record(&names::stage(timing.stage), Duration::from_nanos(timing.duration_ns));
        }
        self.batch_sizes += u64::from(answer.batch_size);
        self.max_batch_size = self.max_batch_size.max(answer.batch_size);
        self.last_answer = self.last_answer.max(received);
    }
}
