//! The memory behind tensors.

use std::slice;

use tch::{Device, Kind, TchError, Tensor};

use super::ffi;

/// The memory behind a tensor. Tensors that share it alias each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Storage {
    /// The address of the storage; 0 for an empty tensor, which aliases nothing.
    pub address: usize,
    /// Where the tensor begins in it, in elements.
    pub offset: i64,
}

impl Storage {
    pub fn of(tensor: &Tensor) -> Self {
        let (mut address, mut offset) = (0, 0);
        // SAFETY: the tensor is alive, and both places are ours to write.
        unsafe { ffi::camlens_tensor_storage(tensor.as_ptr(), &raw mut address, &raw mut offset) }
        Storage { address, offset }
    }
}

/// Whether nothing else holds a tensor or its memory.
pub fn is_alone(tensor: &Tensor) -> bool {
    // SAFETY: the tensor is alive.
    unsafe { ffi::camlens_tensor_is_alone(tensor.as_ptr()) }
}

/// A tensor of so many bytes, which `write` is given to write.
///
/// # Errors
/// Out of memory, and what `write` says.
pub fn written<E: From<TchError>>(length: usize, write: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Tensor, E> {
    let tensor = Tensor::f_zeros([length as i64], (Kind::Uint8, Device::Cpu))?;
    if length > 0 {
        // SAFETY: the tensor is contiguous, has so many bytes, all of them initialised, and nobody else has it yet.
        write(unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) })?;
    } else {
        write(&mut [])?;
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_has_the_bytes_that_were_written() {
        let tensor = written(3, |bytes| {
            bytes.copy_from_slice(&[1, 2, 3]);
            Ok::<_, TchError>(())
        });
        assert_eq!(tensor.unwrap(), Tensor::from_slice(&[1u8, 2, 3]));
        assert_eq!(written(0, |_| Ok::<_, TchError>(())).unwrap().numel(), 0);
        let failed = written(3, |_| Err(TchError::Convert("unreadable".into())));
        assert!(failed.unwrap_err().to_string().contains("unreadable"));
    }

    #[test]
    fn a_tensor_is_alone_until_it_is_shared_or_viewed() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(is_alone(&tensor));
        for other in [tensor.shallow_clone(), tensor.view([2, 1]), tensor.slice(0, 0, 1, 1)] {
            assert!(!is_alone(&tensor) && !is_alone(&other));
        }
        assert!(is_alone(&tensor));
    }

    #[test]
    fn a_view_has_its_bases_storage() {
        let base = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
        let view = base.slice(0, 1, 3, 1);
        assert_eq!(Storage::of(&base).address, Storage::of(&view).address);
        assert_eq!(Storage::of(&view).offset, 1);
        assert_ne!(Storage::of(&base).address, Storage::of(&base.copy()).address);
    }
}
