//! Smooth activations, by ATen's backward operators.

use tch::Tensor;

use crate::torch::{Operator, Value};

use super::arguments::{first, integer, number};
use super::explicit::{Single, with_reverse};

/// `backward(input, gradient)`.
type FromInput = fn(&Tensor, &Tensor) -> Result<Tensor, tch::TchError>;

/// An activation whose derivative is read from its input.
fn from_input(operator: Operator, backward: FromInput) -> Single {
    Box::new(move |arguments| {
        let input = first(arguments)?.shallow_clone();
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| Ok(backward(&input, grad_output)?))
    })
}

/// `silu(self)`.
pub(super) fn silu(operator: Operator) -> Single {
    from_input(operator, Tensor::f_silu_backward)
}

/// `hardswish(self)`.
pub(super) fn hardswish(operator: Operator) -> Single {
    from_input(operator, Tensor::f_hardswish_backward)
}

/// `hardsigmoid(self)`.
pub(super) fn hardsigmoid(operator: Operator) -> Single {
    from_input(operator, Tensor::f_hardsigmoid_backward)
}

/// `mish(self)`.
pub(super) fn mish(operator: Operator) -> Single {
    from_input(operator, Tensor::f_mish_backward)
}

/// `gelu(self, approximate)`.
pub(super) fn gelu(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let Some(Value::String(approximate)) = arguments.get(1).cloned() else { return Ok(None) };
        let input = first(arguments)?.shallow_clone();
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| Ok(input.f_gelu_backward(grad_output, &approximate)?))
    })
}

/// `elu(self, alpha, scale, input_scale)`.
pub(super) fn elu(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let (alpha, scale, input_scale) = (number(arguments, 1)?, number(arguments, 2)?, number(arguments, 3)?);
        let input = first(arguments)?.shallow_clone();
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| {
            Ok(Tensor::f_elu_backward(grad_output, alpha, scale, input_scale, false, &input)?)
        })
    })
}

/// `sigmoid(self)`, from its result.
pub(super) fn sigmoid(operator: Operator) -> Single {
    from_result(operator, Tensor::f_sigmoid_backward)
}

/// `tanh(self)`, from its result.
pub(super) fn tanh(operator: Operator) -> Single {
    from_result(operator, Tensor::f_tanh_backward)
}

/// `backward(gradient, result)`.
fn from_result(operator: Operator, backward: FromInput) -> Single {
    Box::new(move |arguments| {
        let result = operator.call_tensor(arguments)?;
        let saved = result.shallow_clone();
        with_reverse(result, move |grad_output| Ok(backward(grad_output, &saved)?))
    })
}

/// `softmax(self, dim, dtype?)` that keeps its dtype.
pub(super) fn softmax(operator: Operator) -> Single {
    Box::new(move |arguments| {
        if !matches!(arguments.get(2), None | Some(Value::None)) {
            return Ok(None);
        }
        let (dim, kind) = (integer(arguments, 1)?, first(arguments)?.f_kind()?);
        let result = operator.call_tensor(arguments)?;
        let saved = result.shallow_clone();
        with_reverse(result, move |grad_output| {
            Ok(Tensor::f_internal_softmax_backward_data(grad_output, &saved, dim, kind)?)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::against_tape::{TestNode, Within, any, slot};

    fn activation() -> impl Strategy<Value = (&'static str, Vec<(&'static str, Value)>)> {
        let text = |s: &str| Value::String(s.into());
        prop::sample::select(vec![
            ("aten::silu", vec![]),
            ("aten::gelu", vec![("approximate", text("none"))]),
            ("aten::gelu", vec![("approximate", text("tanh"))]),
            ("aten::hardswish", vec![]),
            ("aten::hardsigmoid", vec![]),
            ("aten::mish", vec![]),
            ("aten::elu", vec![]),
            ("aten::elu", vec![("alpha", Value::Float(0.5)), ("scale", Value::Float(1.1))]),
            ("aten::sigmoid", vec![]),
            ("aten::tanh", vec![]),
        ])
    }

    proptest! {
        #[test]
        fn every_smooth_activation_agrees_with_its_tape(
            (name, literals) in activation(),
            shape in any::shape(),
            kind in any::float(),
            is_guided: bool,
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let mut named = vec![("self", (input.random(&shape, kind) * 3.0).into())];
            named.extend(literals);
            let mut test = TestNode::new(name, "", named);
            if is_guided {
                test = test.rectifier();
            }
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn softmax_agrees_with_its_tape(
            shape in any::shape(),
            at: prop::sample::Index,
            from_the_back: bool,
            widen: bool,
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let dim = at.index(shape.len()) as i64 - if from_the_back { shape.len() as i64 } else { 0 };
            let named = vec![
                ("self", input.random(&shape, tch::Kind::Float).into()),
                ("dim", Value::Int(dim)),
                ("dtype", if widen { Value::Int(7) } else { Value::None }),
            ];
            TestNode::new("aten::softmax", "int", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }
}
