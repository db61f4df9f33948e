//! Sockets, TLS, tokens, deadlines and the metering of calls, for any face: nothing here knows a protocol's messages.

pub mod calls;
pub mod connections;
pub mod deadline;
pub mod listen;
pub mod messages;
pub mod receiving;
pub mod security;
pub mod serve;
