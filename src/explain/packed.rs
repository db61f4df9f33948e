//! The results of a batch as one tensor, so that one copy brings them to the host.

use tch::{Kind, Tensor};

use super::batch_maps::BatchMaps;
use super::enqueued::ChosenThere;
use super::targets::choose_classes;
use super::{ExplainError, HostMap, PerMap, RowMaps, Target, TargetMaps};

/// The logits, classes and maps of a batch in one tensor of f32 on the device, and where each of them lies.
pub struct PackedMaps {
    /// `[values]`, contiguous.
    pub values: Tensor,
    rows: usize,
    /// Logits of a row.
    classes: usize,
    /// The maps of each round, layer by layer.
    rounds: Vec<Vec<Slots>>,
    /// Where the classes begin, `[rows, rounds]`. Classes are exact in f32 up to 2²⁴.
    chosen: usize,
}

/// Where the maps of one class of each row lie.
struct Slots {
    target_layer: String,
    highest: Option<Slot>,
    layer_map: Option<Slot>,
    maps: PerMap<Slot>,
}

/// Where a tensor `[N, …]` lies.
#[derive(Debug, Clone, PartialEq)]
struct Slot {
    begin: usize,
    /// Of a row.
    shape: Vec<u32>,
}

/// Collects tensors and where they will lie.
#[derive(Default)]
struct Packer {
    parts: Vec<Tensor>,
    length: usize,
}

impl Packer {
    fn add(&mut self, tensor: &Tensor) -> Result<Slot, ExplainError> {
        let part = tensor.f_to_kind(Kind::Float)?.f_reshape(-1)?;
        let begin = self.length;
        self.length += part.numel();
        self.parts.push(part);
        let shape = tensor.size().iter().skip(1).map(|&side| u32::try_from(side).unwrap_or(0)).collect();
        Ok(Slot { begin, shape })
    }

    fn add_all(&mut self, maps: &BatchMaps) -> Result<Slots, ExplainError> {
        Ok(Slots {
            target_layer: maps.target_layer.clone(),
            highest: maps.highest.as_ref().map(|tensor| self.add(tensor)).transpose()?,
            layer_map: maps.layer_map.as_ref().map(|tensor| self.add(tensor)).transpose()?,
            maps: maps.maps.try_map(|tensor| self.add(tensor))?,
        })
    }
}

