//! The fuzz targets: one function each, which takes an input and panics if a check fails.
//!
//! cargo-fuzz runs them through `targets/`; `tests/corpora.rs` runs them on the inputs in `corpus/` with the stable
//! toolchain. Most inputs are invalid: a target returns normally if camlens refuses one.

pub mod archive;
pub mod frame;
pub mod onnx;
pub mod panics;
pub mod settings;
pub mod stream;
