//! The results of one row of a batch, which is one frame: its logits, and the maps of each of its target classes.

use super::PerMap;

/// The maps of one class at one target layer, for one row. `T` is a tensor on the device or a [`HostMap`], without the
/// batch axis.
#[derive(Debug, Clone, Default)]
pub struct TargetMaps<T> {
    pub class_index: u32,
    /// The class's logit.
    pub score: f32,
    /// The module path of the target layer; empty when no requested map needs a CAM. Under
    /// [`super::Convention::PytorchGradCam`], the paths of all target layers joined by `+`, since their CAMs are
    /// averaged.
    pub target_layer: String,
    /// Whether the CAM is zero everywhere: nothing in the layer speaks for the class. False without a CAM.
    pub no_positive_evidence: bool,
    /// The CAM at the layer's own resolution, `[h, w]`; absent when the CAMs of several layers were averaged, and when
    /// [`super::MapKind::GradCam`] was not requested.
    pub layer_map: Option<T>,
    /// The requested maps at the input's resolution, of the shapes that [`super::MapKind`] gives.
    pub maps: PerMap<T>,
}

impl<T> TargetMaps<T> {
    /// Converts `layer_map` and every map in `maps`.
    ///
    /// # Errors
    /// The first error of `convert`.
    pub fn try_map<U, E>(self, mut convert: impl FnMut(&T) -> Result<U, E>) -> Result<TargetMaps<U>, E> {
        Ok(TargetMaps {
            class_index: self.class_index,
            score: self.score,
            target_layer: self.target_layer,
            no_positive_evidence: self.no_positive_evidence,
            layer_map: self.layer_map.as_ref().map(&mut convert).transpose()?,
            maps: self.maps.try_map(convert)?,
        })
    }
}

/// A dense float32 tensor in host memory, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostMap {
    pub values: Vec<f32>,
    pub shape: Vec<u32>,
}

/// The results of one row, in host memory.
#[derive(Debug, Clone, Default)]
pub struct RowMaps {
    /// The logits, before softmax, one per class of the model.
    pub logits: Vec<f32>,
    /// One entry per target class and target layer: class by class, and for each class layer by layer.
    pub targets: Vec<TargetMaps<HostMap>>,
}
