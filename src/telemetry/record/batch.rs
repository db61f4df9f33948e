//! What telemetry is told about a batch: once, when it has run and the last of its frames has ended.

use crate::telemetry::SpanReference;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use super::source::Source;

/// One run of the device, shared by the device and the frames that are in it. Whoever lets go of it last tells it.
#[derive(Debug)]
pub struct BatchRecord {
    /// Rows that run together.
    pub rows: u32,
    began: Instant,
    end: OnceLock<(Instant, BatchOutcome)>,
    /// The batch's own trace, settled when somebody needs it.
    span: OnceLock<SpanReference>,
    /// The frames whose traces are kept.
    frames: Mutex<Vec<SpanReference>>,
    witness: OnceLock<Witness>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchOutcome {
    Done,
    /// Nobody waited for it any more: it stopped before its reverse run.
    Stopped,
    OutOfMemory,
    Failed,
}

impl BatchOutcome {
    /// The word in spans.
    pub fn name(self) -> &'static str {
        match self {
            BatchOutcome::Done => "done",
            BatchOutcome::Stopped => "stopped",
            BatchOutcome::OutOfMemory => "out_of_memory",
            BatchOutcome::Failed => "failed",
        }
    }
}

/// A batch that is over.
#[derive(Debug, Clone)]
pub(in crate::telemetry) struct EndedBatch {
    pub(in crate::telemetry) span: SpanReference,
    pub(in crate::telemetry) rows: u32,
    pub(in crate::telemetry) began_at: SystemTime,
    pub(in crate::telemetry) ended_at: SystemTime,
    pub(in crate::telemetry) outcome: BatchOutcome,
    /// Where one of its frames came from; all have the model in common.
    pub(in crate::telemetry) source: Arc<Source>,
    /// The frames whose traces are kept.
    pub(in crate::telemetry) frames: Vec<SpanReference>,
}

/// One of the batch's frames, who knows whom to tell.
struct Witness {
    source: Arc<Source>,
    /// One moment on both clocks.
    moment: (Instant, SystemTime),
    tell: Box<dyn Fn(EndedBatch) + Send + Sync>,
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl BatchRecord {
    pub fn new(rows: u32, began: Instant) -> Self {
        BatchRecord {
            rows,
            began,
            end: OnceLock::new(),
            span: OnceLock::new(),
            frames: Mutex::default(),
            witness: OnceLock::new(),
        }
    }

    /// Called once, when the device is through with it.
    pub fn ends(&self, now: Instant, outcome: BatchOutcome) {
        let _ = self.end.set((now, outcome));
    }

    pub(in crate::telemetry) fn span(&self) -> SpanReference {
        *self.span.get_or_init(SpanReference::new_root)
    }

    /// A frame of the batch whose trace is kept.
    pub(in crate::telemetry) fn keeps(&self, frame: SpanReference) {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
    }

    /// To whom the batch is told when it is over; the first one counts. `moment` is one moment on both clocks.
    pub(in crate::telemetry) fn tells(
        &self,
        source: &Arc<Source>,
        moment: (Instant, SystemTime),
        tell: impl Fn(EndedBatch) + Send + Sync + 'static,
    ) {
        self.witness.get_or_init(|| Witness { source: Arc::clone(source), moment, tell: Box::new(tell) });
    }
}

impl Drop for BatchRecord {
    fn drop(&mut self) {
        let (Some(witness), Some(&(end, outcome))) = (self.witness.take(), self.end.get()) else { return };
        let Witness { source, moment: (monotonic, wall), tell } = witness;
        let on_the_wall = |moment: Instant| match moment.checked_duration_since(monotonic) {
            Some(after) => wall + after,
            None => wall - monotonic.duration_since(moment),
        };
        let frames = std::mem::take(self.frames.get_mut().unwrap_or_else(PoisonError::into_inner));
        tell(EndedBatch {
            span: self.span(),
            rows: self.rows,
            began_at: on_the_wall(self.began),
            ended_at: on_the_wall(end),
            outcome,
            source,
            frames,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::record::source::Call;

    #[test]
    fn a_batch_is_told_once_by_whoever_lets_go_of_it_last_with_its_true_times() {
        let accepted = Instant::now();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let source = Source::new(Call::ExplainStream, "s".into(), String::new(), ("lite0", 1), None, None);
        let source = Arc::new(source);
        let (told, batches) = mpsc::channel();
        let device = Arc::new(BatchRecord::new(2, accepted + Duration::from_millis(3)));
        let frames = [Arc::clone(&device), Arc::clone(&device)];
        let kept = SpanReference::new_root();
        frames[1].keeps(kept);
        for frame in frames {
            let told = told.clone();
            frame.tells(&source, (accepted, wall), move |batch| told.send(batch).expect("the test listens"));
        }
        assert!(batches.try_recv().is_err(), "it runs");
        device.ends(accepted + Duration::from_millis(8), BatchOutcome::Done);
        drop(device);
        let batch = batches.try_recv().expect("it is over");
        assert_eq!(
            (batch.began_at, batch.ended_at),
            (wall + Duration::from_millis(3), wall + Duration::from_millis(8))
        );
        assert_eq!((batch.rows, batch.frames), (2, vec![kept]));
        assert!(batches.try_recv().is_err());
    }

    #[test]
    fn a_batch_of_which_no_frame_is_known_is_told_to_nobody() {
        let batch = BatchRecord::new(1, Instant::now());
        batch.ends(Instant::now(), BatchOutcome::Failed);
        drop(batch);
    }
}
