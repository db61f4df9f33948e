//! Sockets, TLS, tokens, deadlines, compression and the metering of calls, for any face: nothing here knows a
//! protocol's messages.

pub mod calls;
pub mod checks;
pub mod compression;
pub mod connections;
pub mod deadline;
pub mod listen;
pub mod messages;
pub mod occasions;
pub mod other_protocols;
pub mod receiving;
pub mod security;
pub mod serve;
