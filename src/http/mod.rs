//! Ports that serve pages to people and programs: bounds on their connections, and nothing of what they show.

mod port;
pub mod slots;
mod stalled;

pub use port::{Bounds, MAX_BODY_BYTES, Port, Spoken};
