//! One session per stream: which frames are read, which are dropped, and in which order their endings are sent.
//!
//! A pure state machine: no I/O, no clock. The driver of a [`Session`] reports each event (a frame was read, an answer
//! has come, the client cancelled), carries out the session's [`Action`]s, and sends its messages. Every accepted frame
//! ends in exactly one of them, in sequence order unless the policy says otherwise, and what waits is bounded.

mod dropped;
mod outbox;
mod policy;
mod session;

pub use dropped::{DropReason, DroppedRun};
pub use policy::{Bounds, Overflow, Policy};
pub use session::{Accepted, Action, Message, OutOfOrder, Session};
