//! Copies between host memory and tensors.

use tch::{Device, Kind, TchError, Tensor};

/// Stacks rows of `shape` into a tensor `[N, shape…]` of f32 on the CPU, in one pass over memory. libtorch's own
/// functions take three: zeros, each row, and all rows again.
///
/// # Panics
/// When the length of a row is not that of the shape.
pub fn stack(rows: &[&[f32]], shape: &[i64]) -> Result<Tensor, TchError> {
    let mut sizes = vec![i64::try_from(rows.len()).unwrap_or(i64::MAX)];
    sizes.extend_from_slice(shape);
    let tensor = Tensor::f_empty(&sizes, (Kind::Float, Device::Cpu))?;
    let length = tensor.numel();
    if length > 0 {
        // SAFETY: the tensor is contiguous and has `length` f32, and nothing else holds it yet.
        let values = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), length) };
        for (slot, row) in values.chunks_exact_mut(length / rows.len()).zip(rows) {
            slot.copy_from_slice(row);
        }
    }
    Ok(tensor)
}

/// A tensor's elements as f32, row-major, in one copy. tch's own conversion writes zeros first.
///
/// # Errors
/// Out of memory, if the tensor is converted or made contiguous first.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let length = flat.numel();
    if length == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the tensor is live, contiguous, on the CPU, and has `length` f32.
    Ok(unsafe { std::slice::from_raw_parts(flat.data_ptr().cast::<f32>(), length) }.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_copied_row_by_row() {
        let tensor = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]);
        assert_eq!(to_vec(&tensor.transpose(0, 1)).unwrap(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(to_vec(&tensor.narrow(0, 1, 0)).unwrap(), [0.0f32; 0]);
    }

    #[test]
    fn rows_are_stacked_in_order() {
        let tensor = stack(&[&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0]], &[1, 2]).unwrap();
        assert_eq!(tensor.size(), [3, 1, 2]);
        assert_eq!(Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(stack(&[], &[1, 2]).unwrap().size(), [0, 1, 2]);
    }

    #[test]
    #[should_panic]
    fn a_row_of_another_length_is_refused() {
        let _ = stack(&[&[1.0, 2.0], &[3.0]], &[2]);
    }
}
