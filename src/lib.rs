//! camlens: a gRPC sidecar that explains live what an image model looks at.
//!
//! # The map, in the order in which a frame meets it
//!
//! A client's message arrives at [`server`], through TLS and the gate for tokens; there it is turned from protobuf into
//! a job and handed to the stream's session in [`stream`]: a pure state machine that decides what is read, replaced,
//! answered and in which order. The job then waits in [`schedule`] until its batch is formed. A pool thread decodes and
//! prepares it with [`frame`]; the device's thread runs the batch through [`explain`], which knows the mathematics and
//! asks [`plan`] for a forward run and reverse runs over the graph that [`model`] read from a `.pt2` (that of the built-in
//! model `identity` is made in code). Every operator is called through [`torch`], the room with the C++ and the unsafe code.
//! The maps come back through [`render`], as tensors and pictures, and the answer leaves through the session's outbox.
//! [`telemetry`] has the stages of that way, from which timings, spans, metrics and logs derive, and takes them to a
//! collector; who looks after a server finds them at its admin port, which is [`server`]'s.
//!
//! - [`cli`]: `serve`, `explain`, `stream`, `bench`, `trace`, `models`, `doctor`, `health`; [`config`] is `camlens.toml`.
//! - [`process`]: the allocator and the exit of the whole process; any room may call it.
//! - [`proto`]: the types generated from `proto/camlens/v1`; only [`server`] and [`cli`] use them.
//! - [`explain`], [`plan`], [`model`] and [`stream`] are pure: no async, no transport, no telemetry.
//! - Each depends only on those that come after it on the way of a frame; [`render`] also draws on the pixels of [`frame`],
//!   and the description of a model's input, which [`frame`] follows, is [`model`]'s.

pub mod cli;
pub mod client;
pub mod config;
pub mod explain;
pub mod frame;
pub mod model;
pub mod plan;
pub mod process;
pub mod proto;
pub mod render;
pub mod schedule;
pub mod server;
pub mod stream;
pub mod telemetry;
pub mod torch;
