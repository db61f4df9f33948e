//! The results of one row: logits, and the maps of each of its classes.

use super::PerMap;

/// The maps of one class at one target layer, for one row. `T` is a tensor on the device or a [`HostMap`].
#[derive(Debug, Clone, Default)]
pub struct TargetMaps<T> {
    pub class_index: u32,
    /// The class's logit.
    pub score: f32,
    /// Empty when no map needs a layer. Under [`super::Convention::PytorchGradCam`], the names of all target layers
    /// joined by `+`, since their CAMs are averaged.
    pub target_layer: String,
    /// The CAM is zero everywhere: nothing in the layer speaks for the class.
    pub no_positive_evidence: bool,
    /// The CAM at the layer's own resolution, `[h, w]`; absent when layers of several sizes were averaged.
    pub layer_map: Option<T>,
    /// The maps that were requested, at the input's resolution.
    pub maps: PerMap<T>,
}

impl<T> TargetMaps<T> {
    /// Converts every map.
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

/// A dense tensor in host memory, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostMap {
    pub values: Vec<f32>,
    pub shape: Vec<u32>,
}

/// The results of one row, in host memory.
#[derive(Debug, Clone, Default)]
pub struct RowMaps {
    /// Before softmax, one per class.
    pub logits: Vec<f32>,
    /// Class by class, and for each class layer by layer.
    pub targets: Vec<TargetMaps<HostMap>>,
}
