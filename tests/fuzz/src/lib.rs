//! What the fuzz targets do: a function for each, from bytes to nothing or a panic.
//!
//! cargo-fuzz runs them through `targets/`; `tests/corpora.rs` gives them what lies in `corpus/`, seeds and findings, on the
//! ordinary toolchain. A function that returns is content: what it is given may be nonsense, and mostly is.

pub mod archive;
pub mod frame;
pub mod panics;
pub mod settings;
pub mod stream;
