//! Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

use crate::explain::cam::layout::Layout;
use tch::{Kind, Tensor};

use crate::explain::ExplainError;

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
