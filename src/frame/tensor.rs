//! Frames that a client sends as a preprocessed model input instead of a picture.

use super::FrameError;

/// A model input `[C, H, W]` of float32 that the client has preprocessed.
#[derive(Debug, Clone, PartialEq)]
pub struct InputTensor {
    shape: [u32; 3],
    values: Vec<f32>,
}

impl InputTensor {
    /// Checks `shape` against `data` and returns it as `[C, H, W]`, without a leading batch dimension of 1.
    ///
    /// # Errors
    /// [`FrameError::TensorShape`] for another number of dimensions or a dimension of 0, [`FrameError::TensorLength`]
    /// when `data` does not have `4 · C · H · W` bytes.
    pub(super) fn check_shape(data: &[u8], shape: &[u32]) -> Result<[u32; 3], FrameError> {
        let &([channels, height, width] | [1, channels, height, width]) = shape else {
            let allowed = "it must be [C, H, W] or [1, C, H, W]".to_owned();
            return Err(FrameError::TensorShape { shape: shape.to_vec(), allowed });
        };
        // A product of three u32 always fits into u128.
        let elements = u128::from(channels) * u128::from(height) * u128::from(width);
        if elements == 0 {
            let allowed = "no dimension may be 0".to_owned();
            return Err(FrameError::TensorShape { shape: shape.to_vec(), allowed });
        }
        if elements * 4 != data.len() as u128 {
            let needed = (elements * 4).to_string();
            return Err(FrameError::TensorLength { bytes: data.len() as u64, shape: shape.to_vec(), needed });
        }
        Ok([channels, height, width])
    }

    /// Reads `data` as little-endian f32, row-major.
    ///
    /// # Errors
    /// Those of [`InputTensor::check_shape`], and [`FrameError::NotFinite`] with the first element that is not finite.
    pub(super) fn read(data: &[u8], shape: &[u32]) -> Result<Self, FrameError> {
        let shape = Self::check_shape(data, shape)?;
        let values: Vec<f32> =
            data.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FrameError::NotFinite { index: index as u64, value: values[index] }),
            None => Ok(InputTensor { shape, values }),
        }
    }

    /// `[C, H, W]`; no dimension is 0.
    pub fn shape(&self) -> [u32; 3] {
        self.shape
    }

    /// `C · H · W` finite values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::InputSize;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn values_are_read_unchanged_and_a_leading_batch_dimension_is_dropped() {
        let values = [1.5, -0.0, f32::MIN_POSITIVE, 1e30];
        for shape in [&[1, 2, 2][..], &[1, 1, 2, 2]] {
            let tensor = InputTensor::read(&bytes(&values), shape).unwrap();
            assert_eq!((tensor.shape(), tensor.values()), ([1, 2, 2], &values[..]));
        }
    }

    #[test]
    fn the_first_element_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = InputTensor::read(&bytes(&[0.0, 0.0, bad, f32::NAN]), &[1, 2, 2]).unwrap_err();
            assert_eq!(error.field(), "frame.tensor.data");
            assert!(error.to_string().contains(&format!("{bad} at element 2")), "{error}");
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_the_data_or_the_model_is_refused() {
        let data = bytes(&[0.0; 4]);
        for shape in [&[][..], &[4], &[2, 1, 2, 1], &[0, 4, 1]] {
            assert_eq!(InputTensor::read(&data, shape).unwrap_err().field(), "frame.tensor.shape", "{shape:?}");
        }
        for shape in [[1, 2, 3], [u32::MAX; 3]] {
            assert_eq!(InputTensor::read(&data, &shape).unwrap_err().field(), "frame.tensor.data", "{shape:?}");
        }
        let model_input = InputSize::new(1, Some(3), None);
        let error = model_input.check([1, 2, 2]).unwrap_err();
        assert_eq!(error.to_string(), "frame.tensor.shape is [1, 2, 2]: the model takes [1, 3, any width]");
    }
}
