//! What all frames together may hold: a number of frames and a number of bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A byte permit stands for this many bytes, so that 32-bit counts reach far enough.
const BYTES_PER_PERMIT: u64 = 1024;

/// Why a frame was not admitted. It may be a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    #[error("{limit} frames are in work already (limits.queued_frames)")]
    Frames { limit: usize },
    #[error("the frames in work hold almost {limit} bytes already, and this one has {bytes} (limits.queued_bytes)")]
    Bytes { bytes: u64, limit: u64 },
}

/// A frame's share of the budget; dropping it gives it back.
#[derive(Debug)]
pub struct Admission {
    _frame: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// The budget.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    frames: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_frames: usize,
    max_bytes: u64,
}

impl Budget {
    pub(super) fn new(max_frames: usize, max_bytes: u64) -> Self {
        let permits = (max_bytes / BYTES_PER_PERMIT).clamp(1, u32::MAX as u64) as usize;
        Budget {
            frames: Arc::new(Semaphore::new(max_frames)),
            bytes: Arc::new(Semaphore::new(permits)),
            max_frames,
            max_bytes,
        }
    }

    /// Admits a frame of `bytes` now or not at all.
    pub(super) fn try_admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        let frame = Arc::clone(&self.frames)
            .try_acquire_owned()
            .map_err(|_| AdmissionError::Frames { limit: self.max_frames })?;
        let bytes_permit = Arc::clone(&self.bytes)
            .try_acquire_many_owned(self.permits(bytes))
            .map_err(|_| AdmissionError::Bytes { bytes, limit: self.max_bytes })?;
        Ok(Admission { _frame: frame, _bytes: bytes_permit })
    }

    /// Admits a frame of `bytes` as soon as there is room; first come, first served.
    pub(super) async fn admit(&self, bytes: u64) -> Result<Admission, AdmissionError> {
        let frame = Arc::clone(&self.frames)
            .acquire_owned()
            .await
            .map_err(|_| AdmissionError::Frames { limit: self.max_frames })?;
        let bytes_permit = Arc::clone(&self.bytes)
            .acquire_many_owned(self.permits(bytes))
            .await
            .map_err(|_| AdmissionError::Bytes { bytes, limit: self.max_bytes })?;
        Ok(Admission { _frame: frame, _bytes: bytes_permit })
    }

    /// A frame larger than the whole budget takes all of it, and so runs alone instead of never.
    fn permits(&self, bytes: u64) -> u32 {
        let whole = (self.max_bytes / BYTES_PER_PERMIT).clamp(1, u32::MAX as u64);
        bytes.div_ceil(BYTES_PER_PERMIT).min(whole) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_bytes_are_given_back() {
        let budget = Budget::new(2, 10 << 10);
        let first = budget.try_admit(6 << 10).expect("room for one");
        assert_eq!(budget.try_admit(6 << 10).err(), Some(AdmissionError::Bytes { bytes: 6 << 10, limit: 10 << 10 }));
        let _second = budget.try_admit(1).expect("room for a small one");
        assert_eq!(budget.try_admit(1).err(), Some(AdmissionError::Frames { limit: 2 }));
        drop(first);
        assert!(budget.try_admit(6 << 10).is_ok());
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_budget_runs_alone() {
        let budget = Budget::new(2, 10 << 10);
        let alone = budget.admit(1 << 30).await.expect("it gets all there is");
        assert!(budget.try_admit(1).is_err());
        drop(alone);
        assert!(budget.try_admit(1).is_ok());
    }
}
