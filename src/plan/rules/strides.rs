//! Strides that ATen's backward operators read correctly.

use tch::Tensor;

use crate::torch::OperatorError;

/// The same memory, with the usual batch stride for a batch of one.
///
/// On the CPU, ATen's backward of `batch_norm` and `instance_norm` (2.11) is silently wrong for one row, a contiguous
/// input, and a gradient that is channels-last except for its batch stride, such as `(C, 1, W·C, C)`, which
/// `flatten(2).transpose(1, 2)` gives. With the usual stride the same memory is read correctly.
pub(super) fn canonical_strides(gradient: &Tensor) -> Result<Tensor, OperatorError> {
    let shape = gradient.size();
    if shape.first() == Some(&1)
        && let Some(strides) = channels_last_strides(&shape)
    {
        let own = gradient.stride();
        let is_channels_last = (1..shape.len()).all(|d| shape[d] == 1 || own[d] == strides[d]);
        if is_channels_last && own != strides {
            return Ok(gradient.f_as_strided(&shape, &strides, None)?);
        }
    }
    Ok(gradient.shallow_clone())
}

/// The strides of a channels-last tensor `[N, C, …spatial]` with two or three spatial axes.
pub(in crate::plan) fn channels_last_strides(shape: &[i64]) -> Option<Vec<i64>> {
    if !matches!(shape.len(), 4 | 5) {
        return None;
    }
    let mut strides = vec![0; shape.len()];
    let mut stride = 1;
    for d in [1].into_iter().chain((2..shape.len()).rev()).chain([0]) {
        strides[d] = stride;
        stride *= shape[d].max(1);
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn only_the_stride_of_a_single_row_changes() {
        let x = Tensor::arange(24, (Kind::Float, Device::Cpu)).as_strided([1, 4, 2, 3], [24, 1, 12, 4], None);
        let odd = x.as_strided([1, 4, 2, 3], [4, 1, 12, 4], None);
        let fixed = canonical_strides(&odd).unwrap();
        assert_eq!(fixed.stride(), [24, 1, 12, 4]);
        assert_eq!(fixed, x);
        assert_eq!(fixed.data_ptr(), x.data_ptr());
    }

    #[test]
    fn several_rows_and_plain_layouts_are_left_alone() {
        for shape in [vec![2, 4, 2, 3], vec![1, 4, 2, 3], vec![3, 5], vec![]] {
            let x = Tensor::zeros(&shape, (Kind::Float, Device::Cpu));
            assert_eq!(canonical_strides(&x).unwrap().stride(), x.stride());
        }
    }
}
