//! Access to a server: the built binary, certificates made here, and clients that are admitted or refused.
//!
//! Every server logs at level `trace`, and [`server::Server`] searches that log for secrets when it is dropped.

mod certificates;
mod command_line;
mod exposure;
mod rotation;
mod server;
mod tls;
mod tokens;
