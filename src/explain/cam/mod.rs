//! Class activation maps (CAMs). A method is one file: an implementation of [`Cam`] and a variant of [`CamMethod`].

mod grad_cam;
pub(super) mod layout;
pub(super) mod scale;

use tch::Tensor;

use super::{Cost, ExplainError};

/// How activations become a CAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CamMethod {
    /// Selvaraju et al. 2017, arXiv 1610.02391.
    #[default]
    GradCam,
}

impl CamMethod {
    /// Runs beyond the forward run of a row and the reverse run of a target that every method has.
    pub fn extra_cost(self) -> Cost {
        self.cam().extra_cost()
    }

    pub(super) fn cam(self) -> &'static dyn Cam {
        match self {
            CamMethod::GradCam => &grad_cam::GradCam,
        }
    }
}

/// Computes the scores when a method asks for them.
pub(super) type Scores<'a> = dyn Fn() -> Result<Tensor, ExplainError> + 'a;

/// A CAM method: the map of one class per row, at one target layer.
pub(super) trait Cam {
    /// The map, `[N, h, w]` of f32.
    ///
    /// `activations` is the target layer's value and `gradients` the plain gradient of the scores with respect to it,
    /// both `[N, K, h, w]` of f32. `scores` gives the scores, `[N]` of f32 on their device; 0 for a row that takes no
    /// part.
    ///
    /// # Errors
    /// Those of the operators, such as out of memory.
    fn map(&self, activations: &Tensor, gradients: &Tensor, scores: &Scores<'_>) -> Result<Tensor, ExplainError>;

    /// Runs beyond the forward run of a row and the reverse run of a target that every method has.
    fn extra_cost(&self) -> Cost;
}
