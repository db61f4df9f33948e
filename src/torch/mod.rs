//! The bridge to libtorch: all C++ and, besides [`process`](crate::process), all unsafe code.
//!
//! tch provides tensors. This module adds what a model's graph needs beyond them: operators found by name in ATen's
//! dispatcher ([`Operator`]), their schemas ([`Schema`]), calls with values of any kind ([`Value`]), calls whose
//! arguments are prepared once ([`Call`]), the gradient of a single call ([`Tape`]), and camlens's own kernels for the
//! CPU (`kernels/`), which [`threads`] runs. [`cuda`] is loaded when it is asked for. A C++ exception becomes an
//! [`OperatorError`].
#![allow(unsafe_code, reason = "libtorch and the kernels are C++, called through a C interface")]

mod call;
pub mod cuda;
mod error;
mod ffi;
mod host;
mod kernels;
mod operator;
mod padding_guard;
#[cfg(test)]
mod relative;
mod schema;
mod stack;
mod storage;
mod tape;
pub mod threads;
mod value;

pub use call::Call;
pub use error::OperatorError;
pub use host::{stack, to_vec};
pub use kernels::*;
pub use operator::Operator;
pub use padding_guard::window_may_miss;
#[cfg(test)]
pub use relative::relative_error;
pub use schema::{Alias, Argument, ArgumentType, Schema};
pub use storage::{Storage, byte_tensor, is_exclusive};
pub use tape::Tape;
pub use value::Value;