impl PackedMaps {
    /// Packs the results of a batch; nothing is read by the host.
    ///
    /// # Errors
    /// Those of the operators, such as out of memory.
    pub fn new(chosen: &ChosenThere, rounds: &[Vec<BatchMaps>]) -> Result<Self, ExplainError> {
        let mut packer = Packer::default();
        packer.add(&chosen.logits)?;
        let classes = packer.add(&chosen.classes)?.begin;
        let of_round = |layers: &Vec<BatchMaps>| layers.iter().map(|maps| packer.add_all(maps)).collect();
        let rounds = rounds.iter().map(of_round).collect::<Result<_, _>>()?;
        let size = chosen.logits.size();
        Ok(PackedMaps {
            values: Tensor::f_cat(&packer.parts, 0)?,
            rows: size[0] as usize,
            classes: size[1] as usize,
            rounds,
            chosen: classes,
        })
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.values.numel()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The result of each row, from the values in host memory; `targets` are those of the first rows, as they were
    /// [coded](super::ranked): the other rows only fill the batch. `None` where the device ranked the classes otherwise
    /// than the host does, which can be where two logits are 0 and -0.
    ///
    /// Each row has its own error: logits that are not finite, or a class that does not exist.
    pub fn rows(&self, values: &[f32], targets: &[&[Target]]) -> Vec<Option<Result<RowMaps, ExplainError>>> {
        targets.iter().enumerate().take(self.rows).map(|(row, targets)| self.row(values, row, targets)).collect()
    }

    fn row(&self, values: &[f32], row: usize, targets: &[Target]) -> Option<Result<RowMaps, ExplainError>> {
        let logits = &values[row * self.classes..][..self.classes];
        let wanted = match choose_classes(logits, targets) {
            Ok(wanted) => wanted,
            Err(error) => return Some(Err(error)),
        };
        let found = &values[self.chosen + row * self.rounds.len()..][..self.rounds.len()];
        let host = |slot: &Slot| -> HostMap {
            let length = slot.shape.iter().map(|&side| side as usize).product::<usize>();
            HostMap { values: values[slot.begin + row * length..][..length].to_vec(), shape: slot.shape.clone() }
        };
        let mut row_maps = RowMaps { logits: logits.to_vec(), targets: Vec::new() };
        for class_index in wanted {
            let round = found.iter().position(|&class| class == class_index as f32)?;
            let score = logits[class_index as usize];
            if self.rounds[round].is_empty() {
                row_maps.targets.push(TargetMaps { class_index, score, ..TargetMaps::default() });
            }
            row_maps.targets.extend(self.rounds[round].iter().map(|slots| {
                let maps = slots.maps.try_map(|slot| Ok::<_, ExplainError>(host(slot)));
                TargetMaps {
                    class_index,
                    score,
                    target_layer: slots.target_layer.clone(),
                    no_positive_evidence: slots.highest.as_ref().is_some_and(|slot| values[slot.begin + row] == 0.0),
                    layer_map: slots.layer_map.as_ref().map(host),
                    maps: maps.unwrap_or_default(),
                }
            }));
        }
        Some(Ok(row_maps))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Device;

    use super::*;
    use crate::explain::{Explainer, MapKind, MapSet, Method, NO_TARGET, ranked};
    use crate::model::import::identity;
    use crate::model::{LoadLimits, Model};
    use crate::plan::Never;
    use crate::torch;

    fn explainer() -> Explainer {
        let model = Model::load(identity::NAME, 1, Path::new(identity::PLACE), &LoadLimits::default()).unwrap();
        Explainer::new(model, Device::Cpu)
    }

    /// Three rows of 14 × 14 pixels.
    fn input() -> Tensor {
        Tensor::arange(3 * 3 * 14 * 14, (Kind::Float, Device::Cpu)).sin().view([3, 3, 14, 14])
    }

    #[test]
    fn packed_results_are_those_of_a_run_that_the_host_follows() {
        let targets: [&[Target]; 3] =
            [&[Target::Class(2)], &[Target::Top(2), Target::Class(1)], &[Target::Class(7), Target::Top(1)]];
        let codes = [[2, NO_TARGET, NO_TARGET], [ranked(0), ranked(1), 1], [7, ranked(0), NO_TARGET]];
        let codes = Tensor::from_slice(codes.as_flattened()).view([3, 3]);
        for kinds in [&MapKind::ALL[..], &[MapKind::GradCam], &[MapKind::GuidedBackprop], &[]] {
            let method = Method { maps: MapSet::of(kinds), ..Method::default() };
            let (mut explainer, input) = (explainer(), input());
            let enqueued = explainer.enqueue(&method, &input, &Never).unwrap();
            let chosen = enqueued.choose(&codes).unwrap();
            let packed = PackedMaps::new(&chosen, &enqueued.maps(&chosen, &Never).unwrap()).unwrap();
            let found = packed.rows(&torch::to_vec(&packed.values).unwrap(), &targets);

            let forward = explainer.forward(&method, &input, &Never).unwrap();
            let classes = forward.classes(&targets.map(<[Target]>::to_vec));
            assert!(classes[2].is_err() && matches!(found[2], Some(Err(ExplainError::Class { class: 7, .. }))));
            let chosen: Vec<Vec<u32>> = classes.into_iter().map(Result::unwrap_or_default).collect();
            let expected = forward.reverse(&chosen, &Never).unwrap().fuse().unwrap();
            for (row, expected) in expected.into_iter().take(2).enumerate() {
                let Some(Ok(found)) = &found[row] else { panic!("row {row} has a result") };
                assert_eq!(found.targets.len(), expected.len(), "row {row}");
                for (found, expected) in found.targets.iter().zip(expected) {
                    let expected = expected.try_map(|map| {
                        let shape = map.size().iter().map(|&side| side as u32).collect();
                        Ok::<_, ExplainError>(HostMap { values: torch::to_vec(map)?, shape })
                    });
                    assert_eq!(format!("{found:?}"), format!("{:?}", expected.unwrap()), "row {row}");
                }
            }
        }
    }

    #[test]
    fn a_row_that_the_device_ranked_otherwise_has_no_result() {
        let method = Method { maps: MapSet::of(&[MapKind::GradCam]), ..Method::default() };
        let (mut explainer, input) = (explainer(), input());
        let enqueued = explainer.enqueue(&method, &input, &Never).unwrap();
        let chosen = enqueued.choose(&Tensor::from_slice(&[0i64, 1, 2]).view([3, 1])).unwrap();
        let packed = PackedMaps::new(&chosen, &enqueued.maps(&chosen, &Never).unwrap()).unwrap();
        let values = torch::to_vec(&packed.values).unwrap();
        let other: [&[Target]; 1] = [&[Target::Class(1)]];
        assert!(packed.rows(&values, &other)[0].is_none());
        let not_finite: Vec<f32> = values.iter().map(|_| f32::NAN).collect();
        assert!(matches!(packed.rows(&not_finite, &other)[0], Some(Err(ExplainError::NotFinite))));
    }
}
