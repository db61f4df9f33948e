//! The CPU backend: packed weights, kernels chosen by timing, fused convolutions.

pub mod autotune;
pub mod convolution;
pub mod fuse_convolutions;
pub mod linear;
