//! The maps of a whole batch for one class of each row, on the device.

use tch::{Kind, Tensor};

use crate::plan::Gradients;

use super::cam::{Cam, Scores, scale};
use super::target_layer::TargetLayer;
use super::{Convention, ExplainError, MapKind, Method, PerMap};

/// A target layer and its value.
pub struct LayerValue {
    pub layer: TargetLayer,
    pub activations: Tensor,
}

/// The maps of one class of each row, at one target layer or averaged over several. All tensors are of f32, and each
/// has the rows in dimension 0.
pub struct BatchMaps {
    /// As in [`TargetMaps`](super::TargetMaps).
    pub target_layer: String,
    /// The highest value of each row's CAM, `[N]`; absent without a CAM.
    pub highest: Option<Tensor>,
    /// The CAM at the layer's own resolution, `[N, h, w]`, if it is wanted.
    pub layer_map: Option<Tensor>,
    pub maps: PerMap<Tensor>,
}

/// A CAM at one target layer, or averaged over several.
struct BatchCam {
    target_layer: String,
    /// `[N, h, w]`; absent when layers of several sizes were averaged.
    layer_map: Option<Tensor>,
    /// `[N, H, W]`.
    map: Tensor,
    /// The guided gradient times the map, `[N, C, H, W]`, if it is wanted.
    fused: Option<Tensor>,
}

/// The maps that `method` asks for, layer by layer, from the gradients of one class of each row; `size` is the input's
/// height and width.
///
/// # Errors
/// Those of the operators, such as out of memory.
pub fn batch_maps(
    method: &Method,
    cam: &dyn Cam,
    layers: &[LayerValue],
    size: [i64; 2],
    gradients: &Gradients,
    scores: &Scores<'_>,
) -> Result<Vec<BatchMaps>, ExplainError> {
    let guided = gradients.input.as_ref().map(|gradient| gradient.f_to_kind(Kind::Float)).transpose()?;
    let fuses_with = guided.as_ref().filter(|_| method.maps.contains(MapKind::GuidedGradCam));
    let cams = cams(method, cam, layers, size, gradients, (scores, fuses_with))?;
    if cams.is_empty() {
        return Ok(vec![maps(method, guided.as_ref(), None)?]);
    }
    cams.into_iter().map(|cam| maps(method, guided.as_ref(), Some(cam))).collect()
}

/// One CAM per target layer, or their average; none when no map needs one.
fn cams(
    method: &Method,
    cam: &dyn Cam,
    layers: &[LayerValue],
    size: [i64; 2],
    gradients: &Gradients,
    (scores, fuses_with): (&Scores<'_>, Option<&Tensor>),
) -> Result<Vec<BatchCam>, ExplainError> {
    let map = |(LayerValue { layer, activations }, gradient): (&LayerValue, &Tensor)| {
        cam.map(&layer.read(activations)?, &layer.read(gradient)?, scores)
    };
    let layer_maps = layers.iter().zip(&gradients.targets).map(map).collect::<Result<Vec<_>, _>>()?;
    let names = || layers.iter().map(|value| value.layer.name.as_str());
    match method.convention {
        _ if layer_maps.is_empty() => Ok(Vec::new()),
        Convention::Captum => names()
            .zip(layer_maps)
            .map(|(name, layer_map)| {
                let (map, fused) = match fuses_with {
                    None => (scale::upsample(&layer_map, size)?, None),
                    Some(guided) => {
                        let [map, fused] = scale::upsample_and_fuse(&layer_map, guided)?;
                        (map, Some(fused))
                    }
                };
                Ok(BatchCam { target_layer: name.to_owned(), layer_map: Some(layer_map), map, fused })
            })
            .collect(),
        Convention::PytorchGradCam => {
            let scaled = layer_maps.iter().map(scale::min_max_scale).collect::<Result<Vec<_>, _>>()?;
            let resized = scaled.iter().map(|map| scale::upsample(map, size)).collect::<Result<Vec<_>, _>>()?;
            let mean = Tensor::f_stack(&resized, 0)?.f_mean_dim([0i64].as_slice(), false, None::<Kind>)?;
            let is_single = scaled.len() == 1;
            let map = scale::min_max_scale(&mean)?;
            Ok(vec![BatchCam {
                target_layer: names().collect::<Vec<_>>().join("+"),
                layer_map: if is_single { scaled.into_iter().next() } else { None },
                fused: fuses_with.map(|guided| scale::fuse(guided, &map)).transpose()?,
                map,
            }])
        }
    }
}

/// The maps from the guided gradient `[N, C, H, W]` and a CAM. A map is absent when the gradient or the CAM that it is
/// made from was not computed.
fn maps(method: &Method, guided: Option<&Tensor>, cam: Option<BatchCam>) -> Result<BatchMaps, ExplainError> {
    let mut maps = PerMap::default();
    for kind in method.maps.iter() {
        let map = match kind {
            MapKind::GuidedGradCam => cam.as_ref().and_then(|cam| cam.fused.as_ref()),
            MapKind::GradCam => cam.as_ref().map(|cam| &cam.map),
            MapKind::GuidedBackprop => guided,
            MapKind::Input => None,
        };
        if let Some(map) = map {
            maps.insert(kind, map.shallow_clone());
        }
    }
    let highest = cam.as_ref().map(|cam| cam.map.f_amax([1i64, 2].as_slice(), false)).transpose()?;
    let wants_layer_map = method.maps.iter().any(MapKind::has_layer_resolution);
    let (target_layer, layer_map) = cam.map_or_else(Default::default, |cam| (cam.target_layer, cam.layer_map));
    Ok(BatchMaps { target_layer, highest, layer_map: layer_map.filter(|_| wants_layer_map), maps })
}
