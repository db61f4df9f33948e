//! Frames as a client sends them.

use bytes::Bytes;

/// One frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingFrame {
    /// Sent as the frame's tag, which the answer repeats: a file's name, or a clip's name and the frame's number.
    pub name: String,
    pub payload: Payload,
}

/// The picture of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The bytes of a picture file.
    Encoded(Bytes),
    /// Rows of red, green, blue bytes without gaps: `3 · width · height` bytes.
    Rgb { width: u32, height: u32, data: Bytes },
}
