//! How a value is read as a map: which of its axes hold frames, channels and positions of the picture.

use super::axes::axis::{Axis, Factor, Role};
use super::description::ExplainDescription;

/// The axes of a value that is a map. The first one is the batch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapLayout {
    /// Four axes: which of them hold channels, rows and columns.
    Planes { channels: usize, rows: usize, columns: usize },
    /// Three axes, channels and tokens. The tokens are `before` of no position, then the grid row by row, then `after`
    /// of no position.
    Tokens { channels: usize, tokens: usize, grid: [i64; 2], before: i64, after: i64 },
}

impl MapLayout {
    /// `[N, K, h, w]`: convolutions.
    pub const CHANNELS_FIRST: MapLayout = MapLayout::Planes { channels: 1, rows: 2, columns: 3 };
    /// `[N, h, w, K]`: Swin.
    pub const CHANNELS_LAST: MapLayout = MapLayout::Planes { channels: 3, rows: 1, columns: 2 };

    /// The layout of a value with these axes.
    ///
    /// # Errors
    /// Why the value is not a map.
    pub fn of(axes: &[Axis]) -> Result<Self, LayoutProblem> {
        let spatial: Vec<usize> = (0..axes.len()).filter(|&index| axes[index].is_spatial()).collect();
        if axes.iter().any(Axis::is_unknown) {
            return Err(LayoutProblem::NotKnown);
        }
        if spatial.is_empty() {
            return Err(LayoutProblem::NotSpatial);
        }
        if !axes[0].is_batch() {
            return Err(LayoutProblem::BatchNotFirst);
        }
        let one = |test: &dyn Fn(&Axis) -> bool| {
            let mut found = (1..axes.len()).filter(|&index| axes[index].size() > 1 && test(&axes[index]));
            match (found.next(), found.next()) {
                (Some(index), None) => Some(index),
                _ => None,
            }
        };
        let rest = |taken: &[usize]| {
            let rest: Vec<usize> = (1..axes.len()).filter(|index| !taken.contains(index)).collect();
            match rest.as_slice() {
                [channels] if axes[*channels].is_channel() => Some(*channels),
                _ => None,
            }
        };
        if axes.len() == 3
            && let Some(tokens) = one(&|axis| axis.tokens().is_some())
            && let Some(Factor::Tokens { before, rows, columns, after }) = axes[tokens].tokens()
            && let Some(channels) = rest(&[tokens])
        {
            return Ok(MapLayout::Tokens { channels, tokens, grid: [rows, columns], before, after });
        }
        if axes.len() == 4 {
            // A map of one row or one column has an axis of size 1, which goes where the other layouts have it.
            let rows = one(&|axis| axis.is_whole(Role::Row));
            let columns = one(&|axis| axis.is_whole(Role::Column));
            let pair = match (rows, columns) {
                (Some(rows), Some(columns)) => Some((rows, columns)),
                (Some(rows), None) if rows < 3 && axes[rows + 1].size() == 1 => Some((rows, rows + 1)),
                (None, Some(columns)) if columns > 1 && axes[columns - 1].size() == 1 => Some((columns - 1, columns)),
                _ => None,
            };
            if let Some((rows, columns)) = pair
                && let Some(channels) = rest(&[rows, columns])
            {
                return Ok(MapLayout::Planes { channels, rows, columns });
            }
        }
        Err(LayoutProblem::Incomplete)
    }

    /// The layout that `model.toml` gives a value of this shape, whose axes are not known.
    ///
    /// # Errors
    /// Why the description does not make it a map.
    pub fn described(shape: &[i64], description: &ExplainDescription) -> Result<Self, LayoutProblem> {
        match (shape, description.token_grid, description.channels_last) {
            ([_, _, h, w], _, Some(false)) if h * w > 1 => Ok(Self::CHANNELS_FIRST),
            ([_, h, w, _], _, Some(true)) if h * w > 1 => Ok(Self::CHANNELS_LAST),
            ([_, tokens, _], Some(grid), _) => {
                let (grid, before) = (grid.map(i64::from), i64::from(description.class_tokens));
                if *tokens == grid[0] * grid[1] + before {
                    return Ok(MapLayout::Tokens { channels: 2, tokens: 1, grid, before, after: 0 });
                }
                Err(LayoutProblem::GridDiffers { tokens: *tokens, grid, before })
            }
            _ => Err(LayoutProblem::NotKnown),
        }
    }

    /// The layout of the same value, of shape `shape`, for an input of `size` pixels where the example has
    /// `example_size`: with dynamic sizes, a grid of tokens grows with the picture.
    ///
    /// # Errors
    /// [`LayoutProblem::GridNotFound`] when no grid of about that size has that many tokens.
    pub fn scaled(self, shape: &[i64], size: [i64; 2], example_size: [i64; 2]) -> Result<Self, LayoutProblem> {
        let MapLayout::Tokens { channels, tokens, grid, before, after } = self else { return Ok(self) };
        let count = shape.get(tokens).map_or(0, |count| count - before - after);
        if size == example_size && count == grid[0] * grid[1] {
            return Ok(self);
        }
        let expected = |axis: usize| grid[axis] as f64 * size[axis] as f64 / example_size[axis] as f64;
        let is_near = |axis: usize, value: i64| (value as f64 - expected(axis)).abs() < 1.0;
        let middle = expected(0).round() as i64;
        let mut fitting = (middle - 1..=middle + 1)
            .filter(|&rows| rows > 0 && count > 0 && count % rows == 0 && is_near(0, rows) && is_near(1, count / rows));
        match (fitting.next(), fitting.next()) {
            (Some(rows), None) => Ok(MapLayout::Tokens { channels, tokens, grid: [rows, count / rows], before, after }),
            _ => Err(LayoutProblem::GridNotFound { tokens: count, size }),
        }
    }
}

