//! Why a frame was not explained.

use std::sync::Arc;

use crate::explain::ExplainError;
use crate::frame::FrameError;
use crate::render::RenderError;

/// Why a frame could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("options.pictures asks for a picture on the frame, and a frame that is a tensor has no picture to draw on")]
    NoPicture,
    /// An error of this row alone.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// An error of the whole batch; each of its rows has it.
    #[error(transparent)]
    Batch(Arc<ExplainError>),
    #[error("the device has no memory left for this frame, not even in a smaller batch")]
    OutOfMemory,
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A panic; the log has its message.
    #[error("something in camlens broke while this frame was explained; the others are not affected")]
    Broken,
    #[error("the server is stopping")]
    Stopped,
    #[error("the frame's time to live ran out before it was explained")]
    Expired,
}
