//! One session per stream: which frames are read, which give way, and in which order their endings are told.
//!
//! A pure state machine: no I/O, no clock. Whoever drives a [`Session`] tells it what happened (a frame was read, an answer
//! is there, the client cancelled), carries out its [`Action`]s, and sends the messages that it hands out. Every accepted
//! frame ends in exactly one of them, in sequence order unless the policy says otherwise, and what waits is bounded.

mod dropped;
mod outbox;
mod policy;
mod session;

pub use dropped::{DropReason, DroppedRun};
pub use policy::{Bounds, Overflow, Policy};
pub use session::{Accepted, Action, Message, OutOfOrder, Session};
