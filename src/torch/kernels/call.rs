//! Calls of a kernel's C function.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::Tensor;

use crate::torch::OperatorError;
use crate::torch::error::error_of;
use crate::torch::ffi::OK;

/// Calls a kernel; a status other than OK becomes an error.
pub(super) fn run(kernel: &str, call: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<(), OperatorError> {
    let mut error = ptr::null_mut();
    match call(&raw mut error) {
        OK => Ok(()),
        status => Err(error_of(kernel, status, error)),
    }
}

/// The one or two gradients that a gate takes: where there are more, all but the last are summed first.
pub(super) enum Parts<'a> {
    One(&'a Tensor),
    Two(&'a Tensor, &'a Tensor),
    Summed(Tensor, &'a Tensor),
}

impl<'a> Parts<'a> {
    /// # Errors
    /// No gradient at all, out of memory.
    pub fn of(parts: &'a [Tensor]) -> Result<Self, OperatorError> {
        match parts {
            [] => {
                let message = "a gate takes at least one gradient".to_owned();
                Err(OperatorError::Failed { operator: "gate".into(), message })
            }
            [one] => Ok(Parts::One(one)),
            [one, two] => Ok(Parts::Two(one, two)),
            [one, between @ .., last] => {
                let sum = between.iter().try_fold(one.shallow_clone(), |sum, part| sum.f_add(part))?;
                Ok(Parts::Summed(sum, last))
            }
        }
    }

    pub fn first(&self) -> &Tensor {
        match self {
            Parts::One(one) | Parts::Two(one, _) => one,
            Parts::Summed(sum, _) => sum,
        }
    }

    pub fn second(&self) -> Option<&'a Tensor> {
        match self {
            Parts::One(_) => None,
            Parts::Two(_, two) | Parts::Summed(_, two) => Some(two),
        }
    }
}
