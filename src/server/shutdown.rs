//! Requests to drain and to stop without draining.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two requests. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    force: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Shutdown::default()
    }

    /// Drains at the first SIGTERM or SIGINT, stops at the second.
    ///
    /// # Errors
    /// When the process cannot listen to signals.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Shutdown::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let requested = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                requested.request();
            }
        });
        Ok(shutdown)
    }

    /// Requests a drain; called again, a stop without waiting.
    pub fn request(&self) {
        if self.drain.is_cancelled() {
            self.force.cancel();
        }
        self.drain.cancel();
    }

    /// Whether a drain has been requested.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Resolves when a drain is requested.
    pub async fn drain(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when a stop without waiting is requested.
    pub async fn force(&self) {
        self.force.cancelled().await;
    }
}
