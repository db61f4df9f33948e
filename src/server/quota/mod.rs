//! Bounds: streams and connections per peer, credit, bytes of unread answers.

pub mod credit;
pub mod slots;
pub mod unsent;
