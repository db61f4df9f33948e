//! The live page: what the model looks at, for people with a browser.
//!
//! Whoever has explained frames opens a [`Stream`] of a [`Hub`] for each source, asks it which frames somebody wants to
//! see ([`Stream::wants`]) and hands over those alone ([`Stream::show`]). [`routes`] serves the page, the pictures and
//! the counts. The work is bounded whatever the number of viewers: a frame is drawn once for all of them, at a bounded
//! rate; a viewer that is slower than the frames gets the newest one; nothing is drawn while nobody looks.

mod access;
mod hub;
mod message;
mod picture;
mod pictures;
mod policy;
mod routes;
mod shot;

pub use access::Access;
pub use hub::{Ended, Hub, Limits, Stream, StreamFacts};
pub use policy::Policy;
pub use routes::routes;
