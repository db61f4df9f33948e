//! Reads a layer's value as a map.

use tch::{Kind, Tensor};

use crate::explain::ExplainError;
use crate::model::MapLayout;

/// Reads a value as `[N, K, h, w]` of f32: rows, channels, height, width. A view where possible.
///
/// # Errors
/// Those of the operators, such as a shape that does not have the layout.
pub fn read(layout: MapLayout, value: &Tensor) -> Result<Tensor, ExplainError> {
    let value = value.f_to_kind(Kind::Float)?;
    Ok(match layout {
        MapLayout::CHANNELS_FIRST => value,
        MapLayout::Planes { channels, rows, columns } => {
            value.f_permute([0, channels as i64, rows as i64, columns as i64])?
        }
        MapLayout::Tokens { channels, tokens, grid: [rows, columns], before, .. } => {
            let grid = value.f_narrow(tokens as i64, before, rows * columns)?;
            let grid = grid.f_permute([0, channels as i64, tokens as i64])?;
            let (frames, channels) = (grid.size()[0], grid.size()[1]);
            grid.f_reshape([frames, channels, rows, columns])?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn tokens_become_a_grid_without_the_class_token() {
        let layout = MapLayout::Tokens { channels: 2, tokens: 1, grid: [2, 2], before: 1, after: 0 };
        let value = Tensor::from_slice(&[9.0f32, 9.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]).view([1, 5, 2]);
        let grid = read(layout, &value).unwrap();
        assert_eq!(grid.size(), [1, 2, 2, 2]);
        assert_eq!(floats(&grid), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn tokens_that_come_last_become_a_grid() {
        let layout = MapLayout::Tokens { channels: 1, tokens: 2, grid: [1, 2], before: 0, after: 1 };
        let value = Tensor::from_slice(&[1.0f32, 2.0, 9.0, 3.0, 4.0, 9.0]).view([1, 2, 3]);
        assert_eq!(floats(&read(layout, &value).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn channels_that_come_last_are_put_first() {
        let value = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([1, 1, 2, 2]);
        assert_eq!(floats(&read(MapLayout::CHANNELS_LAST, &value).unwrap()), [1.0, 3.0, 2.0, 4.0]);
    }
}
