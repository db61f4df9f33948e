//! Declarations of bridge.h, line for line.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

pub(super) enum OperatorHandle {}
pub(super) enum Stack {}

/// `camlens_view`
#[repr(C)]
pub(super) struct TensorView {
    pub storage: usize,
    pub offset: i64,
    pub data: *const c_void,
    pub size: *const i64,
    pub stride: *const i64,
    pub dimensions: usize,
    pub element_bytes: i64,
    pub kind: c_int,
    pub is_on_cpu: bool,
    pub is_exclusive: bool,
    pub is_dense: bool,
    pub is_contiguous: bool,
    pub is_channels_last: bool,
}

pub(super) const OK: c_int = 0;
pub(super) const OUT_OF_MEMORY: c_int = 2;

pub(super) const KIND_NONE: c_int = 0;
pub(super) const KIND_TENSOR: c_int = 1;
pub(super) const KIND_TENSORS: c_int = 2;
pub(super) const KIND_INT: c_int = 3;
pub(super) const KIND_INTS: c_int = 4;
pub(super) const KIND_FLOAT: c_int = 5;
pub(super) const KIND_FLOATS: c_int = 6;
pub(super) const KIND_BOOL: c_int = 7;
pub(super) const KIND_BOOLS: c_int = 8;
pub(super) const KIND_STRING: c_int = 9;

unsafe extern "C" {
    pub(super) fn camlens_text_free(text: *mut c_char);

    pub(super) fn camlens_operator_find(
        name: *const c_char,
        overload: *const c_char,
        found: *mut *mut OperatorHandle,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_operator_free(operator: *mut OperatorHandle);
    pub(super) fn camlens_operator_call(
        operator: *const OperatorHandle,
        stack: *mut Stack,
        record_gradient: bool,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(super) fn camlens_operator_call_with(
        operator: *const OperatorHandle,
        prepared: *const Stack,
        positions: *const usize,
        tensors: *const *const C_tensor,
        count: usize,
        result: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;

    pub(super) fn camlens_operator_argument_count(operator: *const OperatorHandle) -> usize;
    pub(super) fn camlens_operator_return_count(operator: *const OperatorHandle) -> usize;
    pub(super) fn camlens_operator_argument_name(operator: *const OperatorHandle, index: usize) -> *const c_char;
    pub(super) fn camlens_operator_argument_type(operator: *const OperatorHandle, index: usize) -> *mut c_char;
    pub(super) fn camlens_operator_argument_alias(operator: *const OperatorHandle, index: usize) -> c_int;
    pub(super) fn camlens_operator_return_alias(operator: *const OperatorHandle, index: usize) -> c_int;
    pub(super) fn camlens_operator_push_default(
        operator: *const OperatorHandle,
        index: usize,
        stack: *mut Stack,
        has: *mut bool,
        error: *mut *mut c_char,
    ) -> c_int;

    pub(super) fn camlens_stack_new() -> *mut Stack;
    pub(super) fn camlens_stack_free(stack: *mut Stack);
    pub(super) fn camlens_stack_size(stack: *const Stack) -> usize;
    pub(super) fn camlens_stack_push_none(stack: *mut Stack);
    pub(super) fn camlens_stack_push_tensor(stack: *mut Stack, tensor: *const C_tensor);
    pub(super) fn camlens_stack_push_tensors(stack: *mut Stack, tensors: *const *const C_tensor, count: usize);
    pub(super) fn camlens_stack_push_optional_tensors(stack: *mut Stack, tensors: *const *const C_tensor, count: usize);
    pub(super) fn camlens_stack_push_int(stack: *mut Stack, value: i64);
    pub(super) fn camlens_stack_push_ints(stack: *mut Stack, values: *const i64, count: usize);
    pub(super) fn camlens_stack_push_float(stack: *mut Stack, value: f64);
    pub(super) fn camlens_stack_push_floats(stack: *mut Stack, values: *const f64, count: usize);
    pub(super) fn camlens_stack_push_optional_numbers(stack: *mut Stack, values: *const f64, count: usize);
    pub(super) fn camlens_stack_push_bool(stack: *mut Stack, value: bool);
    pub(super) fn camlens_stack_push_wrapped_int(stack: *mut Stack, value: i64);
    pub(super) fn camlens_stack_push_wrapped_float(stack: *mut Stack, value: f64);
    pub(super) fn camlens_stack_push_wrapped_bool(stack: *mut Stack, value: bool);
    pub(super) fn camlens_stack_push_bools(stack: *mut Stack, values: *const bool, count: usize);
    pub(super) fn camlens_stack_push_string(stack: *mut Stack, text: *const c_char, length: usize);
    pub(super) fn camlens_stack_push_device(stack: *mut Stack, cuda_index: c_int);

    pub(super) fn camlens_stack_kind(stack: *const Stack, index: usize) -> c_int;
    pub(super) fn camlens_stack_tensor(stack: *const Stack, index: usize) -> *mut C_tensor;
    pub(super) fn camlens_stack_length(stack: *const Stack, index: usize) -> usize;
    pub(super) fn camlens_stack_tensors_at(stack: *const Stack, index: usize, element: usize) -> *mut C_tensor;
    pub(super) fn camlens_stack_int(stack: *const Stack, index: usize) -> i64;
    pub(super) fn camlens_stack_ints_at(stack: *const Stack, index: usize, element: usize) -> i64;
    pub(super) fn camlens_stack_float(stack: *const Stack, index: usize) -> f64;
    pub(super) fn camlens_stack_floats_at(stack: *const Stack, index: usize, element: usize) -> f64;
    pub(super) fn camlens_stack_bool(stack: *const Stack, index: usize) -> bool;
    pub(super) fn camlens_stack_bools_at(stack: *const Stack, index: usize, element: usize) -> bool;
    pub(super) fn camlens_stack_string(stack: *const Stack, index: usize) -> *mut c_char;

    pub(super) fn camlens_tensor_view(tensor: *const C_tensor, view: *mut TensorView);

    pub(super) fn camlens_cuda_options(allow_tf32: bool, time_algorithms: bool, error: *mut *mut c_char) -> c_int;

    pub(super) fn camlens_gradient(
        outputs: *const *const C_tensor,
        gradients: *const *const C_tensor,
        output_count: usize,
        inputs: *const *const C_tensor,
        input_count: usize,
        results: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
}
