//! camlens's own kernels for the CPU: plain C++ on pointers, behind functions that check tensors and allocate results.
//!
//! - Matrix products: [`gemm`](gemm()) for convolutions, [`linear`](linear()) for linear layers,
//!   [`winograd`](winograd()) for 3 × 3 kernels.
//! - [`depthwise`](depthwise()) for convolutions that treat each channel alone.
//! - Where many elements are zero: [`sparse_convolution`], [`sparse_input_gradient`], and [`col2im_input_gradient`] for
//!   few channels.
//! - Rectifiers in a reverse run: [`gate`](gate()), [`Gates`]. Pooling: [`max_pool`], [`global_average_pool`].
//!
//! A `.cpp` file here drives the micro-kernels in `micro/`, which are compiled once per instruction set; `dispatch.cpp`
//! chooses.

mod bounds;
mod call;
mod col2im;
mod convolution;
mod depthwise;
mod element;
mod elementwise;
mod features;
mod ffi;
mod gates;
mod gemm;
mod linear;
mod panels;
mod parameters;
mod pooling;
mod sparse;
mod tensor;
mod winograd;

pub use bounds::Bounds;
pub use col2im::{col2im_input_gradient, col2im_weight};
pub use depthwise::{depthwise, depthwise_input_gradient, depthwise_weight};
pub use elementwise::{add, add_clamped, channels_last, gate};
pub use features::{MAX_CPU_ISA, check_max_cpu_isa, computes_in, has_bfloat16, has_gemm_kernels, has_onednn_kernels};
pub use gates::{Gates, PendingMask};
pub use gemm::{Epilogue, GemmWeight, gemm};
pub use linear::{can_pack, linear, linear_few_rows, linear_input_gradient, linear_weight};
pub use parameters::ConvolutionParameters;
pub use pooling::{global_average_pool, max_pool, max_pool_gradient};
pub use sparse::{sparse_backward_weight, sparse_convolution, sparse_forward_weight, sparse_input_gradient};
pub use winograd::{WINOGRAD_CHANNELS, WinogradStep, winograd, winograd_weight};
