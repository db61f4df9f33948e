//! The protocol's edge: sockets, the services of each face, health, reflection, drain.
//!
//! [`Server::start`] loads the models, binds the addresses and serves; [`Server::run`] waits for the end and drains.
//!
//! - `camlens` is the face of `camlens.v1`: it alone knows generated types. Another protocol is another folder beside
//!   it.
//! - `submit` is the one way into the engine for every face: it makes a converted frame a job. `frame_account` is the
//!   frame's record for telemetry, and [`Refusal`] the one type from which statuses are made.
//! - `transport` has sockets, TLS, tokens, deadlines, compression and the metering of calls; `quota` bounds
//!   connections, streams and unread answers. Both serve any face.
//! - `service` is the state that the services share, `routes` lists what can be called, `health` says what can be used.
//! - `devices` finds what runs the models, and `repository` keeps the models as their directory has them. `start`,
//!   `load`, `shutdown`, `reclaim`, `resize`, `readings` and `own_thread` run the server; `admin` is the port for
//!   operators, `probes` the one for probes and metrics alone, and `pages` what both have.

mod admin;
mod camlens;
pub mod devices;
mod frame_account;
mod health;
mod live_page;
mod load;
mod own_thread;
mod pages;
mod probes;
mod quota;
mod readings;
mod reclaim;
mod refusal;
mod repository;
mod resize;
mod routes;
mod service;
mod shutdown;
mod start;
mod start_error;
mod submit;
mod transport;
mod viewing;

pub use refusal::Refusal;
pub use shutdown::Shutdown;
pub use start::{Ended, Server};
pub use start_error::StartError;
pub use transport::listen::{InProcess, ListenError};
