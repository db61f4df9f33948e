//! The frames that a client sends.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

/// One frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingFrame {
    /// Tag of the frame, which its answer repeats: the name of a file, or the name of a clip and the frame's number.
    pub name: String,
    pub payload: Payload,
    pub captured: Capture,
    /// Time from the start of the recording; `None`: the frame is a camera's, or a picture.
    pub position: Option<Duration>,
}

/// The picture of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The bytes of a picture file.
    Encoded(Bytes),
    /// RGB pixels in rows without padding: `3 · width · height` bytes.
    Rgb { width: u32, height: u32, data: Bytes },
}

/// When a frame was taken, by both of this machine's clocks: intervals come from `at`, the protocol carries `wall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    pub at: Instant,
    pub wall: SystemTime,
}

impl Capture {
    pub fn now() -> Self {
        Capture { at: Instant::now(), wall: SystemTime::now() }
    }

    /// A frame that was taken this long ago.
    pub fn ago(age: Duration) -> Self {
        let Capture { at, wall } = Capture::now();
        Capture { at: at.checked_sub(age).unwrap_or(at), wall: wall.checked_sub(age).unwrap_or(wall) }
    }
}

impl OutgoingFrame {
    /// A frame that was taken now.
    pub fn new(name: impl Into<String>, payload: Payload) -> Self {
        OutgoingFrame { name: name.into(), payload, captured: Capture::now(), position: None }
    }

    /// Length of the payload, in bytes.
    pub fn len_bytes(&self) -> usize {
        match &self.payload {
            Payload::Encoded(data) | Payload::Rgb { data, .. } => data.len(),
        }
    }
}
