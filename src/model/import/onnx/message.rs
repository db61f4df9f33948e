//! The messages of ONNX files, generated from `onnx.proto`.

// Generated code is not ours to format or to lint.
#![allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
