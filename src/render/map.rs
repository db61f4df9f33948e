//! One attribution map.

use super::RenderError;

/// One attribution map, `[height, width]`, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Map<'a> {
    values: &'a [f32],
    height: u32,
    width: u32,
}

impl<'a> Map<'a> {
    /// The map of `values`.
    ///
    /// # Errors
    /// [`RenderError::Shape`] when a side is 0, [`RenderError::Length`] when `values` does not have `height · width`
    /// elements.
    pub fn new(values: &'a [f32], height: u32, width: u32) -> Result<Self, RenderError> {
        let shape = || vec![height, width];
        if height == 0 || width == 0 {
            return Err(RenderError::Shape { shape: shape(), allowed: "no side may be 0" });
        }
        check_length(values, &shape())?;
        Ok(Map { values, height, width })
    }

    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Rows; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Columns; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }
}

/// Checks that `values` has as many elements as `shape` says.
///
/// # Errors
/// [`RenderError::Length`] when it does not.
pub(super) fn check_length(values: &[f32], shape: &[u32]) -> Result<(), RenderError> {
    let needed = shape.iter().try_fold(1u128, |product, &side| product.checked_mul(side.into()));
    if needed == Some(values.len() as u128) {
        return Ok(());
    }
    let needed = needed.map_or_else(|| "too many".to_owned(), |needed| needed.to_string());
    Err(RenderError::Length { shape: shape.to_vec(), needed, elements: values.len() })
}
