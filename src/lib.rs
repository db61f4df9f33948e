//! camlens: a gRPC sidecar that explains live what an image model looks at.
//!
//! # The map, in the order in which a frame meets it
//!
//! A client's message arrives at [`server`], through TLS and the token check. The server's face of `camlens.v1`
//! converts it from protobuf into a job and hands it to the stream's session in [`stream`], a pure state machine that
//! decides which frames are read, replaced and answered, and in which order. The job waits in [`schedule`] until its
//! batch is formed. A pool thread decodes and preprocesses it with [`frame`]. The device's thread runs the batch
//! through [`explain`], which knows the mathematics; it asks [`plan`] for a forward run and reverse runs over the graph
//! that [`model`] imported from a file. Every operator is called through [`torch`], the room with the C++ and the
//! unsafe code. [`render`] turns maps into tensors and pictures, and the answer leaves through the session's outbox.
//! [`telemetry`] defines the stages on the way, derives timings, spans, metrics and logs from them, and exports them;
//! operators reach the server through its admin port, probes through their own, and people see the frames on the page
//! of [`view`]. Models come, change and go while frames run, as their repository has them.
//!
//! - [`cli`]: `serve`, `explain`, `stream`, `bench`, `capacity`, `trace`, `models`, `import`, `doctor`, `health`; flags
//!   and print.
//! - [`client`]: a client of the protocol that knows credit, order, accounts and reconnection; [`cli`] and load tests
//!   use it.
//! - [`view`]: the live page, which draws what [`render`] prepares for those who look.
//! - [`http`]: ports for pages, with bounded connections; [`server`] and [`view`]'s users open them.
//! - [`config`]: `camlens.toml` as one type.
//! - [`credentials`]: certificates, keys and tokens in files, for the server and its clients.
//! - [`resources`]: the processors and the memory that the process may use.
//! - [`build_facts`]: version, commit, compiler and libtorch, for [`cli`] and the admin port.
//! - [`process`]: the allocator, the scheduler's class of threads and how long they wait for a processor, and the exit
//!   of the process; any room may call it.
//! - [`proto`]: the types generated from `proto/camlens/v1`; only the server's face, [`client`] and [`cli`] use them.
//! - [`explain`], [`plan`], [`model`], [`stream`], [`frame`] and [`render`] are pure: no async, no transport, no
//!   telemetry.
//! - Each room imports only rooms that come after it on the way of a frame; `tests/house/rooms.py` has the table.
//!   [`render`] also uses the pixels of [`frame`], and [`frame`] the description of a model's input in [`model`].

pub mod build_facts;
pub mod cli;
pub mod client;
pub mod config;
pub mod credentials;
pub mod explain;
pub mod frame;
pub mod http;
pub mod model;
pub mod plan;
pub mod process;
pub mod proto;
pub mod render;
pub mod resources;
pub mod schedule;
pub mod server;
pub mod stream;
pub mod telemetry;
pub mod torch;
pub mod view;
