//! The protocol's edge: tonic services, transports, health, reflection, drain.
//!
//! [`Server::start`] loads the models, binds the addresses and serves; [`Server::run`] waits for the end and drains.
//! `explain` answers single frames, `stream` drives a [`crate::stream::Session`] for each stream, `models` tells what is
//! served. `connections` bounds the connections' number and age, `receiving` and `unsent` what messages hold on their
//! ways in and out, `messages` carries a stream's answers to its connection. `request`
//! turns messages into jobs, `response` turns answers into messages, and [`Refusal`] is the one place where an error becomes
//! a status. `security` has TLS and tokens. Generated types are known here and nowhere below.

mod admin;
mod calls;
mod config;
mod connections;
mod credit;
mod deadline;
mod explain;
mod frame_account;
mod health;
mod listen;
mod messages;
mod models;
mod places;
mod readings;
mod receiving;
mod reclaim;
mod refusal;
mod request;
mod response;
pub(crate) mod security;
mod service;
mod shutdown;
mod start;
mod stream;
mod unsent;

pub use admin::AdminConfig;
pub use config::{ServerConfig, TlsConfig};
pub use listen::{ListenAddress, ListenError};
pub use refusal::Refusal;
pub use security::SecurityError;
pub use shutdown::Shutdown;
pub use start::{Ended, Server, StartError};
