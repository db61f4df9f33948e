//! Limits that change while the server runs: Kubernetes resizes pods in place.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::resources::{Machine, Resources};
use crate::torch::threads;

/// How often the limits are read.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the number of threads that run models at what the machine grants, until the server closes.
pub(super) async fn follow(machine: Machine, close: CancellationToken) {
    while close.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let now = machine.resources();
        if now.threads() != threads::model_threads() {
            let Resources { processors, quota, .. } = now;
            tracing::info!(processors, quota, threads = now.threads(), "the processors that may be used have changed");
            threads::set_model_threads(now.threads());
        }
    }
}
