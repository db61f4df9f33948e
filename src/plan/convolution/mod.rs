//! Convolutions with what follows them, for any device: the pass that fuses them, and how a fused node is read.
//!
//! A fused node is written as oneDNN's `_convolution_pointwise`, whose schema has room for everything: a convolution,
//! the addition of another tensor (overload `binary`), and an activation. Each device runs it with its own kernels.

mod activation;
mod fuse;
mod fused_node;
mod geometry;

pub use activation::Activation;
pub use fuse::{Candidate, fuse_convolutions};
pub use fused_node::FusedNode;
pub use geometry::Geometry;
