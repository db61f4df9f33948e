//! The face of `camlens.v1`: generated types are converted here and nowhere else in the server.

pub mod explain;
pub mod models;
pub mod request;
pub mod response;
pub mod stream;
