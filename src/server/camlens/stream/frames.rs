//! The frames of a stream: read, then pending, then answered and unsent.

use std::pin::Pin;
use std::sync::Arc;

use crate::proto::v1::explain_stream_response::Message as Response;
use crate::schedule::{Admission, AdmissionError, Lane};

use crate::server::camlens::response::Echo;
use crate::server::frame_account::FrameAccount;
use crate::server::submit::{CheckedOptions, ReadFrame, SubmittedFrame};

/// A frame as it was read from the stream.
pub(super) struct ArrivedFrame {
    pub(super) frame: ReadFrame,
    pub(super) echo: Echo,
}

/// A frame that was read and is not accepted yet: it waits for credit, or for room in the server.
pub(super) struct HeldFrame {
    pub(super) arrived: ArrivedFrame,
    /// Set under `BLOCK` once the stream has credit and the server has no room.
    admission: Option<Pin<Box<Admitting>>>,
}

type Admitting = dyn Future<Output = Result<Admission, AdmissionError>> + Send;

impl HeldFrame {
    /// Waits for credit.
    pub(super) fn new(arrived: ArrivedFrame) -> Self {
        HeldFrame { arrived, admission: None }
    }

    /// Has credit, and waits until `lane` has room for `bytes`.
    pub(super) fn waiting(arrived: ArrivedFrame, lane: Lane, bytes: u64) -> Self {
        let admission: Pin<Box<Admitting>> = Box::pin(async move { lane.admit(bytes).await });
        HeldFrame { arrived, admission: Some(admission) }
    }

    /// Whether the stream has credit for it and the server has no room.
    pub(super) fn waits_for_server(&self) -> bool {
        self.admission.is_some()
    }
}

/// Resolves when the server has room for a held frame that waits for it; never when none does.
pub(super) async fn admission(held: &mut Option<HeldFrame>) -> Result<Admission, AdmissionError> {
    match held.as_mut().and_then(|held| held.admission.as_mut()) {
        Some(admission) => admission.await,
        None => std::future::pending().await,
    }
}

/// A frame that was accepted and has not ended.
pub(super) struct PendingFrame {
    /// `None` while the frame is not in the engine.
    pub(super) submitted: Option<SubmittedFrame>,
    pub(super) account: FrameAccount,
    pub(super) echo: Echo,
    pub(super) options: Arc<CheckedOptions>,
}

/// A frame's answer that has not been sent, with the account that closes then.
pub(super) struct UnsentAnswer {
    pub(super) message: Response,
    pub(super) account: FrameAccount,
}
