//! Where the axes of a layer's value are.

use crate::explain::ExplainError;
use tch::{Kind, Tensor};
/// Where the axes of a layer's value are, so that it can be read as `[N, K, h, w]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, K, h, w]`: convolutions.
    ChannelsFirst,
    /// `[N, h, w, K]`: Swin.
    ChannelsLast,
    /// `[N, tokens, K]`: the first `class_tokens` are dropped, the rest are the rows of a `height × width` grid.
    Tokens { height: i64, width: i64, class_tokens: i64 },
}

impl Layout {
    /// The layout of a value of this shape under a model's description, or why it has none.
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
                        "it has {tokens} tokens, and model.toml says token_grid = [{height}, {width}] with class_tokens = {class_tokens}"
                    ))
                }
            }
            ([_, _, _], None) => Err("it is a row of tokens: set explain.token_grid in model.toml".into()),
            _ => Err("it is not spatial".into()),
        }
    }

    /// The value as `[N, K, h, w]` of f32; a view where possible.
    pub(super) fn read(self, value: &Tensor) -> Result<Tensor, ExplainError> {
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
