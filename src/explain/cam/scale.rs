//! Resizing, scaling and fusing of maps.

use crate::explain::ExplainError;
use tch::Tensor;
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
