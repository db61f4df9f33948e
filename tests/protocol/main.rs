//! The protocol as a client sees it: a server in this process, on a Unix socket, and the generated client.
//!
//! Each test is a rule of the protocol. Where the order of events matters, the device is one that the test controls
//! ([`server::Gate`]); elsewhere it is the real one with a small network. Only [`signals`] runs the built binary.

mod agreement;
mod bad_frames;
mod compression;
mod conversation;
mod damaged_frames;
mod drain;
mod edges;
mod identity;
mod images;
mod limits;
mod live_page;
mod other_clients;
mod policies;
mod precision;
mod repository;
mod server;
mod sidecar;
mod signals;
mod single;
mod sizes;
mod streams;
