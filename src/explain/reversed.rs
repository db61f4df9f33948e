//! A batch after its reverse runs: it makes the maps.

use tch::{Device, Kind, Tensor};

use crate::plan::Gradients;

use super::cam::{Cam, scale};
use super::target_layer::TargetLayer;
use super::{Convention, ExplainError, Head, MapKind, Method, PerMap, TargetMaps};

/// A batch after its reverse runs.
pub struct Reversed {
    /// Row by row.
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) head: Head,
    pub(super) layers: Vec<TargetLayer>,
    pub(super) method: Method,
    /// Height and width of the input.
    pub(super) size: [i64; 2],
    /// The classes of each row.
    pub(super) classes: Vec<Vec<u32>>,
    /// The value of each target layer.
    pub(super) activations: Vec<Tensor>,
    /// One per round: the rows' first classes, their second ones, and so on. Empty when no map is computed.
    pub(super) gradients: Vec<Gradients>,
}

/// The CAMs of the whole batch for one round, at one target layer or averaged over several.
struct BatchCam {
    target_layer: String,
    /// `[N, h, w]`; absent when layers of several sizes were averaged.
    layer_map: Option<Tensor>,
    /// `[N, H, W]`.
    map: Tensor,
}

impl Reversed {
    /// The requested maps, one list per row: class by class, and for each class layer by layer. All tensors are f32 on
    /// the device. When no map was requested, each class has its score alone.
    ///
    /// # Errors
    /// Those of the operators, such as out of memory.
    pub fn fuse(self) -> Result<Vec<Vec<TargetMaps<Tensor>>>, ExplainError> {
        let cam = self.method.cam.cam();
        self.fuse_with(cam)
    }

    fn fuse_with(self, method: &dyn Cam) -> Result<Vec<Vec<TargetMaps<Tensor>>>, ExplainError> {
        let mut rows: Vec<Vec<TargetMaps<Tensor>>> = self.classes.iter().map(|_| Vec::new()).collect();
        if self.method.maps.is_empty() {
            let rounds = self.classes.iter().map(Vec::len).max().unwrap_or(0);
            (0..rounds).try_for_each(|round| self.distribute(round, None, None, &mut rows))?;
        }
        for (round, gradients) in self.gradients.iter().enumerate() {
            let guided = gradients.input.as_ref().map(|g| g.f_to_kind(Kind::Float)).transpose()?;
            let cams = self.cams(method, round, gradients)?;
            let cams: Vec<Option<BatchCam>> =
                if cams.is_empty() { vec![None] } else { cams.into_iter().map(Some).collect() };
            for cam in cams {
                self.distribute(round, guided.as_ref(), cam.as_ref(), &mut rows)?;
            }
        }
        Ok(rows)
    }

    /// The score of each row's class of a round; 0 for a row that takes no part.
    fn scores(&self, round: usize) -> Vec<f32> {
        let score = |(classes, logits): (&Vec<u32>, &Vec<f32>)| {
            classes.get(round).map_or(0.0, |&class| self.head.score(logits, class))
        };
        self.classes.iter().zip(&self.logits).map(score).collect()
    }

