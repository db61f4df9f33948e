//! `[limits]` of `camlens.toml`.

use serde::{Deserialize, Serialize};

use super::error::{at_least_one, value};
use super::{ConfigError, MAX_FRAME_BYTES};
use crate::schedule::MAX_PRIORITY;

/// `[limits]`. A model's own limits, in its `model.toml`, can only tighten them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of a frame's payload.
    pub max_frame_bytes: u64,
    /// Width × height of a frame.
    pub max_frame_pixels: u64,
    /// Most rows in a batch. The server learns the best number, up to this, while it runs.
    pub max_batch: u32,
    /// Targets of one frame.
    pub max_targets: u32,
    /// Target layers, tensors and pictures of one frame: this many of each.
    pub max_outputs: u32,
    /// Credit of a stream: frames that its client has sent and that are not answered.
    pub max_in_flight: u32,
    /// Unread bytes of one stream's answers.
    pub max_unsent_bytes: u64,
    /// Unread bytes of the answers of all streams. Above it, each stream is limited to an equal part. 0: an eighth of
    /// the memory, at most 1 GiB.
    pub unsent_bytes: u64,
    /// Bytes of all messages that are being received. A message that exceeds it waits. 0: a sixteenth of the memory, at
    /// most 256 MiB.
    pub receiving_bytes: u64,
    /// Open streams, in total.
    pub max_streams: u32,
    /// Open streams from one IP address. Clients behind one proxy share its address; clients of a Unix socket have none
    /// and are not limited by this.
    pub max_streams_per_peer: u32,
    /// Frames in work, over all streams.
    pub queued_frames: u32,
    /// Bytes of the frames in work: payload, decoded pixels and model input. 0: an eighth of the memory, at most 1 GiB.
    pub queued_bytes: u64,
    /// Frames in work of one model.
    pub model_queued_frames: u32,
    /// Bytes of the frames in work of one model. 0: those of all models.
    pub model_queued_bytes: u64,
    /// Bytes of the frames in work of one stream. 0: a quarter of those of all streams.
    pub stream_queued_bytes: u64,
    /// How long a batch that is not full waits for more frames while the device is idle.
    pub max_batch_delay_ms: u32,
    /// The highest priority that a stream may have, 0 to 7.
    pub max_priority: u8,
    /// A waiting stream's priority rises by 1 each time that this has passed, so that no stream starves.
    pub priority_ageing_ms: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        LimitsConfig {
            max_frame_bytes: 32 << 20,
            max_frame_pixels: 64_000_000,
            max_batch: 8,
            max_targets: 16,
            max_outputs: 16,
            max_in_flight: 16,
            max_unsent_bytes: 128 << 20,
            unsent_bytes: 0,
            receiving_bytes: 0,
            max_streams: 1024,
            max_streams_per_peer: 1024,
            queued_frames: 1024,
            queued_bytes: 0,
            model_queued_frames: 1024,
            model_queued_bytes: 0,
            stream_queued_bytes: 0,
            max_batch_delay_ms: 0,
            max_priority: MAX_PRIORITY,
            priority_ageing_ms: 1000,
        }
    }
}

impl LimitsConfig {
    /// The limits on a machine that grants `memory` bytes: budgets of 0 bytes become their shares of it.
    pub fn within(&self, memory: u64) -> Self {
        let or = |bytes: u64, share: u64| if bytes == 0 { share } else { bytes };
        let queued_bytes = or(self.queued_bytes, (memory / 8).min(1 << 30));
        LimitsConfig {
            unsent_bytes: or(self.unsent_bytes, (memory / 8).min(1 << 30)),
            receiving_bytes: or(self.receiving_bytes, (memory / 16).min(256 << 20)),
            queued_bytes,
            model_queued_bytes: or(self.model_queued_bytes, queued_bytes),
            stream_queued_bytes: or(self.stream_queued_bytes, queued_bytes / 4),
            ..*self
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let LimitsConfig {
            max_frame_bytes,
            max_frame_pixels,
            max_batch,
            max_targets,
            max_outputs,
            max_in_flight,
            max_unsent_bytes,
            unsent_bytes: _,
            receiving_bytes: _,
            max_streams,
            max_streams_per_peer,
            queued_frames,
            queued_bytes: _,
            model_queued_frames,
            model_queued_bytes: _,
            stream_queued_bytes: _,
            max_batch_delay_ms: _,
            max_priority,
            priority_ageing_ms,
        } = *self;
        for (key, number) in [
            ("limits.max_frame_bytes", max_frame_bytes),
            ("limits.max_frame_pixels", max_frame_pixels),
            ("limits.max_batch", max_batch.into()),
            ("limits.max_targets", max_targets.into()),
            ("limits.max_outputs", max_outputs.into()),
            ("limits.max_in_flight", max_in_flight.into()),
            ("limits.max_unsent_bytes", max_unsent_bytes),
            ("limits.max_streams", max_streams.into()),
            ("limits.max_streams_per_peer", max_streams_per_peer.into()),
            ("limits.queued_frames", queued_frames.into()),
            ("limits.model_queued_frames", model_queued_frames.into()),
            ("limits.priority_ageing_ms", priority_ageing_ms.into()),
        ] {
            at_least_one(key, number)?;
        }
        if max_priority > MAX_PRIORITY {
            return Err(value("limits.max_priority", max_priority, &format!("at most {MAX_PRIORITY}")));
        }
        if max_frame_bytes > MAX_FRAME_BYTES {
            return Err(value("limits.max_frame_bytes", max_frame_bytes, &format!("at most {MAX_FRAME_BYTES}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_that_are_not_given_are_shares_of_the_memory() {
        let of = |memory| {
            let found = LimitsConfig::default().within(memory);
            assert_eq!(found.model_queued_bytes, found.queued_bytes);
            [found.queued_bytes, found.stream_queued_bytes, found.unsent_bytes, found.receiving_bytes]
        };
        assert_eq!(of(512 << 20), [64 << 20, 16 << 20, 64 << 20, 32 << 20]);
        assert_eq!(of(u64::MAX), [1 << 30, 256 << 20, 1 << 30, 256 << 20]);
    }

    #[test]
    fn budgets_that_are_given_stay() {
        let given = LimitsConfig { queued_bytes: 7, model_queued_bytes: 6, unsent_bytes: 5, ..LimitsConfig::default() };
        let found = given.within(1 << 30);
        assert_eq!((found.queued_bytes, found.model_queued_bytes, found.unsent_bytes), (7, 6, 5));
    }
}
