//! Resizing, scaling and fusing CAMs.

use tch::Tensor;

use crate::explain::ExplainError;
use crate::torch::cuda;

/// Bilinear interpolation with half-pixel centres, without antialiasing (`align_corners=false`): `[N, h, w]` to
/// `[N, height, width]`.
pub fn upsample(map: &Tensor, [height, width]: [i64; 2]) -> Result<Tensor, ExplainError> {
    let resized = map.f_unsqueeze(1)?.f_upsample_bilinear2d([height, width], false, None, None)?;
    Ok(resized.f_squeeze_dim(1)?)
}

/// Scales each row of `[N, h, w]` to [0, 1] as pytorch-grad-cam's `scale_cam_image` does:
/// `(L − min L) / (1e-7 + max(L − min L))`.
pub fn min_max_scale(map: &Tensor) -> Result<Tensor, ExplainError> {
    let lifted = map.f_sub(&map.f_amin([1i64, 2].as_slice(), true)?)?;
    let highest = lifted.f_amax([1i64, 2].as_slice(), true)?;
    Ok(lifted.f_div(&highest.f_add_scalar(1e-7)?)?)
}

/// `F = R ⊙ U(L)`: the guided gradient `[N, C, H, W]` times the upsampled CAM `[N, H, W]`, elementwise in each channel.
pub fn fuse(guided: &Tensor, map: &Tensor) -> Result<Tensor, ExplainError> {
    Ok(guided.f_mul(&map.f_unsqueeze(1)?)?)
}

/// [`upsample`]d to the size of the guided gradient, and [`fuse`]d with it: the upsampled map and `F`.
pub fn upsample_and_fuse(map: &Tensor, guided: &Tensor) -> Result<[Tensor; 2], ExplainError> {
    if let Some(computed) = cuda::fuse(guided, map) {
        let (fused, upsampled) = computed?;
        return Ok([upsampled, fused]);
    }
    let size = guided.size();
    let upsampled = upsample(map, [size[2], size[3]])?;
    let fused = fuse(guided, &upsampled)?;
    Ok([upsampled, fused])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn values(shape: &[i64], values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view(shape)
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
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
