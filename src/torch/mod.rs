//! The bridge to libtorch: everything unsafe and everything C++.
//!
//! tch gives tensors; this module adds what it lacks and a model graph needs: operators found by name in ATen's
//! dispatcher ([`Operator`]), their schemas, calls with values of any kind ([`Value`]), and the gradient of a single
//! call ([`Tape`]). A C++ exception becomes an [`OperatorError`].

mod convolution;
mod ffi;
mod operator;
mod process;
mod rows;
mod storage;
mod tape;
mod value;

pub use convolution::window_may_miss;
pub use operator::{Alias, Argument, ArgumentType, Operator, OperatorError, Schema};
pub use process::{give_back_memory, leave};
pub use rows::stack;
pub use storage::Storage;
pub use tape::Tape;
pub use value::Value;
