//! Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

use tch::{Kind, Tensor};

use super::ExplainError;

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
    fn read(self, value: &Tensor) -> Result<Tensor, ExplainError> {
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

/// `L[n] = relu(Σ_k α[n,k] · A[n,k])` with `α[n,k] = mean_{i,j} G[n,k,i,j]`: `[N, h, w]`, f32.
///
/// `activations` is `A`, the target layer's value; `gradients` is `G`, the plain gradient of the score there, of the
/// same shape.
pub fn grad_cam(activations: &Tensor, gradients: &Tensor, layout: Layout) -> Result<Tensor, ExplainError> {
    let activations = layout.read(activations)?;
    let weights = layout.read(gradients)?.f_mean_dim([2i64, 3].as_slice(), true, None::<Kind>)?;
    let weighted = weights.f_mul(&activations)?.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
    Ok(weighted.f_relu()?)
}

/// Bilinear with half-pixel centres, no antialiasing (`align_corners=false`): `[N, h, w]` → `[N, height, width]`.
pub fn upsample(map: &Tensor, [height, width]: [i64; 2]) -> Result<Tensor, ExplainError> {
    let resized = map.f_unsqueeze(1)?.f_upsample_bilinear2d([height, width], false, None, None)?;
    Ok(resized.f_squeeze_dim(1)?)
}

/// Each row scaled to [0, 1] as pytorch-grad-cam's `scale_cam_image` does: `(L − min L) / (1e-7 + max(L − min L))`.
pub fn min_max_scale(map: &Tensor) -> Result<Tensor, ExplainError> {
    let lifted = map.f_sub(&map.f_amin([1i64, 2].as_slice(), true)?)?;
    let highest = lifted.f_amax([1i64, 2].as_slice(), true)?;
    Ok(lifted.f_div(&highest.f_add_scalar(1e-7)?)?)
}

/// `F = R ⊙ U(L)`: the guided gradient `[N, C, H, W]` times the map `[N, H, W]`, elementwise in each channel.
pub fn fuse(guided: &Tensor, map: &Tensor) -> Result<Tensor, ExplainError> {
    Ok(guided.f_mul(&map.f_unsqueeze(1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    fn values(shape: &[i64], values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view(shape)
    }

    #[test]
    fn a_channel_weighs_as_much_as_its_mean_gradient() {
        let activations = values(&[1, 2, 1, 2], &[1.0, 2.0, 10.0, 20.0]);
        let gradients = values(&[1, 2, 1, 2], &[1.0, 3.0, -0.5, 0.3]);
        let map = grad_cam(&activations, &gradients, Layout::ChannelsFirst).unwrap();
        assert_eq!(map.size(), [1, 1, 2]);
        let expected = [2.0 * 1.0 - 0.1 * 10.0, 2.0 * 2.0 - 0.1 * 20.0];
        for (got, want) in floats(&map).into_iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn evidence_against_the_class_is_cut_off() {
        let activations = values(&[1, 1, 1, 2], &[1.0, -1.0]);
        let gradients = values(&[1, 1, 1, 2], &[-1.0, -1.0]);
        assert_eq!(floats(&grad_cam(&activations, &gradients, Layout::ChannelsFirst).unwrap()), [0.0, 1.0]);
    }

    #[test]
    fn tokens_become_a_grid_without_the_class_token() {
        let layout = Layout::of(&[1, 5, 2], Some([2, 2]), 1, false).unwrap();
        let activations = values(&[1, 5, 2], &[9.0, 9.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]);
        let gradients = Tensor::ones([1, 5, 2], (Kind::Float, Device::Cpu));
        let map = grad_cam(&activations, &gradients, layout).unwrap();
        assert_eq!(map.size(), [1, 2, 2]);
        assert_eq!(floats(&map), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_grid_that_does_not_fit_the_tokens_is_refused_with_both_numbers() {
        let problem = Layout::of(&[1, 50, 8], Some([14, 14]), 1, false).unwrap_err();
        assert!(problem.contains("50 tokens") && problem.contains("[14, 14]"), "{problem}");
        assert!(Layout::of(&[1, 8], None, 0, false).is_err());
        assert!(Layout::of(&[1, 8, 1, 1], None, 0, false).is_err());
    }

    #[test]
    fn an_all_zero_map_stays_zero_when_scaled() {
        let scaled = min_max_scale(&Tensor::zeros([2, 3, 3], (Kind::Float, Device::Cpu))).unwrap();
        assert!(floats(&scaled).iter().all(|&v| v == 0.0));
    }

    #[test]
    fn each_row_is_scaled_by_itself() {
        let scaled = floats(&min_max_scale(&values(&[2, 1, 2], &[0.0, 2.0, 1.0, 5.0])).unwrap());
        for (got, want) in scaled.into_iter().zip([0.0, 1.0, 0.0, 1.0]) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn upsampling_uses_half_pixel_centres() {
        let up = upsample(&values(&[1, 1, 2], &[0.0, 1.0]), [1, 4]).unwrap();
        assert_eq!(floats(&up), [0.0, 0.25, 0.75, 1.0]);
    }

    #[test]
    fn fusion_is_elementwise_in_each_channel() {
        let fused = fuse(&values(&[1, 2, 1, 2], &[1.0, 2.0, 3.0, 4.0]), &values(&[1, 1, 2], &[10.0, 0.0])).unwrap();
        assert_eq!(floats(&fused), [10.0, 0.0, 30.0, 0.0]);
    }
}
