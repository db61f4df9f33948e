//! The bridge's stack: arguments before a call, results after it.

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::error::take_text;
use super::schema::{Argument, ArgumentType};
use super::{Value, ffi};

/// A stack that this value owns.
pub(super) struct Stack(NonNull<ffi::Stack>);

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the stack came from `camlens_stack_new` and is freed once.
        unsafe { ffi::camlens_stack_free(self.0.as_ptr()) }
    }
}

impl Stack {
    /// For the bridge's functions; valid while `self` lives.
    pub(super) fn as_ptr(&self) -> *mut ffi::Stack {
        self.0.as_ptr()
    }

    pub(super) fn new() -> Self {
        // SAFETY: no precondition. C++'s `new` returns no null; should it throw, the process aborts, as for Rust's own
        // allocations.
        let stack = unsafe { ffi::camlens_stack_new() };
        Stack(NonNull::new(stack).expect("the allocator gave a stack"))
    }

    pub(super) fn len(&self) -> usize {
        // SAFETY: the stack is live.
        unsafe { ffi::camlens_stack_size(self.0.as_ptr()) }
    }

    /// Pushes a value, converted to the argument's kind. The error says what does not fit.
    pub(super) fn push(&self, value: &Value, argument: &Argument) -> Result<(), String> {
        use ArgumentType as T;
        let stack = self.0.as_ptr();
        // SAFETY: the stack is live, slices are passed with their own lengths, tensor pointers come from live tensors,
        // and the bridge copies what it is passed.
        unsafe {
            match (argument.kind, value) {
                (_, Value::None) if argument.optional => ffi::camlens_stack_push_none(stack),
                (T::Tensor, Value::Tensor(t)) => ffi::camlens_stack_push_tensor(stack, t.as_ptr()),
                (T::Tensor, Value::Int(v)) => ffi::camlens_stack_push_wrapped_int(stack, *v),
                (T::Tensor, Value::Float(v)) => ffi::camlens_stack_push_wrapped_float(stack, *v),
                (T::Tensor, Value::Bool(v)) => ffi::camlens_stack_push_wrapped_bool(stack, *v),
                (T::Tensors, Value::Tensors(list)) => {
                    if list.iter().any(Option::is_none) {
                        return Err("an element of the list is absent".into());
                    }
                    let pointers = pointers(list);
                    ffi::camlens_stack_push_tensors(stack, pointers.as_ptr(), pointers.len());
                }
                (T::OptionalTensors, Value::Tensors(list)) => {
                    let pointers = pointers(list);
                    ffi::camlens_stack_push_optional_tensors(stack, pointers.as_ptr(), pointers.len());
                }
                (T::Int | T::Scalar, Value::Int(v)) => ffi::camlens_stack_push_int(stack, *v),
                (T::Int, Value::Bool(v)) => ffi::camlens_stack_push_int(stack, i64::from(*v)),
                (T::Float | T::Scalar, Value::Float(v)) => ffi::camlens_stack_push_float(stack, *v),
                (T::Float, Value::Int(v)) => ffi::camlens_stack_push_float(stack, *v as f64),
                (T::Bool | T::Scalar, Value::Bool(v)) => ffi::camlens_stack_push_bool(stack, *v),
                (T::Ints, Value::Ints(v)) => ffi::camlens_stack_push_ints(stack, v.as_ptr(), v.len()),
                (T::Floats, Value::Floats(v)) => ffi::camlens_stack_push_floats(stack, v.as_ptr(), v.len()),
                (T::OptionalScalars, Value::Floats(v)) => {
                    ffi::camlens_stack_push_optional_numbers(stack, v.as_ptr(), v.len());
                }
                (T::Floats, Value::Ints(v)) => {
                    let floats: Vec<f64> = v.iter().map(|&i| i as f64).collect();
                    ffi::camlens_stack_push_floats(stack, floats.as_ptr(), floats.len());
                }
                (T::Bools, Value::Bools(v)) => ffi::camlens_stack_push_bools(stack, v.as_ptr(), v.len()),
                (T::String, Value::String(v)) => ffi::camlens_stack_push_string(stack, v.as_ptr().cast(), v.len()),
                (T::Device, Value::Device(device)) => {
                    let index = match device {
                        Device::Cuda(index) => c_int::try_from(*index).unwrap_or(0),
                        _ => -1,
                    };
                    ffi::camlens_stack_push_device(stack, index);
                }
                (kind, value) => return Err(format!("takes {kind:?}, got {}", value.kind())),
            }
        }
        Ok(())
    }

    /// The value at an index; none if it is of a kind that [`Value`] does not support.
    pub(super) fn get(&self, index: usize) -> Option<Value> {
        let stack = self.0.as_ptr();
        // SAFETY: the stack is live, `index` is below its size, each read matches the kind that the bridge just
        // returned, element indices are below the list's length, and the caller owns the tensors and texts that are
        // returned.
        unsafe {
            let length = || ffi::camlens_stack_length(stack, index);
            Some(match ffi::camlens_stack_kind(stack, index) {
                ffi::KIND_NONE => Value::None,
                ffi::KIND_TENSOR => match own(ffi::camlens_stack_tensor(stack, index)) {
                    Some(tensor) => Value::Tensor(tensor),
                    None => Value::None,
                },
                ffi::KIND_TENSORS => {
                    Value::Tensors((0..length()).map(|i| own(ffi::camlens_stack_tensors_at(stack, index, i))).collect())
                }
                ffi::KIND_INT => Value::Int(ffi::camlens_stack_int(stack, index)),
                ffi::KIND_INTS => {
                    Value::Ints((0..length()).map(|i| ffi::camlens_stack_ints_at(stack, index, i)).collect())
                }
                ffi::KIND_FLOAT => Value::Float(ffi::camlens_stack_float(stack, index)),
                ffi::KIND_FLOATS => {
                    Value::Floats((0..length()).map(|i| ffi::camlens_stack_floats_at(stack, index, i)).collect())
                }
                ffi::KIND_BOOL => Value::Bool(ffi::camlens_stack_bool(stack, index)),
                ffi::KIND_BOOLS => {
                    Value::Bools((0..length()).map(|i| ffi::camlens_stack_bools_at(stack, index, i)).collect())
                }
                ffi::KIND_STRING => Value::String(take_text(ffi::camlens_stack_string(stack, index))),
                _ => return None,
            })
        }
    }
}

fn pointers(list: &[Option<Tensor>]) -> Vec<*const C_tensor> {
    list.iter().map(|t| t.as_ref().map_or(ptr::null(), Tensor::as_ptr)).collect()
}

/// Takes ownership of a tensor that the bridge returned; none if it is null.
///
/// # Safety
/// `pointer` is null or a tensor from the bridge, and nothing else owns it.
pub(super) unsafe fn own(pointer: *mut C_tensor) -> Option<Tensor> {
    // SAFETY: by this function's contract.
    (!pointer.is_null()).then(|| unsafe { Tensor::from_ptr(pointer) })
}
