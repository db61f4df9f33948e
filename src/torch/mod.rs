//! The bridge to libtorch: everything unsafe and everything C++.
//!
//! tch gives tensors; this module adds what it lacks and a model graph needs: operators found by name in ATen's
//! dispatcher ([`Operator`]), their schemas, calls with values of any kind ([`Value`]), and the gradient of a single
//! call ([`Tape`]), calls whose arguments are laid out once ([`Call`]), the elementwise kernels of a reverse run on the CPU
//! ([`gate`], [`Gates`]), pooling ([`max_pool`]), matrix products with constant matrices ([`linear`], [`gemm`](gemm())), convolutions by
//! Winograd's algorithm ([`winograd`]), and convolutions and ways back through them that leave zeros out
//! ([`sparse_convolution`], [`sparse_input_gradient`], and [`folded_input_gradient`] to few channels). A C++ exception becomes an [`OperatorError`].

mod call;
mod convolution;
mod ffi;
mod folded;
mod gates;
mod gemm;
mod kernels;
mod linear;
mod operator;
mod pooling;
mod process;
mod processor;
#[cfg(test)]
mod relative;
mod rows;
mod sparse;
mod stack;
mod storage;
mod tape;
mod value;
mod winograd;

pub use call::Call;
pub use convolution::window_may_miss;
pub use folded::{folded_input_gradient, folded_weight};
pub use gates::{Ahead, Gates};
pub use gemm::{GemmWeight, Then, gemm};
pub use kernels::{Bounds, add, add_clamped, channels_last, gate};
pub use linear::{can_multiply, has_products, linear, linear_by_rows, linear_gradient, linear_weight};
pub use operator::{Alias, Argument, ArgumentType, Operator, OperatorError, Schema};
pub use pooling::{max_pool, max_pool_gradient, mean_of_pixels};
pub use process::{give_back_memory, leave};
pub use processor::{MAX_CPU_ISA, check_max_cpu_isa, computes_in, has_bfloat16, has_kernels};
#[cfg(test)]
pub use relative::relative_error;
pub use rows::{stack, to_vec};
pub use sparse::{Moves, sparse_convolution, sparse_input_gradient, sparse_weight_back, sparse_weight_there};
pub use storage::{Storage, is_alone, written};
pub use tape::Tape;
pub use value::Value;
pub use winograd::{WINOGRAD_CHANNELS, WinogradStep, winograd, winograd_weight};