/// Why a value is not read as a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutProblem {
    #[error("it holds no positions of the picture")]
    NotSpatial,
    #[error("it does not lead to the logits, or no gradient comes back from them")]
    NotOnTheWay,
    #[error("its first axis is not the batch")]
    BatchNotFirst,
    #[error("it does not hold one channel axis and all rows and columns of the picture in order")]
    Incomplete,
    #[error(
        "what its axes mean does not follow from the graph; if you know it, set explain.channels_last or \
         explain.token_grid in model.toml"
    )]
    NotKnown,
    #[error(
        "it has {tokens} tokens, and model.toml says token_grid = [{}, {}] with class_tokens = {before}",
        grid[0],
        grid[1]
    )]
    GridDiffers { tokens: i64, grid: [i64; 2], before: i64 },
    #[error("its {tokens} tokens are no grid of an input of {} × {} pixels", size[0], size[1])]
    GridNotFound { tokens: i64, size: [i64; 2] },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::axes::axis::reshaped;

    fn map(order: [usize; 4]) -> Vec<Axis> {
        let axes =
            [Axis::whole(Role::Batch, 2), Axis::channel(16), Axis::whole(Role::Row, 4), Axis::whole(Role::Column, 6)];
        order.map(|index| axes[index].clone()).to_vec()
    }

    #[test]
    fn maps_are_read_in_any_order_of_axes_with_the_batch_first() {
        assert_eq!(MapLayout::of(&map([0, 1, 2, 3])), Ok(MapLayout::CHANNELS_FIRST));
        assert_eq!(MapLayout::of(&map([0, 2, 3, 1])), Ok(MapLayout::CHANNELS_LAST));
        assert_eq!(MapLayout::of(&map([0, 1, 3, 2])), Ok(MapLayout::Planes { channels: 1, rows: 3, columns: 2 }));
        assert_eq!(MapLayout::of(&map([2, 0, 1, 3])), Err(LayoutProblem::BatchNotFirst));
    }

    #[test]
    fn tokens_are_read_on_their_grid_and_never_as_a_plane() {
        let tokens = reshaped(&map([0, 2, 3, 1]), &[2, 24, 16]);
        let layout = MapLayout::Tokens { channels: 2, tokens: 1, grid: [4, 6], before: 0, after: 0 };
        assert_eq!(MapLayout::of(&tokens), Ok(layout));
        // Attention: [N, heads, tokens, channels of a head].
        let heads = reshaped(&tokens, &[2, 24, 4, 4]);
        let inner: Vec<Axis> = [0, 2, 1, 3].map(|index| heads[index].clone()).to_vec();
        assert_eq!(MapLayout::of(&inner), Err(LayoutProblem::Incomplete));
        let weights = [inner[0].clone(), inner[1].clone(), inner[2].clone(), inner[2].clone()];
        assert_eq!(MapLayout::of(&weights), Err(LayoutProblem::Incomplete));
    }

    #[test]
    fn a_grid_of_tokens_grows_with_the_picture() {
        let layout = MapLayout::Tokens { channels: 2, tokens: 1, grid: [14, 14], before: 1, after: 0 };
        let at = |tokens: i64, size| layout.scaled(&[1, tokens, 8], size, [224, 224]);
        let grid = |layout| match layout {
            MapLayout::Tokens { grid, .. } => grid,
            MapLayout::Planes { .. } => panic!("tokens"),
        };
        assert_eq!(at(197, [224, 224]).map(grid), Ok([14, 14]));
        assert_eq!(at(1 + 14 * 28, [224, 448]).map(grid), Ok([14, 28]));
        assert_eq!(at(1 + 15 * 13, [250, 220]).map(grid), Ok([15, 13]));
        assert!(matches!(at(100, [224, 448]), Err(LayoutProblem::GridNotFound { .. })));
    }

    #[test]
    fn a_description_makes_a_map_of_what_the_graph_does_not_show() {
        let description = ExplainDescription { token_grid: Some([14, 14]), class_tokens: 1, ..Default::default() };
        assert!(MapLayout::described(&[1, 197, 8], &description).is_ok());
        let problem = MapLayout::described(&[1, 50, 8], &description).unwrap_err().to_string();
        assert_eq!(problem, "it has 50 tokens, and model.toml says token_grid = [14, 14] with class_tokens = 1");
        assert_eq!(MapLayout::described(&[1, 8, 4, 4], &description), Err(LayoutProblem::NotKnown));
        let last = ExplainDescription { channels_last: Some(true), ..Default::default() };
        assert_eq!(MapLayout::described(&[1, 4, 4, 8], &last), Ok(MapLayout::CHANNELS_LAST));
    }
}
