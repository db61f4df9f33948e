//! Why a frame was not explained.

use crate::explain::ExplainError;
use crate::frame::FrameError;
use crate::render::RenderError;
use std::sync::Arc;
/// Why a frame could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("options.pictures asks for an overlay, and a frame that is a tensor has no picture to draw on")]
    NoPicture,
    /// Of this row alone.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// Of the whole batch; each of its rows has it.
    #[error(transparent)]
    Batch(Arc<ExplainError>),
    #[error("the device has no memory left for this frame, not even in a smaller batch")]
    OutOfMemory,
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A panic; it is in the log.
    #[error("something in camlens broke while this frame was explained; the others are not affected")]
    Broken,
    #[error("the server is stopping")]
    Stopped,
    #[error("the frame's time to live ran out before it was explained")]
    Expired,
}
