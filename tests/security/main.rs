//! Who may reach a server, and how: the built binary, certificates made here, and clients that are welcome or not.
//!
//! Every server logs all it can, and [`server::Server`] looks for secrets in that log when it ends.

mod certificates;
mod command_line;
mod exposure;
mod rotation;
mod server;
mod tls;
mod tokens;
