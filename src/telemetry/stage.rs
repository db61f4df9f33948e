//! The stages of a frame, from which spans, metrics and the timings in each response derive.

use std::time::{Duration, Instant};

/// A stage of a frame, in order. The stages add up to the frame's whole time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// From the message's arrival until the frame is queued.
    Receive,
    /// Waiting to be chosen for a batch.
    Queue,
    /// Payload to pixels.
    Decode,
    /// Pixels to the model's input.
    Preprocess,
    /// Waiting for the rest of the batch and for the device.
    Batch,
    /// Host to device.
    CopyIn,
    Forward,
    Backward,
    /// Grad-CAM, resizing, and the product with the guided gradient.
    Fuse,
    /// Device to host.
    CopyOut,
    /// Wire tensors and pictures.
    Render,
    /// Waiting for earlier frames of the stream, whose answers go first.
    Deliver,
    /// Writing the message; in spans only, since a message cannot contain its own sending.
    Send,
}

impl Stage {
    /// Every stage, in a frame's order.
    pub const ALL: [Stage; 13] = [
        Stage::Receive,
        Stage::Queue,
        Stage::Decode,
        Stage::Preprocess,
        Stage::Batch,
        Stage::CopyIn,
        Stage::Forward,
        Stage::Backward,
        Stage::Fuse,
        Stage::CopyOut,
        Stage::Render,
        Stage::Deliver,
        Stage::Send,
    ];

    /// The name in spans, metrics and responses.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Queue => "queue",
            Stage::Decode => "decode",
            Stage::Preprocess => "preprocess",
            Stage::Batch => "batch",
            Stage::CopyIn => "copy_in",
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Fuse => "fuse",
            Stage::CopyOut => "copy_out",
            Stage::Render => "render",
            Stage::Deliver => "deliver",
            Stage::Send => "send",
        }
    }
}

/// When a stage began, counted from the frame's acceptance, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTiming {
    pub stage: Stage,
    pub start: Duration,
    pub duration: Duration,
}

/// The stages of a frame so far: each mark ends one stage and begins the next, so no time is left out.
#[derive(Debug, Clone)]
pub struct Timings {
    accepted: Instant,
    last: Instant,
    stages: Vec<StageTiming>,
}

impl Timings {
    /// Starts the clock at the frame's acceptance.
    pub fn start(accepted: Instant) -> Self {
        Timings { accepted, last: accepted, stages: Vec::with_capacity(Stage::ALL.len()) }
    }

    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// Ends `stage` at `now`; it began when the one before ended.
    pub fn mark(&mut self, stage: Stage, now: Instant) {
        let now = now.max(self.last);
        self.stages.push(StageTiming {
            stage,
            start: self.last.duration_since(self.accepted),
            duration: now.duration_since(self.last),
        });
        self.last = now;
    }

    /// The stage that is under way: the one after the last that ended. `None` after the last of all.
    pub fn under_way(&self) -> Option<Stage> {
        let Some(last) = self.stages.last() else { return Some(Stage::Receive) };
        Stage::ALL.get(last.stage as usize + 1).copied()
    }

    pub fn stages(&self) -> &[StageTiming] {
        &self.stages
    }

    /// From acceptance to the last mark.
    pub fn total(&self) -> Duration {
        self.last.duration_since(self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other_and_add_up_to_the_whole() {
        let t0 = Instant::now();
        let mut timings = Timings::start(t0);
        timings.mark(Stage::Receive, t0 + Duration::from_millis(1));
        timings.mark(Stage::Queue, t0 + Duration::from_millis(5));
        assert_eq!(timings.stages()[1].start, Duration::from_millis(1));
        let sum: Duration = timings.stages().iter().map(|s| s.duration).sum();
        assert_eq!(sum, timings.total());
    }

    #[test]
    fn the_stage_under_way_is_the_one_after_the_last_that_ended() {
        let t0 = Instant::now();
        let mut timings = Timings::start(t0);
        for stage in Stage::ALL {
            assert_eq!(timings.under_way(), Some(stage));
            timings.mark(stage, t0);
        }
        assert_eq!(timings.under_way(), None);
    }

    #[test]
    fn a_mark_before_the_last_one_takes_no_time() {
        let t0 = Instant::now();
        let mut timings = Timings::start(t0);
        timings.mark(Stage::Receive, t0 + Duration::from_millis(2));
        timings.mark(Stage::Queue, t0);
        assert_eq!(timings.stages()[1].duration, Duration::ZERO);
    }
}
