//! The frames that a client sends.

use bytes::Bytes;

/// One frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingFrame {
    /// Tag of the frame, which its answer repeats: the name of a file, or the name of a clip and the frame's number.
    pub name: String,
    pub payload: Payload,
}

/// The picture of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The bytes of a picture file.
    Encoded(Bytes),
    /// RGB pixels in rows without padding: `3 · width · height` bytes.
    Rgb { width: u32, height: u32, data: Bytes },
}
