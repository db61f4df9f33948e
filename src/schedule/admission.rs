//! Limits of the frames in work: their number and their bytes, for a stream, a model and the whole process.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit, so that 32-bit counts of permits suffice.
const BYTES_PER_PERMIT: u64 = 1024;

/// Why a frame was not admitted. It may be admitted a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    #[error("{limit} frames are in work already ({name})")]
    Frames { name: &'static str, limit: usize },
    #[error(
        "the frames in work hold almost {limit} bytes already, and this one takes {bytes} when it is decoded ({name})"
    )]
    Bytes { name: &'static str, bytes: u64, limit: u64 },
}

/// A frame's share of the budgets; dropping it gives it back.
#[derive(Debug)]
pub struct Admission {
    _permits: Option<[Permit; 3]>,
}

impl Admission {
    /// For the one frame that proves a model: no client waits for it, and clients' frames may hold all budgets.
    pub(super) fn uncounted() -> Self {
        Admission { _permits: None }
    }
}

#[derive(Debug)]
pub(super) struct Permit {
    _frame: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// The budgets of a frame: its stream's, its model's, the process's. They are always taken in that order, which rules
/// out deadlock.
#[derive(Debug, Clone)]
pub(super) struct Budgets(pub(super) [Budget; 3]);

impl Budgets {
    /// Admits a frame of `bytes` now or not at all.
    pub(super) fn try_admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        let [stream, model, process] = &self.0;
        Ok(Admission { _permits: Some([stream.try_take(bytes)?, model.try_take(bytes)?, process.try_take(bytes)?]) })
    }

    /// Admits a frame of `bytes` as soon as there is room; first come, first served.
    pub(super) async fn admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        let [stream, model, process] = &self.0;
        let permits = [stream.take(bytes).await?, model.take(bytes).await?, process.take(bytes).await?];
        Ok(Admission { _permits: Some(permits) })
    }
}

/// The settings whose limits a budget keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) frames: (&'static str, usize),
    pub(super) bytes: (&'static str, u64),
}

/// Frames and bytes that are admitted and not given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InWork {
    pub frames: usize,
    /// In steps of a KiB.
    pub bytes: u64,
}

/// Frames and bytes of one stream, model or process.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    frames: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    limit: Limit,
}

impl Budget {
    pub(super) fn new(limit: Limit) -> Self {
        let permits = whole(limit.bytes.1) as usize;
        let frames = limit.frames.1.min(Semaphore::MAX_PERMITS);
        Budget { frames: Arc::new(Semaphore::new(frames)), bytes: Arc::new(Semaphore::new(permits)), limit }
    }

    /// The part of the budget in use now.
    pub(super) fn in_work(&self) -> InWork {
        let (frames, permits) = (self.limit.frames.1.min(Semaphore::MAX_PERMITS), whole(self.limit.bytes.1) as usize);
        let taken = permits.saturating_sub(self.bytes.available_permits()) as u64;
        InWork { frames: frames.saturating_sub(self.frames.available_permits()), bytes: taken * BYTES_PER_PERMIT }
    }

    pub(super) fn try_take(&self, bytes: u64) -> Result<Permit, AdmissionError> {
        let frame = Arc::clone(&self.frames).try_acquire_owned().map_err(|_| self.no_frames())?;
        let permit =
            Arc::clone(&self.bytes).try_acquire_many_owned(self.permits(bytes)).map_err(|_| self.no_bytes(bytes))?;
        Ok(Permit { _frame: frame, _bytes: permit })
    }

    async fn take(&self, bytes: u64) -> Result<Permit, AdmissionError> {
        let frame = Arc::clone(&self.frames).acquire_owned().await.map_err(|_| self.no_frames())?;
        let permit =
            Arc::clone(&self.bytes).acquire_many_owned(self.permits(bytes)).await.map_err(|_| self.no_bytes(bytes))?;
        Ok(Permit { _frame: frame, _bytes: permit })
    }

    fn no_frames(&self) -> AdmissionError {
        let (name, limit) = self.limit.frames;
        AdmissionError::Frames { name, limit }
    }

    fn no_bytes(&self, bytes: u64) -> AdmissionError {
        let (name, limit) = self.limit.bytes;
        AdmissionError::Bytes { name, bytes, limit }
    }

    /// A frame larger than the whole budget takes all of it, and so runs alone instead of never.
    fn permits(&self, bytes: u64) -> u32 {
        bytes.div_ceil(BYTES_PER_PERMIT).min(whole(self.limit.bytes.1).into()) as u32
    }
}

/// The permits of a budget of `bytes` bytes.
fn whole(bytes: u64) -> u32 {
    u32::try_from(bytes / BYTES_PER_PERMIT).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(frames: usize, bytes: u64) -> Budget {
        Budget::new(Limit { frames: ("frames", frames), bytes: ("bytes", bytes) })
    }

    #[test]
    fn frames_and_bytes_are_given_back() {
        let large = || budget(100, 1 << 30);
        let budgets = Budgets([large(), budget(2, 10 << 10), large()]);
        let first = budgets.try_admit(6 << 10).expect("room for one");
        let full = AdmissionError::Bytes { name: "bytes", bytes: 6 << 10, limit: 10 << 10 };
        assert_eq!(budgets.try_admit(6 << 10).err(), Some(full));
        let _second = budgets.try_admit(1).expect("room for a small one");
        assert_eq!(budgets.try_admit(1).err(), Some(AdmissionError::Frames { name: "frames", limit: 2 }));
        drop(first);
        assert!(budgets.try_admit(6 << 10).is_ok());
    }

    #[test]
    fn what_is_in_work_can_be_told() {
        let own = budget(4, 10 << 10);
        let budgets = Budgets([budget(9, 1 << 30), own.clone(), budget(9, 1 << 30)]);
        let admission = budgets.try_admit(1500).expect("room");
        assert_eq!(own.in_work(), InWork { frames: 1, bytes: 2048 });
        drop(admission);
        assert_eq!(own.in_work(), InWork { frames: 0, bytes: 0 });
    }

    #[test]
    fn what_one_budget_refuses_costs_the_others_nothing() {
        let process = budget(1, 1 << 20);
        let small = Budgets([budget(1, 1 << 10), budget(9, 1 << 20), process.clone()]);
        let _first = small.try_admit(1).expect("room");
        assert!(small.try_admit(1).is_err(), "the stream has its frame");
        let other = Budgets([budget(1, 1 << 10), budget(9, 1 << 20), process]);
        assert!(other.try_admit(1).is_err(), "the process has its frame");
        drop(_first);
        assert!(small.try_admit(1).is_ok());
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_runs_alone() {
        let budgets = Budgets([budget(2, 10 << 10), budget(2, 10 << 10), budget(2, 10 << 10)]);
        let alone = budgets.admit(1 << 30).await.expect("it gets all there is");
        assert!(budgets.try_admit(1).is_err());
        drop(alone);
        assert!(budgets.try_admit(1).is_ok());
    }
}
