//! Network faults, the same in each run: a proxy that delays, cuts and discards bytes ([`proxy`]), and peers that reset
//! connections, never read, or send invalid bytes.
//!
//! Each test ends with [`ground::Ground::is_as_before`]: tasks and file descriptors are as many as before,
//! and a stream that needs the server's whole budget is served. That budget is one frame: a leaked admission stops it.

mod cuts;
mod dice;
mod garbage;
mod ground;
mod half_open;
mod messages;
mod proxy;
mod slow;
mod storms;

// Shared with tests/protocol, which uses all of it.
#[allow(dead_code)]
#[path = "../protocol/conversation.rs"]
mod conversation;
#[allow(dead_code)]
#[path = "../protocol/images.rs"]
mod images;
#[allow(dead_code)]
#[path = "../protocol/server.rs"]
mod server;
