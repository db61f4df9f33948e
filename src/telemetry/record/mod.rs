//! The records of a frame, a batch and a stream.

pub mod batch;
pub mod frame;
pub mod outcome;
pub mod progress;
pub mod source;
pub mod stream;
