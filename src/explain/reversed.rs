//! A batch after its reverse runs: it makes the maps.

use tch::{Device, Tensor};

use crate::plan::Gradients;

use super::batch_maps::{BatchMaps, LayerValue, batch_maps};
use super::cam::Cam;
use super::{ExplainError, Head, Method, TargetMaps};

/// A batch after its reverse runs.
pub struct Reversed {
    /// Row by row.
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) head: Head,
    pub(super) layers: Vec<LayerValue>,
    pub(super) method: Method,
    /// Height and width of the input.
    pub(super) size: [i64; 2],
    /// The classes of each row.
    pub(super) classes: Vec<Vec<u32>>,
    /// One per round: the rows' first classes, their second ones, and so on. Empty when no map is computed.
    pub(super) gradients: Vec<Gradients>,
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

    fn fuse_with(self, cam: &dyn Cam) -> Result<Vec<Vec<TargetMaps<Tensor>>>, ExplainError> {
        let mut rows: Vec<Vec<TargetMaps<Tensor>>> = self.classes.iter().map(|_| Vec::new()).collect();
        if self.method.maps.is_empty() {
            for ((row, classes), logits) in rows.iter_mut().zip(&self.classes).zip(&self.logits) {
                row.extend(classes.iter().map(|&class_index| TargetMaps {
                    class_index,
                    score: self.head.score(logits, class_index),
                    ..TargetMaps::default()
                }));
            }
        }
        for (round, gradients) in self.gradients.iter().enumerate() {
            let scores = || Ok(Tensor::f_from_slice(&self.scores(round))?.f_to_device(self.device())?);
            for maps in batch_maps(&self.method, cam, &self.layers, self.size, gradients, &scores)? {
                self.distribute(round, &maps, &mut rows)?;
            }
        }
        Ok(rows)
    }

    fn device(&self) -> Device {
        self.layers.first().map_or(Device::Cpu, |value| value.activations.device())
    }

    /// The score of each row's class of a round; 0 for a row that takes no part.
    fn scores(&self, round: usize) -> Vec<f32> {
        let score = |(classes, logits): (&Vec<u32>, &Vec<f32>)| {
            classes.get(round).map_or(0.0, |&class| self.head.score(logits, class))
        };
        self.classes.iter().zip(&self.logits).map(score).collect()
    }

    /// Appends the maps of a round to their rows.
    fn distribute(
        &self,
        round: usize,
        batch: &BatchMaps,
        rows: &mut [Vec<TargetMaps<Tensor>>],
    ) -> Result<(), ExplainError> {
        let highest: Vec<f32> = match &batch.highest {
            Some(highest) => Vec::try_from(highest.f_to_device(Device::Cpu)?)?,
            None => Vec::new(),
        };
        for (row, chosen) in self.classes.iter().enumerate() {
            let Some(&class_index) = chosen.get(round) else { continue };
            let of_row = |tensor: &Tensor| tensor.f_get(row as i64);
            rows[row].push(TargetMaps {
                class_index,
                score: self.head.score(&self.logits[row], class_index),
                target_layer: batch.target_layer.clone(),
                no_positive_evidence: highest.get(row).is_some_and(|&value| value == 0.0),
                layer_map: batch.layer_map.as_ref().map(of_row).transpose()?,
                maps: batch.maps.try_map(of_row)?,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Kind;

    use super::*;
    use crate::explain::cam::Scores;
    use crate::explain::{Cost, Explainer, MapKind, MapSet, Target};
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
        fn map(&self, activations: &Tensor, gradients: &Tensor, scores: &Scores<'_>) -> Result<Tensor, ExplainError> {
            assert_eq!(activations.size(), gradients.size());
            let scores = scores()?.f_view([-1, 1, 1])?;
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
