//! Which axes of a layer's value are rows, channels and space.

use tch::{Kind, Tensor};

use crate::explain::ExplainError;

/// The order of the axes of a layer's value, so that it can be read as `[N, K, h, w]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, K, h, w]`: convolutions.
    ChannelsFirst,
    /// `[N, h, w, K]`: Swin.
    ChannelsLast,
    /// `[N, tokens, K]`: the first `class_tokens` are dropped, the others are the rows of a `height × width` grid.
    Tokens { height: i64, width: i64, class_tokens: i64 },
}

impl Layout {
    /// The layout of a value of shape `shape` under a model's description.
    ///
    /// # Errors
    /// The reason why the value is not a map.
    pub fn of(
        shape: &[i64],
        token_grid: Option<[u32; 2]>,
        class_tokens: u32,
        channels_last: bool,
    ) -> Result<Self, String> {
        match (shape, token_grid) {
            ([_, _, h, w], _) if !channels_last && h * w > 1 => Ok(Layout::ChannelsFirst),
            ([_, h, w, _], _) if channels_last && h * w > 1 => Ok(Layout::ChannelsLast),
            ([_, tokens, _], Some([height, width])) => {
                let (height, width, class_tokens) = (i64::from(height), i64::from(width), i64::from(class_tokens));
                if *tokens == height * width + class_tokens {
                    Ok(Layout::Tokens { height, width, class_tokens })
                } else {
                    Err(format!(
                        "it has {tokens} tokens, and model.toml says token_grid = [{height}, {width}] with \
                         class_tokens = {class_tokens}"
                    ))
                }
            }
            ([_, _, _], None) => Err("it is a row of tokens: set explain.token_grid in model.toml".into()),
            _ => Err("it is not spatial".into()),
        }
    }

    /// Reads the value as `[N, K, h, w]` of f32; a view where possible.
    pub fn read(self, value: &Tensor) -> Result<Tensor, ExplainError> {
        let value = value.f_to_kind(Kind::Float)?;
        Ok(match self {
            Layout::ChannelsFirst => value,
            Layout::ChannelsLast => value.f_permute([0, 3, 1, 2])?,
            Layout::Tokens { height, width, class_tokens } => {
                let grid = value.f_slice(1, class_tokens, None, 1)?;
                let (rows, channels) = (grid.size()[0], grid.size()[2]);
                grid.f_reshape([rows, height, width, channels])?.f_permute([0, 3, 1, 2])?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_become_a_grid_without_the_class_token() {
        let layout = Layout::of(&[1, 5, 2], Some([2, 2]), 1, false).unwrap();
        let value = Tensor::from_slice(&[9.0f32, 9.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]).view([1, 5, 2]);
        let grid = layout.read(&value).unwrap();
        assert_eq!(grid.size(), [1, 2, 2, 2]);
        assert_eq!(Vec::<f32>::try_from(grid.flatten(0, -1)).unwrap(), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn channels_that_come_last_are_put_first() {
        let layout = Layout::of(&[1, 1, 2, 2], None, 0, true).unwrap();
        let value = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([1, 1, 2, 2]);
        let read = layout.read(&value).unwrap();
        assert_eq!(Vec::<f32>::try_from(read.flatten(0, -1)).unwrap(), [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn a_grid_that_does_not_fit_the_tokens_is_refused_with_both_numbers() {
        let problem = Layout::of(&[1, 50, 8], Some([14, 14]), 1, false).unwrap_err();
        assert_eq!(problem, "it has 50 tokens, and model.toml says token_grid = [14, 14] with class_tokens = 1");
        assert!(Layout::of(&[1, 8], None, 0, false).is_err());
        assert!(Layout::of(&[1, 8, 1, 1], None, 0, false).is_err());
    }
}
