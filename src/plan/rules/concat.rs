//! Rules of operators that join tensors along an axis (`cat`, `stack`) or split one (`split`, `chunk`, `unbind`). They
//! are linear: plain and guided gradients are the same.

use tch::{Kind, Tensor};

use crate::plan::rule::{Gradient, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{axis, first, integer};
use super::explicit::Run;
use super::meta::MetaTensor;

/// `cat(tensors, dim)`.
pub(super) fn cat(operator: Operator) -> Run {
    join_with(operator, |grad_output, axis, segment| Ok(grad_output.f_narrow(axis, segment.start, segment.length)?))
}

/// `stack(tensors, dim)`.
pub(super) fn stack(operator: Operator) -> Run {
    join_with(operator, |grad_output, axis, segment| Ok(grad_output.f_select(axis, segment.index)?))
}

/// Where an element of the list lies in the result.
struct Segment {
    /// The element's index in the list.
    index: i64,
    /// The element's range along the joined axis of `cat`'s result.
    start: i64,
    length: i64,
    /// The element's dtype. The result's may be wider: `cat` promotes dtypes.
    kind: Kind,
}

/// The rule of an operator that joins its list of tensors along an axis. `take` cuts an element's gradient out of the
/// result's gradient along that axis.
fn join_with(operator: Operator, take: fn(&Tensor, i64, &Segment) -> Result<Tensor, OperatorError>) -> Run {
    Box::new(move |arguments, wanted: &[Slot]| {
        let Some(Value::Tensors(list)) = arguments.first() else { return Ok(None) };
        let elements: Option<Vec<&Tensor>> = list.iter().map(Option::as_ref).collect();
        let Some(elements) = elements else { return Ok(None) };
        let result = operator.call_tensor(arguments)?;
        let Some(axis) = axis(integer(arguments, 1)?, result.dim()) else { return Ok(None) };
        let mut ranges = Vec::with_capacity(elements.len());
        let mut start = 0;
        for element in &elements {
            let shape = element.size();
            if shape == [0] && result.dim() != 1 {
                // `cat` skips a tensor of shape [0] beside tensors of any rank. The tape covers that.
                return Ok(None);
            }
            // `stack` joins along a new axis, which its elements lack; it uses neither `start` nor `length`.
            let length = shape.get(axis).copied().unwrap_or(1);
            ranges.push((start, length));
            start += length;
        }
        let segments = wanted
            .iter()
            .map(|slot| {
                let kind = slot.tensor(arguments)?.f_kind()?;
                let index = slot.element.unwrap_or_default();
                let (start, length) = ranges[index];
                Ok(Segment { index: index as i64, start, length, kind })
            })
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let reverse = move |gradients: &[Option<Tensor>], _: Gradient| {
            let Some(Some(grad_output)) = gradients.first() else { return Ok(segments.iter().map(|_| None).collect()) };
            segments
                .iter()
                .map(|segment| {
                    let part = take(grad_output, axis as i64, segment)?;
                    Ok(Some(if part.f_kind()? == segment.kind { part } else { part.f_to_kind(segment.kind)? }))
                })
                .collect()
        };
        Ok(Some((vec![Value::Tensor(result)], Some(Box::new(reverse)))))
    })
}

/// `chunk(self, chunks, dim)`, `split(self, split_size, dim)`, `split_with_sizes(self, split_sizes, dim)`.
pub(super) fn split(operator: Operator) -> Run {
    split_with(operator, 2, |parts, axis| Ok(Tensor::f_cat(parts, axis)?))
}

/// `unbind(self, dim)`.
pub(super) fn unbind(operator: Operator) -> Run {
    split_with(operator, 1, |parts, axis| Ok(Tensor::f_stack(parts, axis)?))
}

/// The rule of an operator that splits its first argument along an axis. `dim` is the position of the argument that
/// names the axis. `join` joins the gradients of the parts to the gradient of the whole.
fn split_with(operator: Operator, dim: usize, join: fn(&[Tensor], i64) -> Result<Tensor, OperatorError>) -> Run {
    Box::new(move |arguments, wanted: &[Slot]| {
        if wanted != [Slot { argument: 0, element: None }] {
            return Ok(None);
        }
        let Some(axis) = axis(integer(arguments, dim)?, first(arguments)?.dim()) else { return Ok(None) };
        let Some(Value::Tensors(list)) = operator.call(arguments)?.into_iter().next() else { return Ok(None) };
        // A part that nothing reads has no gradient: zeros of its shape stand in.
        let metas: Vec<MetaTensor> = list.iter().flatten().map(MetaTensor::of).collect::<Result<_, _>>()?;
        let reverse = move |gradients: &[Option<Tensor>], _: Gradient| {
            if gradients.iter().all(Option::is_none) {
                return Ok(vec![None]);
            }
            let parts = metas
                .iter()
                .enumerate()
                .map(|(i, meta)| match gradients.get(i) {
                    Some(Some(grad_output)) => Ok(grad_output.shallow_clone()),
                    _ => Ok(meta.zeros()?),
                })
                .collect::<Result<Vec<_>, OperatorError>>()?;
            Ok(vec![Some(join(&parts, axis as i64)?)])
        };
        let results = list.into_iter().map(|part| part.map_or(Value::None, Value::Tensor)).collect();
        Ok(Some((results, Some(Box::new(reverse)))))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    fn element(index: usize) -> Slot {
        Slot { argument: 0, element: Some(index) }
    }

    proptest! {
        #[test]
        fn cat_agrees_with_the_tape(
            shape in any::shape(),
            lengths in prop::collection::vec(1..=4i64, 1..=4),
            (axis, from_the_back) in any::<(prop::sample::Index, bool)>(),
            kinds in (any::kind(), any::kind()),
            layouts in (any::layout(), any::layout()),
            grad_output in any::layout(),
            wanted in any::<u8>(),
        ) {
            let axis = axis.index(shape.len());
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
            let test = TestNode::new("aten::cat", "", vec![("tensors", list), ("dim", Value::Int(dim))]);
            test.agrees(true, &wanted, grad_output, Within::Equal);
        }

        #[test]
        fn stack_agrees_with_the_tape(
            shape in any::shape(),
            count in 1..=4usize,
            axis: prop::sample::Index,
            from_the_back: bool,
            grad_output in any::layout(),
        ) {
            let axis = axis.index(shape.len() + 1) as i64;
            let dim = axis - if from_the_back { shape.len() as i64 + 1 } else { 0 };
            let list = (0..count).map(|_| Some(Layout::Contiguous.random(&shape, Kind::Float))).collect();
            let named = vec![("tensors", Value::Tensors(list)), ("dim", Value::Int(dim))];
            let wanted: Vec<Slot> = (0..count).map(element).collect();
            TestNode::new("aten::stack", "", named).agrees(true, &wanted, grad_output, Within::Equal);
        }

        #[test]
        fn split_chunk_and_unbind_agree_with_the_tape(
            operator in 0..4,
            shape in any::shape(),
            (axis, from_the_back) in any::<(prop::sample::Index, bool)>(),
            parts in 1..=4i64,
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let axis = axis.index(shape.len());
            let dim = Value::Int(axis as i64 - if from_the_back { shape.len() as i64 } else { 0 });
            let x: Value = input.random(&shape, kind).into();
            let test = match operator {
                0 => TestNode::new("aten::chunk", "", vec![("self", x), ("chunks", Value::Int(parts)), ("dim", dim)]),
                1 => {
                    let size = Value::Int(parts);
                    TestNode::new("aten::split", "Tensor", vec![("self", x), ("split_size", size), ("dim", dim)])
                }
                2 => {
                    let first = shape[axis] / 2;
                    let sizes = Value::Ints(vec![first, 0, shape[axis] - first]);
                    TestNode::new("aten::split_with_sizes", "", vec![("self", x), ("split_sizes", sizes), ("dim", dim)])
                }
                _ => TestNode::new("aten::unbind", "int", vec![("self", x), ("dim", dim)]),
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }

    #[test]
    fn a_part_without_a_gradient_counts_as_zero() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
        let test = TestNode::new("aten::split", "Tensor", vec![("self", x.into()), ("split_size", Value::Int(1))]);
        let (_, saved) = test.explicit(true).forward(&test.values, &[slot(0)]).unwrap();
        let grad_output = [None, Some(Tensor::from_slice(&[7.0f32])), None];
        let found = saved.unwrap().reverse(&grad_output, Gradient::Plain).unwrap().remove(0).unwrap();
        assert_eq!(Vec::<f32>::try_from(found).unwrap(), [0.0, 7.0, 0.0]);
    }

    #[test]
    fn cat_of_an_empty_vector_and_a_matrix_runs_on_the_tape() {
        let list = vec![
            Some(Tensor::zeros([0], (Kind::Float, tch::Device::Cpu))),
            Some(Layout::Contiguous.random(&[2, 3], Kind::Float)),
        ];
        let test = TestNode::new("aten::cat", "", vec![("tensors", Value::Tensors(list)), ("dim", Value::Int(1))]);
        test.agrees(true, &[element(1)], Layout::Contiguous, Within::Equal);
    }
}
