//! How far a frame has come, shared by all who carry it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::batch::BatchRecord;
use crate::telemetry::stage::{Stage, Timings};

/// A frame's stages so far, and the batch that it is in. Each thread that carries the frame marks its stages; the one
/// that ends it closes the progress and reads all marks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    timings: Timings,
    batch: Option<Arc<BatchRecord>>,
    failed: bool,
    closed: bool,
}

impl State {
    /// The stage under way. A frame that has failed only has to be delivered.
    fn under_way(&self) -> Option<Stage> {
        let stage = self.timings.under_way()?;
        Some(if self.failed { stage.max(Stage::Deliver) } else { stage })
    }
}

impl Progress {
    /// Starts the clock at the frame's acceptance.
    pub fn start(accepted: Instant) -> Self {
        let timings = Timings::start(accepted);
        Progress(Arc::new(Mutex::new(State { timings, batch: None, failed: false, closed: false })))
    }

    /// Ends `stage` at `now`; it began where the one before ended. Of a frame that has ended, nothing is marked any
    /// more.
    pub fn mark(&self, stage: Stage, now: Instant) {
        let mut state = self.0.lock();
        if !state.closed {
            state.timings.mark(stage, now);
        }
    }

    /// Sets the batch that the frame runs in. Of several attempts, the last one counts.
    pub fn joins(&self, batch: &Arc<BatchRecord>) {
        let mut state = self.0.lock();
        if !state.closed {
            state.batch = Some(Arc::clone(batch));
        }
    }

    /// The frame has failed: the stage under way ends now. Only delivery is left.
    pub fn fail(&self, now: Instant) {
        let mut state = self.0.lock();
        if let Some(stage) = state.under_way()
            && stage < Stage::Deliver
            && !state.closed
        {
            state.timings.mark(stage, now);
        }
        state.failed = true;
    }

    /// The frame has ended, in whatever stage it was.
    pub fn close(&self, now: Instant) {
        let mut state = self.0.lock();
        if let Some(stage) = state.under_way()
            && !state.closed
        {
            state.timings.mark(stage, now);
        }
        state.closed = true;
    }

    /// The stages so far.
    pub fn timings(&self) -> Timings {
        self.0.lock().timings.clone()
    }

    /// Applies `read` to the stages so far, without a copy.
    pub fn with_timings<T>(&self, read: impl FnOnce(&Timings) -> T) -> T {
        read(&self.0.lock().timings)
    }

    /// The batch that the frame is or was in.
    pub fn batch(&self) -> Option<Arc<BatchRecord>> {
        self.0.lock().batch.clone()
    }

    /// Gives up the reference to the batch: the last one dropped delivers the record.
    pub(in crate::telemetry) fn leave_batch(&self) -> Option<Arc<BatchRecord>> {
        self.0.lock().batch.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stages(progress: &Progress) -> Vec<Stage> {
        progress.timings().stages().iter().map(|timing| timing.stage).collect()
    }

    #[test]
    fn closing_keeps_the_marks_of_all_threads_and_ends_the_stage_under_way() {
        let t0 = Instant::now();
        let progress = Progress::start(t0);
        let engine = progress.clone();
        engine.mark(Stage::Receive, t0 + Duration::from_millis(1));
        progress.close(t0 + Duration::from_millis(4));
        engine.mark(Stage::Queue, t0 + Duration::from_millis(9));
        assert_eq!(stages(&progress), [Stage::Receive, Stage::Queue]);
        assert_eq!(progress.timings().total(), Duration::from_millis(4));
    }

    #[test]
    fn a_frame_that_fails_still_has_to_be_delivered_and_sent() {
        let t0 = Instant::now();
        let progress = Progress::start(t0);
        progress.fail(t0);
        progress.close(t0);
        assert_eq!(stages(&progress), [Stage::Receive, Stage::Deliver]);
        let progress = Progress::start(t0);
        progress.mark(Stage::Receive, t0);
        progress.fail(t0);
        progress.mark(Stage::Deliver, t0);
        progress.fail(t0);
        progress.close(t0);
        assert_eq!(stages(&progress), [Stage::Receive, Stage::Queue, Stage::Deliver, Stage::Send]);
    }
}
