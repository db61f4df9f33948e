//! The protocol as Rust types, generated from `proto/` by the build script. Servers and clients of ours use them at
//! their edge; nothing below `server/` knows them.

/// `camlens.v1`.
// Generated code is not ours to format or to lint.
#[allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("camlens.v1");
}

/// Every file of the protocol, encoded, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("camlens");
