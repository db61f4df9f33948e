//! The record of a batch, delivered once: when the batch has run and the last of its frames has ended.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use super::source::Source;
use crate::telemetry::ids::SpanReference;

/// One run of the device, shared by the worker and the batch's frames. Dropping the last reference delivers it.
#[derive(Debug)]
pub struct BatchRecord {
    /// The number of rows that run together.
    pub rows: u32,
    began: Instant,
    end: OnceLock<(Instant, BatchOutcome)>,
    /// The batch's own trace, chosen at the first use.
    span: OnceLock<SpanReference>,
    /// The frames whose traces are kept.
    frames: Mutex<Vec<SpanReference>>,
    witness: OnceLock<Witness>,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchOutcome {
    Done,
    /// All its frames had ended: it stopped before its reverse run.
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

/// A batch that has ended.
#[derive(Debug, Clone)]
pub(in crate::telemetry) struct EndedBatch {
    pub(in crate::telemetry) span: SpanReference,
    pub(in crate::telemetry) rows: u32,
    pub(in crate::telemetry) began_at: SystemTime,
    pub(in crate::telemetry) ended_at: SystemTime,
    pub(in crate::telemetry) outcome: BatchOutcome,
    /// The source of one of its frames; all frames share the model.
    pub(in crate::telemetry) source: Arc<Source>,
    /// The frames whose traces are kept.
    pub(in crate::telemetry) frames: Vec<SpanReference>,
}

/// One of the batch's frames, with the receiver of the record.
struct Witness {
    source: Arc<Source>,
    /// One moment by both clocks.
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

    /// Called once, when the device has finished the batch.
    pub fn ends(&self, now: Instant, outcome: BatchOutcome) {
        let _ = self.end.set((now, outcome));
    }

    pub(in crate::telemetry) fn span(&self) -> SpanReference {
        *self.span.get_or_init(SpanReference::new_root)
    }

    /// A frame of the batch whose trace is kept.
    pub(in crate::telemetry) fn keeps(&self, frame: SpanReference) {
        self.frames.lock().push(frame);
    }

    /// Sets the receiver of the record; the first call counts. `moment` is one moment by both clocks.
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
        let frames = std::mem::take(self.frames.get_mut());
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
    fn a_batch_is_delivered_once_when_the_last_reference_is_dropped_with_its_true_times() {
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
    fn a_batch_of_which_no_frame_is_known_is_delivered_to_nobody() {
        let batch = BatchRecord::new(1, Instant::now());
        batch.ends(Instant::now(), BatchOutcome::Failed);
        drop(batch);
    }
}