    /// The CAMs of a round: one per target layer, or their average; none when no map needs one.
    fn cams(&self, method: &dyn Cam, round: usize, gradients: &Gradients) -> Result<Vec<BatchCam>, ExplainError> {
        if self.layers.is_empty() {
            return Ok(Vec::new());
        }
        let scores = self.scores(round);
        let layers = self.layers.iter().zip(&self.activations).zip(&gradients.targets);
        let layer_maps = layers
            .map(|((layer, activations), gradient)| {
                method.map(&layer.read(activations)?, &layer.read(gradient)?, &scores)
            })
            .collect::<Result<Vec<_>, _>>()?;
        match self.method.convention {
            Convention::Captum => self
                .layers
                .iter()
                .zip(layer_maps)
                .map(|(layer, layer_map)| {
                    let map = scale::upsample(&layer_map, self.size)?;
                    Ok(BatchCam { target_layer: layer.name.clone(), layer_map: Some(layer_map), map })
                })
                .collect(),
            Convention::PytorchGradCam => {
                let scaled = layer_maps.iter().map(scale::min_max_scale).collect::<Result<Vec<_>, _>>()?;
                let resized =
                    scaled.iter().map(|map| scale::upsample(map, self.size)).collect::<Result<Vec<_>, _>>()?;
                let mean = Tensor::f_stack(&resized, 0)?.f_mean_dim([0i64].as_slice(), false, None::<Kind>)?;
                let names: Vec<_> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
                let is_single = scaled.len() == 1;
                Ok(vec![BatchCam {
                    target_layer: names.join("+"),
                    layer_map: if is_single { scaled.into_iter().next() } else { None },
                    map: scale::min_max_scale(&mean)?,
                }])
            }
        }
    }

    /// Makes the maps of a round from the guided gradient `[N, C, H, W]` and a CAM, and appends them to their rows.
    fn distribute(
        &self,
        round: usize,
        guided: Option<&Tensor>,
        cam: Option<&BatchCam>,
        rows: &mut [Vec<TargetMaps<Tensor>>],
    ) -> Result<(), ExplainError> {
        let mut batch = PerMap::default();
        for kind in self.method.maps.iter() {
            if let Some(map) = map(kind, guided, cam.map(|cam| &cam.map))? {
                batch.insert(kind, map);
            }
        }
        let highest: Vec<f32> = match cam {
            Some(cam) => Vec::try_from(cam.map.f_amax([1i64, 2].as_slice(), false)?.f_to_device(Device::Cpu)?)?,
            None => Vec::new(),
        };
        let wants_layer_map = self.method.maps.iter().any(MapKind::has_layer_resolution);
        let layer_map = cam.filter(|_| wants_layer_map).and_then(|cam| cam.layer_map.as_ref());
        for (row, chosen) in self.classes.iter().enumerate() {
            let Some(&class_index) = chosen.get(round) else { continue };
            let of_row = |tensor: &Tensor| tensor.f_get(row as i64);
            rows[row].push(TargetMaps {
                class_index,
                score: self.head.score(&self.logits[row], class_index),
                target_layer: cam.map(|cam| cam.target_layer.clone()).unwrap_or_default(),
                no_positive_evidence: highest.get(row).is_some_and(|&value| value == 0.0),
                layer_map: layer_map.map(of_row).transpose()?,
                maps: batch.try_map(of_row)?,
            });
        }
        Ok(())
    }
}

