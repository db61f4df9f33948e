//! camlens: a gRPC sidecar that explains live what an image model looks at.

pub mod cli;
pub mod config;
pub mod explain;
pub mod frame;
pub mod model;
pub mod plan;
pub mod proto;
pub mod render;
pub mod schedule;
pub mod server;
pub mod stream;
pub mod telemetry;
pub mod torch;
