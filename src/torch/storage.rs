//! Which memory a tensor uses.

use tch::Tensor;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_has_its_bases_storage() {
        let base = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
        let view = base.slice(0, 1, 3, 1);
        assert_eq!(Storage::of(&base).address, Storage::of(&view).address);
        assert_eq!(Storage::of(&view).offset, 1);
        assert_ne!(Storage::of(&base).address, Storage::of(&base.copy()).address);
    }
}
