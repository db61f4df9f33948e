//! A convolution's weight on a device.

use std::sync::{Mutex, PoisonError};

use tch::{Device, Tensor};

use crate::plan::constant::{Constant, Identity};
use crate::torch::{OperatorError, channels_last};

/// A weight `[outputs, inputs / groups, h, w]`, channels-last, shared by the plans of one model.
pub struct Weight {
    identity: Identity,
    tensor: Mutex<Tensor>,
}

impl Weight {
    /// Copies the constant to the device. The host's copy is released where it can be read again.
    ///
    /// # Errors
    /// Out of memory; the model's file has changed since it was loaded.
    pub fn new(constant: &Constant, device: Device) -> Result<Self, OperatorError> {
        let tensor = channels_last(&constant.tensor()?)?.f_to_device(device)?;
        constant.release();
        Ok(Weight { identity: constant.identity(), tensor: Mutex::new(tensor) })
    }

    pub fn is_of(&self, identity: &Identity) -> bool {
        self.identity == *identity
    }

    pub fn tensor(&self) -> Tensor {
        self.tensor.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}
