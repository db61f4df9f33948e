//! When to stop, and when to stop at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two requests: to drain, and to stop without waiting any longer. Cheap to clone.
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
        let told = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                told.request();
            }
        });
        Ok(shutdown)
    }

    /// Asks to drain; asked again, to stop at once.
    pub fn request(&self) {
        if self.drain.is_cancelled() {
            self.force.cancel();
        }
        self.drain.cancel();
    }

    /// Whether it is time to drain.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Resolves when it is time to drain.
    pub async fn drain(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when there is no more time.
    pub async fn force(&self) {
        self.force.cancelled().await;
    }
}