/// The map of one kind, `[N, …]`: `None` when the gradient or the CAM that it is made from was not computed.
fn map(kind: MapKind, guided: Option<&Tensor>, cam: Option<&Tensor>) -> Result<Option<Tensor>, ExplainError> {
    Ok(match kind {
        MapKind::GuidedGradCam => match (guided, cam) {
            (Some(guided), Some(cam)) => Some(scale::fuse(guided, cam)?),
            _ => None,
        },
        MapKind::GradCam => cam.map(Tensor::shallow_clone),
        MapKind::GuidedBackprop => guided.map(Tensor::shallow_clone),
        MapKind::Input => None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::explain::{Cost, Explainer, MapSet, Target};
    use crate::model::import::identity;
    use crate::model::{LoadLimits, Model};
    use crate::plan::Never;
    use crate::torch::relative_error;

    fn explainer() -> Explainer {
        let model = Model::load(identity::NAME, 1, Path::new(identity::PLACE), &LoadLimits::default()).unwrap();
        Explainer::new(model, Device::Cpu)
    }

    /// Two rows of 14 × 14 pixels.
    fn input() -> Tensor {
        Tensor::arange(2 * 3 * 14 * 14, (Kind::Float, Device::Cpu)).view([2, 3, 14, 14]) / 1000.0
    }

    fn method(kinds: &[MapKind]) -> Method {
        Method { maps: MapSet::of(kinds), ..Method::default() }
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    /// The activation of the first channel, times the score.
    struct FirstChannel;

    impl Cam for FirstChannel {
        fn map(&self, activations: &Tensor, gradients: &Tensor, scores: &[f32]) -> Result<Tensor, ExplainError> {
            assert_eq!(activations.size(), gradients.size());
            let scores = Tensor::f_from_slice(scores)?.f_view([-1, 1, 1])?;
            Ok(activations.f_select(1, 0)?.f_mul(&scores)?)
        }

        fn extra_cost(&self) -> Cost {
            Cost::default()
        }
    }

    #[test]
    fn another_cam_method_is_one_implementation_and_all_else_follows() {
        let (mut explainer, input) = (explainer(), input());
        let forward = explainer.forward(&method(&MapKind::ALL), &input, &Never).unwrap();
        let classes = [vec![1], vec![2, 0]];
        let rows = forward.reverse(&classes, &Never).unwrap().fuse_with(&FirstChannel).unwrap();
        for (row, (targets, classes)) in rows.iter().zip(&classes).enumerate() {
            assert_eq!(targets.iter().map(|target| target.class_index).collect::<Vec<_>>(), *classes);
            let pooled = input.get(row as i64).adaptive_avg_pool2d([7, 7]);
            for target in targets {
                let class = i64::from(target.class_index);
                let mean = pooled.get(class).mean(Kind::Float);
                assert!(relative_error(&Tensor::from(target.score), &mean) < 1e-5);
                let expected = pooled.get(0) * f64::from(target.score);
                let layer_map = target.layer_map.as_ref().unwrap();
                assert!(relative_error(layer_map, &expected) < 1e-5);
                let cam = target.maps.get(MapKind::GradCam).unwrap();
                let guided = target.maps.get(MapKind::GuidedBackprop).unwrap();
                assert_eq!((cam.size(), guided.size()), (vec![14, 14], vec![3, 14, 14]));
                let fused = target.maps.get(MapKind::GuidedGradCam).unwrap();
                assert_eq!(floats(fused), floats(&(guided * cam)));
                assert_eq!(target.target_layer, identity::LAYER);
            }
        }
    }

    #[test]
    fn maps_that_were_not_requested_are_absent() {
        let (mut explainer, input) = (explainer(), input());
        for kind in MapKind::ALL {
            let forward = explainer.forward(&method(&[kind]), &input, &Never).unwrap();
            let rows = forward.reverse(&[vec![0], vec![]], &Never).unwrap().fuse().unwrap();
            let [target] = rows[0].as_slice() else { panic!("{kind:?}: one target") };
            let computed: Vec<_> = target.maps.iter().map(|(kind, _)| kind).collect();
            assert_eq!(computed, if kind == MapKind::Input { vec![] } else { vec![kind] });
            assert_eq!(target.layer_map.is_some(), kind == MapKind::GradCam, "{kind:?}");
            assert_eq!(target.target_layer.is_empty(), !kind.needs_cam(), "{kind:?}");
            assert!(rows[1].is_empty(), "{kind:?}: the second row takes no part");
        }
    }

    #[test]
    fn without_maps_each_class_has_its_score() {
        let (mut explainer, input) = (explainer(), input());
        let forward = explainer.forward(&method(&[]), &input, &Never).unwrap();
        let logits = [forward.row(0).unwrap(), forward.row(1).unwrap()];
        let classes = forward.classes(&[vec![Target::Class(1)], vec![Target::Top(2)]]);
        let classes: Vec<_> = classes.into_iter().map(Result::unwrap).collect();
        let rows = forward.reverse(&classes, &Never).unwrap().fuse().unwrap();
        for ((targets, classes), logits) in rows.iter().zip(&classes).zip(&logits) {
            let scores: Vec<_> = targets.iter().map(|target| (target.class_index, target.score)).collect();
            let expected: Vec<_> = classes.iter().map(|&class| (class, logits[class as usize])).collect();
            assert_eq!(scores, expected);
        }
    }
}
