//! Declarations of the C++ headers beside it, line for line.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

use super::parameters::ConvolutionParameters;

/// gemm.h
#[repr(C)]
pub(super) struct GemmConvolution {
    pub element: i32,
    pub input: *const c_void,
    pub batch: i64,
    pub height: i64,
    pub width: i64,
    pub inputs: i64,
    pub weight: *const c_void,
    pub kernel: [i64; 2],
    pub steps: i64,
    pub taps_per_step: i64,
    pub parameters: ConvolutionParameters,
    pub bias: *const f32,
    pub addend: *const c_void,
    pub low: f32,
    pub high: f32,
    pub result: *mut c_void,
    pub result_height: i64,
    pub result_width: i64,
    pub outputs: i64,
    pub gates: *mut u64,
    pub gate_low: f32,
    pub gate_high: f32,
}

/// linear.h
#[repr(C)]
pub(super) struct PackedLinear {
    pub element: i32,
    pub input: *const c_void,
    pub rows: i64,
    pub weight: *const c_void,
    pub steps: i64,
    pub outputs: i64,
    pub bias: *const f32,
    pub low: f32,
    pub high: f32,
    pub result: *mut c_void,
}

/// linear.h
#[repr(C)]
pub(super) struct RowMajorLinear {
    pub element: i32,
    pub input: *const c_void,
    pub rows: i64,
    pub weight: *const c_void,
    pub outputs: i64,
    pub inputs: i64,
    pub bias: *const f32,
    pub result: *mut c_void,
}

/// sparse.h
#[repr(C)]
pub(super) struct SparseConvolution {
    pub element: i32,
    pub is_gradient: bool,
    pub source: *const c_void,
    pub batch: i64,
    pub source_height: i64,
    pub source_width: i64,
    pub depth: i64,
    pub weight: *const c_void,
    pub is_transposed: bool,
    pub kernel: [i64; 2],
    pub parameters: ConvolutionParameters,
    pub bias: *const f32,
    pub low: f32,
    pub high: f32,
    pub gates: *const u64,
    pub is_guided: bool,
    pub target: *mut c_void,
    pub target_height: i64,
    pub target_width: i64,
    pub columns: i64,
}

/// col2im.h
#[repr(C)]
pub(super) struct Col2imGradient {
    pub element: i32,
    pub gradient: *const c_void,
    pub batch: i64,
    pub gradient_height: i64,
    pub gradient_width: i64,
    pub outputs: i64,
    pub gates: *const u64,
    pub is_guided: bool,
    pub weight: *const c_void,
    pub kernel: [i64; 2],
    pub panels: i64,
    pub parameters: ConvolutionParameters,
    pub result: *mut c_void,
    pub inputs: i64,
    pub height: i64,
    pub width: i64,
}

/// depthwise.h
#[repr(C)]
pub(super) struct DepthwiseConvolution {
    pub element: i32,
    pub is_gradient: bool,
    pub source: *const c_void,
    pub batch: i64,
    pub source_height: i64,
    pub source_width: i64,
    pub channels: i64,
    pub weight: *const f32,
    pub kernel: [i64; 2],
    pub parameters: ConvolutionParameters,
    pub bias: *const f32,
    pub low: f32,
    pub high: f32,
    pub target: *mut c_void,
    pub target_height: i64,
    pub target_width: i64,
    pub gates: *mut u64,
    pub gate_low: f32,
    pub gate_high: f32,
}

/// winograd.h
#[repr(C)]
pub(super) struct WinogradConvolution {
    pub element: i32,
    pub input: *const c_void,
    pub batch: i64,
    pub height: i64,
    pub width: i64,
    pub inputs: i64,
    pub weight: *const f32,
    pub step: i64,
    pub bias: *const f32,
    pub padding: i64,
    pub low: f32,
    pub high: f32,
    pub result: *mut c_void,
    pub result_height: i64,
    pub result_width: i64,
    pub outputs: i64,
}

/// pooling.h
#[repr(C)]
pub(super) struct PoolingWindows {
    pub element: i32,
    pub batch: i64,
    pub height: i64,
    pub width: i64,
    pub channels: i64,
    pub kernel: [i64; 2],
    pub parameters: ConvolutionParameters,
    pub result_height: i64,
    pub result_width: i64,
}

/// gates.h
#[repr(C)]
pub(super) struct GateLayer {
    pub element: i32,
    pub pixels: i64,
    pub channels: i64,
}

unsafe extern "C" {
    // dispatch.h
    pub(super) safe fn camlens_panel_width(element: i32) -> i64;

    // isa.h
    pub(super) safe fn camlens_isa() -> i32;
    pub(super) fn camlens_isa_allowed(value: *const c_char) -> i32;

    // elementwise.h
    pub(super) fn camlens_gate(
        element: i32,
        gradient: *const C_tensor,
        parts: *const *const C_tensor,
        part_count: usize,
        result: *const C_tensor,
        low: f32,
        high: f32,
        guided: bool,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_add_clamped(
        element: i32,
        sum: *const C_tensor,
        left: *const C_tensor,
        right: *const C_tensor,
        low: f32,
        high: f32,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_interleave(
        from: *const c_void,
        images: i64,
        channels: i64,
        height: i64,
        width: i64,
        element_bytes: i64,
        to: *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;

    // gates.h
    pub(super) fn camlens_gates_find(
        layer: *const GateLayer,
        results: *const c_void,
        low: f32,
        high: f32,
        gates: *mut u64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_gates_add(
        layer: *const GateLayer,
        left: *const c_void,
        right: *const c_void,
        least: f32,
        most: f32,
        low: f32,
        high: f32,
        sums: *mut c_void,
        gates: *mut u64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_gates_pass(
        layer: *const GateLayer,
        left: *const c_void,
        right: *const c_void,
        gates: *const u64,
        is_guided: bool,
        passed: *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;

    // gemm.h
    pub(super) fn camlens_gemm(convolution: *const GemmConvolution, error: *mut *mut c_char) -> c_int;

    // linear.h
    pub(super) fn camlens_linear(linear: *const PackedLinear, error: *mut *mut c_char) -> c_int;
    pub(super) fn camlens_linear_few_rows(linear: *const RowMajorLinear, error: *mut *mut c_char) -> c_int;
    pub(super) fn camlens_linear_input_gradient(linear: *const RowMajorLinear, error: *mut *mut c_char) -> c_int;

    // sparse.h
    pub(super) safe fn camlens_sparse_can_transpose(element: i32) -> bool;
    pub(super) fn camlens_sparse_convolution(convolution: *const SparseConvolution, error: *mut *mut c_char) -> c_int;

    // col2im.h
    pub(super) fn camlens_col2im(gradient: *const Col2imGradient, error: *mut *mut c_char) -> c_int;

    // depthwise.h
    pub(super) fn camlens_depthwise(convolution: *const DepthwiseConvolution, error: *mut *mut c_char) -> c_int;

    // winograd.h
    pub(super) fn camlens_winograd(convolution: *const WinogradConvolution, error: *mut *mut c_char) -> c_int;

    // pooling.h
    pub(super) fn camlens_max_pool(
        windows: *const PoolingWindows,
        input: *const c_void,
        maxima: *mut c_void,
        indices: *mut u8,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_max_pool_gradient(
        windows: *const PoolingWindows,
        gradient: *const c_void,
        indices: *const u8,
        result: *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_global_average_pool(
        element: i32,
        input: *const c_void,
        batch: i64,
        pixels: i64,
        channels: i64,
        result: *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;
}
