//! `pad` and `constant_pad_nd`: a border of a constant.

use tch::Tensor;

use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, integers, optional_number};
use super::explicit::{Single, with_reverse};

/// `constant_pad_nd(self, pad, value)`.
pub(super) fn constant_pad() -> Single {
    Box::new(|arguments| padded(arguments, optional_number(arguments, 2)?))
}

/// `pad(self, pad, mode, value?)`; other modes than `constant` are not covered.
pub(super) fn pad(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let position = operator.schema().position("mode");
        match position.and_then(|at| arguments.get(at)) {
            Some(Value::String(mode)) if mode == "constant" => padded(arguments, optional_number(arguments, 3)?),
            _ => Ok(None),
        }
    })
}

type Padded = Option<(Tensor, super::explicit::Reverse)>;

/// Copies the input once and fills only the border; ATen fills the whole result first. The gradient is a slice of the
/// result's. A negative border, which crops, is not covered.
fn padded(arguments: &[Value], value: Option<f64>) -> Result<Padded, OperatorError> {
    let input = first(arguments)?;
    let sides = integers(arguments, 1)?;
    let (size, rank) = (input.size(), input.dim());
    if sides.len() % 2 != 0 || sides.len() / 2 > rank || sides.iter().any(|&side| side < 0) || input.numel() == 0 {
        return Ok(None);
    }
    // From the last axis on: axis, border before, border after, size.
    let axes: Vec<(i64, i64, i64, i64)> = sides
        .chunks_exact(2)
        .zip((0..rank).rev())
        .map(|(pair, axis)| (axis as i64, pair[0], pair[1], size[axis]))
        .filter(|(_, before, after, _)| before + after > 0)
        .collect();
    let mut whole = size.clone();
    for &(axis, before, after, _) in &axes {
        whole[axis as usize] += before + after;
    }
    let result = like(input, &whole)?;
    let inside = axes.iter().try_fold(result.shallow_clone(), |part, &(axis, before, _, length)| {
        // The border of this axis, within the interior of the axes before.
        let value = value.unwrap_or(0.0);
        let after = before + length;
        for (start, length) in [(0, before), (after, part.size()[axis as usize] - after)] {
            let _ = part.f_narrow(axis, start, length)?.f_fill_(value)?;
        }
        part.f_narrow(axis, before, length)
    })?;
    let mut inside = inside;
    inside.f_copy_(input)?;
    with_reverse(result, move |grad_output| {
        Ok(axes.iter().try_fold(grad_output.shallow_clone(), |part, &(axis, before, _, length)| {
            part.f_narrow(axis, before, length)
        })?)
    })
}

/// An uninitialised larger tensor, channels-last if the input is.
fn like(input: &Tensor, size: &[i64]) -> Result<Tensor, OperatorError> {
    let options = (input.f_kind()?, input.device());
    if let [rows, channels, height, width] = *size
        && !input.is_contiguous()
        && input.f_permute([0, 2, 3, 1])?.is_contiguous()
    {
        return Ok(Tensor::f_empty([rows, height, width, channels], options)?.f_permute([0, 3, 1, 2])?);
    }
    Ok(Tensor::f_empty(size, options)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::plan::rules::against_tape::{TestNode, Within, any, slot};
    use crate::torch::Value;

    proptest! {
        #[test]
        fn padding_agrees_with_its_tape(
            shape in any::shape(),
            sides in prop::collection::vec(-1..4i64, 1..3),
            value in prop_oneof![Just(Value::None), Just(Value::Int(0)), Just(Value::Float(1.5))],
            mode in prop::sample::select(vec!["constant", "circular"]),
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let sides = sides.iter().take(shape.len()).flat_map(|side| [*side, (side + 1).min(2)]);
            let sides = Value::Ints(sides.collect());
            let x = input.random(&shape, kind);
            if mode == "constant" {
                let named = vec![("self", x.shallow_clone().into()), ("pad", sides.clone()), ("value", value.clone())];
                TestNode::new("aten::pad", "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
                let value = if matches!(value, Value::None) { Value::Int(0) } else { value };
                let named = vec![("self", x.into()), ("pad", sides), ("value", value)];
                TestNode::new("aten::constant_pad_nd", "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
            } else if shape.len() == 4 && shape[3] > 1 {
                let one = Value::Ints(vec![1, 1]);
                let mode = Value::String(mode.into());
                let x = x.f_select(0, 0).unwrap();
                let named = vec![("self", x.into()), ("pad", one), ("mode", mode)];
                TestNode::new("aten::pad", "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
            }
        }
    }
}
