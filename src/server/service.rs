//! What the services share.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::config::LimitsConfig;
use crate::schedule::{Engine, Handle};
use crate::telemetry::Telemetry;

use super::quota::credit::Credit;
use super::quota::slots::Places;
use super::quota::unsent::Unsent;
use super::reclaim::Reclaim;
use super::shutdown::Shutdown;

/// Behind every service; cheap to clone.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) engine: Engine,
    pub(super) telemetry: Telemetry,
    pub(super) limits: LimitsConfig,
    pub(super) drain_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub(super) write_timeout: Duration,
    pub(super) reclaim: Reclaim,
    pub(super) unsent: Unsent,
    pub(super) credit: Credit,
    /// For streams.
    pub(super) places: Places,
    pub(super) shutdown: Shutdown,
    /// Calls that a drain waits for.
    pub(super) calls: TaskTracker,
}

/// A frame that is with the engine. Dropping this ends it, when whoever wanted it has gone; once it has ended, nothing
/// happens.
pub(super) struct SubmittedFrame {
    engine: Engine,
    handle: Handle,
}

impl SubmittedFrame {
    pub(super) fn new(engine: &Engine, handle: Handle) -> Self {
        SubmittedFrame { engine: engine.clone(), handle }
    }

    /// Ends the frame unless it is on the device; whether it did.
    pub(super) fn withdraw(&self) -> bool {
        self.engine.withdraw(&self.handle)
    }

    /// Ends the frame wherever it is; whether it did.
    pub(super) fn cancel(&self) -> bool {
        self.engine.cancel(&self.handle)
    }
}

impl Drop for SubmittedFrame {
    fn drop(&mut self) {
        self.cancel();
    }
}
