//! Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

use tch::{Kind, Tensor};

use super::{Cam, Scores};
use crate::explain::{Cost, ExplainError};
use crate::torch::cuda;

/// `L[n] = relu(Σ_k α[n,k] · A[n,k])` with `α[n,k] = mean_{i,j} G[n,k,i,j]`, where `A` are the activations and `G` the
/// gradients. The scores are unused.
pub(super) struct GradCam;

impl Cam for GradCam {
    fn map(&self, activations: &Tensor, gradients: &Tensor, _: &Scores<'_>) -> Result<Tensor, ExplainError> {
        if let Some(map) = cuda::grad_cam(activations, gradients) {
            return Ok(map?);
        }
        let weights = gradients.f_mean_dim([2i64, 3].as_slice(), true, None::<Kind>)?;
        let weighted = weights.f_mul(activations)?.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
        Ok(weighted.f_relu()?)
    }

    /// The gradients come from the shared reverse run.
    fn extra_cost(&self) -> Cost {
        Cost::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grad_cam(shape: &[i64], activations: &[f32], gradients: &[f32]) -> Tensor {
        let tensor = |values: &[f32]| Tensor::from_slice(values).view(shape);
        let no_scores = || panic!("Grad-CAM reads none");
        GradCam.map(&tensor(activations), &tensor(gradients), &no_scores).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    #[test]
    fn a_channel_weighs_as_much_as_its_mean_gradient() {
        let map = grad_cam(&[1, 2, 1, 2], &[1.0, 2.0, 10.0, 20.0], &[1.0, 3.0, -0.5, 0.3]);
        assert_eq!(map.size(), [1, 1, 2]);
        let expected = [2.0 * 1.0 - 0.1 * 10.0, 2.0 * 2.0 - 0.1 * 20.0];
        for (got, want) in floats(&map).into_iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn evidence_against_the_class_is_cut_off() {
        assert_eq!(floats(&grad_cam(&[1, 1, 1, 2], &[1.0, -1.0], &[-1.0, -1.0])), [0.0, 1.0]);
    }
}
