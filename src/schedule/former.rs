//! Forms batches, decodes and prepares their frames, and hands them to the device.
//!
//! One batch is prefetched: it is formed and prepared while the device works. Its frames can be replaced until the device
//! is free for them. Once the device waits, they are claimed, or a fast camera would replace each frame before it is ready.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::frame::{Decoded, ModelToFrame, decode};
use crate::telemetry::Stage;

use super::FrameFailure;
use super::job::Running;
use super::queue::Queue;
use super::ticket::FrameState;

/// A frame that is ready for the device.
pub(super) struct PreparedFrame {
    pub running: Running,
    /// `[C, H, W]`.
    pub input: Vec<f32>,
    pub size: [u32; 2],
    pub model_to_frame: ModelToFrame,
    /// Kept when something is drawn over it.
    pub decoded: Option<Decoded>,
}

/// Frames of one key and one size.
pub(super) type Batch = Vec<PreparedFrame>;

/// Where former and worker meet.
#[derive(Default)]
pub(super) struct Handover(Mutex<Meeting>);

#[derive(Default)]
struct Meeting {
    device_waits: bool,
    in_preparation: Vec<Arc<FrameState>>,
}

impl Handover {
    /// The device is free: what is in preparation is meant for it now.
    pub fn device_waits(&self) {
        let mut meeting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meeting.device_waits = true;
        meeting.in_preparation.iter().for_each(|state| {
            state.claim();
        });
    }

    /// The device has a batch.
    pub fn device_works(&self) {
        let mut meeting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meeting.device_waits = false;
        meeting.in_preparation.clear();
    }

    fn prepares(&self, batch: &[Running]) {
        let mut meeting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meeting.in_preparation = batch.iter().map(|r| r.state.clone()).collect();
        if meeting.device_waits {
            meeting.in_preparation.iter().for_each(|state| {
                state.claim();
            });
        }
    }
}

/// The former's loop: until the queue is closed and empty, or the worker is gone.
pub(super) fn run(queue: &Queue, handover: &Handover, to_worker: &SyncSender<Batch>, max_batch: usize, threads: usize) {
    let limit = |first: &Running| {
        if first.model.has_free_size() {
            return 1;
        }
        let metadata = first.model.metadata();
        let own = metadata.max_rows.into_iter().chain(metadata.limits.max_batch).min();
        own.map_or(max_batch, |own| max_batch.min(own as usize))
    };
    while let Some(mut batch) = queue.take(limit) {
        let now = Instant::now();
        batch.iter_mut().for_each(|running| running.timings.mark(Stage::Queue, now));
        handover.prepares(&batch);
        let prepared = prepare_all(batch, threads);
        if !prepared.is_empty() && to_worker.send(prepared).is_err() {
            return;
        }
    }
}

/// Prepares every frame, on several threads when there are several. One that fails ends here.
fn prepare_all(batch: Vec<Running>, threads: usize) -> Batch {
    if batch.len() == 1 || threads <= 1 {
        return batch.into_iter().filter_map(prepare).collect();
    }
    let share = batch.len().div_ceil(threads);
    let mut shares: Vec<Vec<Running>> = Vec::new();
    for running in batch {
        match shares.last_mut() {
            Some(last) if last.len() < share => last.push(running),
            _ => shares.push(vec![running]),
        }
    }
    thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(|| share.into_iter().filter_map(prepare).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    })
}

fn prepare(mut running: Running) -> Option<PreparedFrame> {
    if running.state.is_ended() {
        return None;
    }
    // A decoder's panic must end its own frame only; everything it touched is dropped here.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let decoded = decode(&running.payload, running.model.limits())?;
        let decode_end = Instant::now();
        let mut input = Vec::new();
        let prepared = running.model.preparation().prepare(&decoded, &mut input)?;
        Ok::<_, FrameFailure>((decoded, decode_end, input, prepared))
    }));
    match result {
        Ok(Ok((decoded, decode_end, input, prepared))) => {
            running.timings.mark(Stage::Decode, decode_end);
            running.timings.mark(Stage::Preprocess, Instant::now());
            let decoded = running.ask.needs_frame().then_some(decoded);
            Some(PreparedFrame {
                running,
                input,
                size: [prepared.height, prepared.width],
                model_to_frame: prepared.model_to_frame,
                decoded,
            })
        }
        Ok(Err(failure)) => {
            running.timings.mark(Stage::Decode, Instant::now());
            running.complete(Err(failure), 0);
            None
        }
        Err(_) => {
            running.complete(Err(FrameFailure::internal("decoding the frame panicked")), 0);
            None
        }
    }
}
