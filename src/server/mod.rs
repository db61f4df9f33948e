//! The protocol's edge: tonic services, transports, health, reflection, drain.
//!
//! [`Server::start`] loads the models, binds the addresses and serves; [`Server::run`] waits for the end and drains.
//! `explain` answers single frames, `stream` drives a [`crate::stream::Session`] for each stream, `models` tells what is
//! served. `connections` bounds the connections' number and age, `receiving` and `unsent` what messages hold on their
//! ways in and out, `messages` carries a stream's answers to its connection. `request`
//! turns messages into jobs, `response` turns answers into messages, and [`Refusal`] is the one place where an error becomes
//! a status. `security` has TLS and tokens. Generated types are known here and nowhere below.

mod admin;
mod camlens;
mod frame_account;
mod health;
mod load;
mod quota;
mod readings;
mod reclaim;
mod refusal;
mod service;
mod shutdown;
mod start;
pub(crate) mod transport;

pub use refusal::Refusal;
pub use shutdown::Shutdown;
pub use start::{Ended, Server, StartError};
pub use transport::listen::ListenError;
pub use transport::security::SecurityError;
