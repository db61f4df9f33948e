//! The request to the explainer.

use super::cam::CamMethod;
use super::{Cost, MapSet};
pub use crate::plan::Mode;

/// How the maps are scaled and fused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Convention {
    /// Guided gradient × upsampled CAM, nothing normalised: Captum's `GuidedGradCam` with bilinear interpolation.
    #[default]
    Captum,
    /// CAM min–max scaled, averaged over the target layers, min–max scaled again: pytorch-grad-cam's.
    PytorchGradCam,
}

/// What the rows of a batch share: rows run together when their methods, models and input sizes are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Method {
    /// Layer names; empty: the model's default.
    pub target_layers: Vec<String>,
    pub cam: CamMethod,
    pub convention: Convention,
    pub maps: MapSet,
    pub mode: Mode,
}

impl Method {
    /// The runs of the model that the method takes.
    ///
    /// Every method takes one forward run per row and, when it computes maps, one reverse run per target: the CAM and
    /// the guided gradient share it. [`CamMethod::extra_cost`] is added when a map needs a CAM.
    pub fn cost(&self) -> Cost {
        let shared = Cost { forwards: 1, reverses: u32::from(!self.maps.is_empty()) };
        if self.maps.needs_cam() { shared + self.cam.extra_cost() } else { shared }
    }
}

/// Which classes of a row are explained. Labels are resolved to indices before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    Class(u32),
    /// The `k` highest logits.
    Top(u32),
}

impl Target {
    /// How many classes are explained.
    pub fn count(self) -> u32 {
        match self {
            Target::Class(_) => 1,
            Target::Top(count) => count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::MapKind;

    #[test]
    fn maps_cost_a_reverse_run_per_target_and_predictions_none() {
        let cost = |kinds: &[MapKind]| Method { maps: MapSet::of(kinds), ..Method::default() }.cost();
        assert_eq!(cost(&[]).runs(5), 1);
        for kinds in [&[MapKind::GradCam][..], &[MapKind::GuidedBackprop], &MapKind::ALL] {
            assert_eq!(cost(kinds).runs(1), 2, "{kinds:?}");
            assert_eq!(cost(kinds).runs(5), 6, "{kinds:?}");
        }
    }
}
