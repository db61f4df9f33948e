//! The memory behind tensors.

use std::mem::MaybeUninit;
use std::slice;

use tch::{Device, Kind, TchError, Tensor};

use super::ffi;

/// The memory behind a tensor. Tensors that share it alias each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Storage {
    /// The address of the storage; 0 for an empty tensor, which aliases nothing.
    pub address: usize,
    /// The tensor's offset in the storage, in elements.
    pub offset: i64,
}

impl Storage {
    pub fn of(tensor: &Tensor) -> Self {
        let view = view_of(tensor);
        Storage { address: view.storage, offset: view.offset }
    }
}

/// Whether nothing else holds a tensor or its memory.
pub fn is_exclusive(tensor: &Tensor) -> bool {
    view_of(tensor).is_exclusive
}

/// How a tensor lies in memory. The pointers are valid while the tensor lives.
pub(super) fn view_of(tensor: &Tensor) -> ffi::TensorView {
    let mut view = MaybeUninit::uninit();
    // SAFETY: the tensor is live, `view` is a valid out-pointer, and the call initialises every field.
    unsafe {
        ffi::camlens_tensor_view(tensor.as_ptr(), view.as_mut_ptr());
        view.assume_init()
    }
}

/// A tensor of `length` bytes, which `write` fills.
///
/// # Errors
/// Out of memory, and the errors of `write`.
pub fn byte_tensor<E: From<TchError>>(
    length: usize,
    write: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Tensor, E> {
    let tensor = Tensor::f_zeros([length as i64], (Kind::Uint8, Device::Cpu))?;
    if length > 0 {
        // SAFETY: the tensor is contiguous and has `length` initialised bytes, and nothing else holds it yet.
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
        let tensor = byte_tensor(3, |bytes| {
            bytes.copy_from_slice(&[1, 2, 3]);
            Ok::<_, TchError>(())
        });
        assert_eq!(tensor.unwrap(), Tensor::from_slice(&[1u8, 2, 3]));
        assert_eq!(byte_tensor(0, |_| Ok::<_, TchError>(())).unwrap().numel(), 0);
        let failed = byte_tensor(3, |_| Err(TchError::Convert("unreadable".into())));
        assert!(failed.unwrap_err().to_string().contains("unreadable"));
    }

    #[test]
    fn a_tensor_is_exclusive_until_it_is_shared_or_viewed() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(is_exclusive(&tensor));
        for other in [tensor.shallow_clone(), tensor.view([2, 1]), tensor.slice(0, 0, 1, 1)] {
            assert!(!is_exclusive(&tensor) && !is_exclusive(&other));
        }
        assert!(is_exclusive(&tensor));
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
