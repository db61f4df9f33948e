//! Putting tensors together and taking them apart along an axis.

use tch::{Kind, Tensor};

use crate::plan::rule::{Gradient, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{axis, first, integer};
use super::explicit::Run;
use super::meta::Blank;

/// `cat(tensors, dim)`.
pub(super) fn cat(operator: Operator) -> Run {
    together(operator, |given, axis, piece| Ok(given.f_narrow(axis, piece.start, piece.length)?))
}

/// `stack(tensors, dim)`.
pub(super) fn stack(operator: Operator) -> Run {
    together(operator, |given, axis, piece| Ok(given.f_select(axis, piece.number)?))
}

/// What a wanted element of the list is in the whole.
struct Piece {
    number: i64,
    start: i64,
    length: i64,
    kind: Kind,
}

fn together(operator: Operator, take: fn(&Tensor, i64, &Piece) -> Result<Tensor, OperatorError>) -> Run {
    Box::new(move |arguments, wanted: &[Slot]| {
        let Some(Value::Tensors(list)) = arguments.first() else { return Ok(None) };
        let elements: Option<Vec<&Tensor>> = list.iter().map(Option::as_ref).collect();
        let Some(elements) = elements else { return Ok(None) };
        let result = operator.call_tensor(arguments)?;
        let Some(axis) = axis(integer(arguments, 1)?, result.dim()) else { return Ok(None) };
        let mut starts = Vec::with_capacity(elements.len());
        let mut start = 0;
        for element in &elements {
            let shape = element.size();
            if shape == [0] && result.dim() != 1 {
                // An empty vector joins anything, by an old custom.
                return Ok(None);
            }
            // The axis that `stack` makes is not in its elements; it does not use `length`.
            let length = shape.get(axis).copied().unwrap_or(1);
            starts.push((start, length));
            start += length;
        }
        let pieces = wanted
            .iter()
            .map(|slot| {
                let kind = slot.tensor(arguments)?.f_kind()?;
                let number = slot.element.unwrap_or_default();
                let (start, length) = starts[number];
                Ok(Piece { number: number as i64, start, length, kind })
            })
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let saved = move |results: &[Option<Tensor>], _: Gradient| {
            let Some(Some(given)) = results.first() else { return Ok(pieces.iter().map(|_| None).collect()) };
            pieces
                .iter()
                .map(|piece| {
                    let part = take(given, axis as i64, piece)?;
                    Ok(Some(if part.f_kind()? == piece.kind { part } else { part.f_to_kind(piece.kind)? }))
                })
                .collect()
        };
        Ok(Some((vec![Value::Tensor(result)], Some(Box::new(saved)))))
    })
}

/// `chunk(self, chunks, dim)`, `split(self, split_size, dim)`, `split_with_sizes(self, split_sizes, dim)`.
pub(super) fn split(operator: Operator) -> Run {
    apart(operator, 2, |parts, axis| Ok(Tensor::f_cat(parts, axis)?))
}

/// `unbind(self, dim)`.
pub(super) fn unbind(operator: Operator) -> Run {
    apart(operator, 1, |parts, axis| Ok(Tensor::f_stack(parts, axis)?))
}

fn apart(operator: Operator, dim: usize, join: fn(&[Tensor], i64) -> Result<Tensor, OperatorError>) -> Run {
    Box::new(move |arguments, wanted: &[Slot]| {
        if wanted != [Slot { argument: 0, element: None }] {
            return Ok(None);
        }
        let Some(axis) = axis(integer(arguments, dim)?, first(arguments)?.dim()) else { return Ok(None) };
        let Some(Value::Tensors(list)) = operator.call(arguments)?.into_iter().next() else { return Ok(None) };
        let blanks: Vec<Blank> = list.iter().flatten().map(Blank::of).collect::<Result<_, _>>()?;
        let saved = move |results: &[Option<Tensor>], _: Gradient| {
            if results.iter().all(Option::is_none) {
                return Ok(vec![None]);
            }
            let parts = blanks
                .iter()
                .enumerate()
                .map(|(i, blank)| match results.get(i) {
                    Some(Some(given)) => Ok(given.shallow_clone()),
                    _ => Ok(blank.zeros()?),
                })
                .collect::<Result<Vec<_>, OperatorError>>()?;
            Ok(vec![Some(join(&parts, axis as i64)?)])
        };
        let results = list.into_iter().map(|part| part.map_or(Value::None, Value::Tensor)).collect();
        Ok(Some((results, Some(Box::new(saved)))))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, Trial, Within, any, slot};

    fn element(number: usize) -> Slot {
        Slot { argument: 0, element: Some(number) }
    }

    proptest! {
        #[test]
        fn joining_agrees_with_its_tape(
            shape in any::shape(),
            lengths in prop::collection::vec(1..=4i64, 1..=4),
            (at, from_the_back) in any::<(prop::sample::Index, bool)>(),
            kinds in (any::kind(), any::kind()),
            layouts in (any::layout(), any::layout()),
            given in any::layout(),
            wanted in any::<u8>(),
        ) {
            let axis = at.index(shape.len());
            let tensors: Vec<Tensor> = lengths.iter().enumerate().map(|(i, &length)| {
                let mut shape = shape.clone();
                shape[axis] = length;
                let (kind, layout) = if i % 2 == 0 { (kinds.0, layouts.0) } else { (kinds.1, layouts.1) };
                layout.random(&shape, kind)
            }).collect();
            let wanted: Vec<Slot> = (0..tensors.len()).filter(|i| wanted >> i & 1 == 1).map(element).collect();
            prop_assume!(!wanted.is_empty());
            let dim = axis as i64 - if from_the_back { shape.len() as i64 } else { 0 };
            let list = Value::Tensors(tensors.into_iter().map(Some).collect());
            let trial = Trial::new("aten::cat", "", vec![("tensors", list), ("dim", Value::Int(dim))]);
            trial.agrees(true, &wanted, given, Within::Equal);
        }

        #[test]
        fn stacking_agrees_with_its_tape(
            shape in any::shape(),
            count in 1..=4usize,
            at: prop::sample::Index,
            from_the_back: bool,
            given in any::layout(),
        ) {
            let axis = at.index(shape.len() + 1) as i64;
            let dim = axis - if from_the_back { shape.len() as i64 + 1 } else { 0 };
            let list = (0..count).map(|_| Some(Layout::Contiguous.random(&shape, Kind::Float))).collect();
            let named = vec![("tensors", Value::Tensors(list)), ("dim", Value::Int(dim))];
            let wanted: Vec<Slot> = (0..count).map(element).collect();
            Trial::new("aten::stack", "", named).agrees(true, &wanted, given, Within::Equal);
        }

        #[test]
        fn taking_apart_agrees_with_its_tape(
            which in 0..4,
            shape in any::shape(),
            (at, from_the_back) in any::<(prop::sample::Index, bool)>(),
            parts in 1..=4i64,
            kind in any::kind(),
            input in any::layout(),
            given in any::layout(),
        ) {
            let axis = at.index(shape.len());
            let dim = Value::Int(axis as i64 - if from_the_back { shape.len() as i64 } else { 0 });
            let x: Value = input.random(&shape, kind).into();
            let trial = match which {
                0 => Trial::new("aten::chunk", "", vec![("self", x), ("chunks", Value::Int(parts)), ("dim", dim)]),
                1 => Trial::new("aten::split", "Tensor", vec![("self", x), ("split_size", Value::Int(parts)), ("dim", dim)]),
                2 => {
                    let first = shape[axis] / 2;
                    let sizes = Value::Ints(vec![first, 0, shape[axis] - first]);
                    Trial::new("aten::split_with_sizes", "", vec![("self", x), ("split_sizes", sizes), ("dim", dim)])
                }
                _ => Trial::new("aten::unbind", "int", vec![("self", x), ("dim", dim)]),
            };
            trial.agrees(true, &[slot(0)], given, Within::Equal);
        }
    }

    #[test]
    fn a_part_without_a_gradient_counts_as_zero() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
        let trial = Trial::new("aten::split", "Tensor", vec![("self", x.into()), ("split_size", Value::Int(1))]);
        let (_, saved) = trial.by_hand(true).forward(&trial.values, &[slot(0)]).unwrap();
        let given = [None, Some(Tensor::from_slice(&[7.0f32])), None];
        let found = saved.unwrap().reverse(&given, Gradient::Plain).unwrap().remove(0).unwrap();
        assert_eq!(Vec::<f32>::try_from(found).unwrap(), [0.0, 7.0, 0.0]);
    }

    #[test]
    fn an_empty_vector_joined_to_anything_runs_on_the_tape() {
        let list = vec![
            Some(Tensor::zeros([0], (Kind::Float, tch::Device::Cpu))),
            Some(Layout::Contiguous.random(&[2, 3], Kind::Float)),
        ];
        let trial = Trial::new("aten::cat", "", vec![("tensors", Value::Tensors(list)), ("dim", Value::Int(1))]);
        trial.agrees(true, &[element(1)], Layout::Contiguous, Within::Equal);
    }
}
