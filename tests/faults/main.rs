//! The network at its worst, on purpose and the same each time: a proxy that delays, cuts and swallows ([`proxy`]), peers
//! that reset, never read or talk nonsense.
//!
//! Each test ends with [`ground::Ground::is_as_before`]: tasks and file descriptors are back where they were, and a stream
//! that needs the server's whole budget is served. That budget is one frame: an admission that is lost stops the server.

mod cuts;
mod dice;
mod garbage;
mod ground;
mod half_open;
mod messages;
mod proxy;
mod slow;
mod storms;

// Shared with the protocol's tests, which use the rest.
#[allow(dead_code)]
#[path = "../protocol/conversation.rs"]
mod conversation;
#[allow(dead_code)]
#[path = "../protocol/images.rs"]
mod images;
#[allow(dead_code)]
#[path = "../protocol/server.rs"]
mod server;
