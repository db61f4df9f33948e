//! camlens: a gRPC sidecar that explains live what an image model looks at.

pub mod frame;
pub mod model;
pub mod render;
pub mod telemetry;
pub mod torch;
