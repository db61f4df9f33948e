//! A call whose arguments are prepared once.

use std::fmt;
use std::ptr;

use tch::Tensor;
use torch_sys::C_tensor;

use super::error::error_of;
use super::stack::{Stack, own};
use super::{Operator, OperatorError, Value, ffi};

/// An operator with its arguments, of which only some tensors change from call to call. Compared with
/// [`Operator::call`] it saves the microseconds that building lists and texts takes.
///
/// It does not write out the padding of convolutions whose window may miss the input, as [`Operator::call`] does.
pub struct Call {
    operator: Operator,
    arguments: Stack,
}

// SAFETY: this value alone owns the stack. The stack holds reference-counted values with atomic counts, and calls only
// copy them.
unsafe impl Send for Call {}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({})", self.operator)
    }
}

impl Call {
    /// `arguments` are as for [`Operator::call`]. A tensor that every call replaces can be undefined: [`Tensor::new`].
    pub fn new(operator: &Operator, arguments: &[Value]) -> Result<Self, OperatorError> {
        Ok(Call { operator: operator.clone(), arguments: operator.stack_of(arguments)? })
    }

    /// Calls the operator with these tensors at these argument positions, without recording a gradient.
    ///
    /// # Errors
    /// The operator's own; [`OperatorError::Unsupported`] when it does not return one tensor.
    pub fn call<const N: usize>(&self, tensors: [(usize, &Tensor); N]) -> Result<Tensor, OperatorError> {
        let positions = tensors.map(|(position, _)| position);
        let pointers: [*const C_tensor; N] = tensors.map(|(_, tensor)| tensor.as_ptr());
        let (mut result, mut error) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the operator, the stack and the tensors are live, both lists have N elements, and the positions are
        // checked in C++.
        let status = unsafe {
            ffi::camlens_operator_call_with(
                self.operator.handle(),
                self.arguments.as_ptr(),
                positions.as_ptr(),
                pointers.as_ptr(),
                N,
                &raw mut result,
                &raw mut error,
            )
        };
        if status != ffi::OK {
            return Err(error_of(&self.operator.to_string(), status, error));
        }
        // SAFETY: the result is null or a tensor that the caller owns.
        unsafe { own(result) }.ok_or_else(|| OperatorError::Unsupported { operator: self.operator.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_given_tensors_change() {
        let add = Operator::find("aten::add", "Tensor").unwrap();
        let fixed = Tensor::from_slice(&[1.0f32, 2.0]);
        let call = Call::new(&add, &[Value::Tensor(Tensor::new()), fixed.into(), Value::Int(10)]).unwrap();
        for start in [0.0f32, 5.0] {
            let sum = call.call([(0, &Tensor::from_slice(&[start, start]))]).unwrap();
            assert_eq!(Vec::<f32>::try_from(sum).unwrap(), [start + 10.0, start + 20.0]);
        }
    }

    #[test]
    fn failures_are_errors() {
        let add = Operator::find("aten::add", "Tensor").unwrap();
        assert!(Call::new(&add, &[Value::Int(1)]).unwrap_err().to_string().contains("takes 3 arguments, got 1"));
        let undefined = || Value::Tensor(Tensor::new());
        let call = Call::new(&add, &[undefined(), undefined(), Value::Int(1)]).unwrap();
        let (two, three) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
        assert!(call.call([(0, &two), (1, &three)]).is_err(), "the sizes do not fit");
        assert!(call.call([(7, &two)]).is_err(), "there is no such argument");
        let split = Operator::find("aten::chunk", "").unwrap();
        let call = Call::new(&split, &[undefined(), Value::Int(2), Value::Int(0)]).unwrap();
        let error = call.call([(0, &two)]).unwrap_err();
        assert!(matches!(error, OperatorError::Unsupported { .. }), "{error}");
    }
}
