//! Addition, subtraction, multiplication and division, with broadcasting.

use tch::Tensor;

use crate::plan::rule::{Gradient, Slot};
use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, optional_number, tensor};
use super::explicit::Run;
use super::meta::MetaTensor;

/// The gradient of one operand from that of the result, before it is summed over broadcast axes.
type Part = Box<dyn Fn(&Tensor) -> Result<Tensor, OperatorError> + Send>;

/// `add(self, other, alpha)`, the second operand a tensor or a number.
pub(super) fn add(operator: Operator) -> Run {
    rule(operator, |arguments, operand| {
        let alpha = alpha(arguments)?;
        Ok(if operand == 0 { same() } else { Box::new(move |grad_output| times(grad_output, alpha)) })
    })
}

/// `sub(self, other, alpha)`.
pub(super) fn sub(operator: Operator) -> Run {
    rule(operator, |arguments, operand| {
        let alpha = alpha(arguments)?;
        Ok(if operand == 0 { same() } else { Box::new(move |grad_output| times(&grad_output.f_neg()?, alpha)) })
    })
}

/// `rsub(self, other, alpha)`: `other − alpha · self`.
pub(super) fn reversed_sub(operator: Operator) -> Run {
    rule(operator, |arguments, operand| {
        let alpha = alpha(arguments)?;
        Ok(if operand == 1 { same() } else { Box::new(move |grad_output| times(&grad_output.f_neg()?, alpha)) })
    })
}

/// `mul(self, other)`.
pub(super) fn mul(operator: Operator) -> Run {
    rule(operator, |arguments, operand| {
        let factor = arguments[1 - operand].clone();
        let number = optional_factor(arguments, 1 - operand)?;
        Ok(Box::new(move |grad_output| match (&factor, number) {
            (Value::Tensor(factor), _) => Ok(grad_output.f_mul(factor)?),
            (_, Some(number)) => Ok(grad_output.f_mul_scalar(number)?),
            (_, None) => Ok(grad_output.shallow_clone()),
        }))
    })
}

/// `div(self, other)`, without rounding.
pub(super) fn div(operator: Operator) -> Run {
    rule(operator, |arguments, operand| {
        if operand == 1 {
            let (numerator, divisor) = (first(arguments)?.shallow_clone(), tensor(arguments, 1)?.shallow_clone());
            return Ok(Box::new(move |grad_output| {
                Ok(grad_output.f_neg()?.f_mul(&numerator.f_div(&divisor)?.f_div(&divisor)?)?)
            }));
        }
        let divisor = arguments[1].clone();
        let number = optional_factor(arguments, 1)?;
        Ok(Box::new(move |grad_output| match (&divisor, number) {
            (Value::Tensor(divisor), _) => Ok(grad_output.f_div(divisor)?),
            (_, Some(number)) => Ok(grad_output.f_div_scalar(number)?),
            (_, None) => Ok(grad_output.shallow_clone()),
        }))
    })
}

fn optional_factor(arguments: &[Value], at: usize) -> Result<Option<f64>, OperatorError> {
    match &arguments[at] {
        Value::Tensor(_) => Ok(None),
        _ => optional_number(arguments, at),
    }
}

fn alpha(arguments: &[Value]) -> Result<f64, OperatorError> {
    Ok(optional_number(arguments, 2)?.unwrap_or(1.0))
}

fn same() -> Part {
    Box::new(|grad_output| Ok(grad_output.shallow_clone()))
}

fn times(grad_output: &Tensor, factor: f64) -> Result<Tensor, OperatorError> {
    Ok(if factor == 1.0 { grad_output.shallow_clone() } else { grad_output.f_mul_scalar(factor)? })
}

/// A rule whose operands are the first two arguments. `part` makes the closure that computes one operand's gradient,
/// and saves only what it needs.
fn rule(operator: Operator, part: impl Fn(&[Value], usize) -> Result<Part, OperatorError> + Send + 'static) -> Run {
    Box::new(move |arguments, wanted: &[Slot]| {
        let is_number = |at| !matches!(arguments.get(at), Some(Value::Tensor(_)));
        if wanted.iter().any(|slot| slot.argument > 1) || is_number(0) {
            return Ok(None);
        }
        let parts = wanted
            .iter()
            .map(|slot| Ok((MetaTensor::of(slot.tensor(arguments)?)?, part(arguments, slot.argument)?)))
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let result = operator.call_tensor(arguments)?;
        let saved = move |results: &[Option<Tensor>], _: Gradient| {
            parts
                .iter()
                .map(|(operand, part)| match results.first() {
                    Some(Some(grad_output)) => operand.fit(part(grad_output)?).map(Some),
                    _ => Ok(None),
                })
                .collect()
        };
        Ok(Some((vec![Value::Tensor(result)], Some(Box::new(saved)))))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    /// A shape that broadcasts to `shape`: axes from the front left out, others made 1.
    fn broadcast(shape: &[i64], dropped: usize, ones: u8) -> Vec<i64> {
        let kept = &shape[dropped.min(shape.len())..];
        kept.iter().enumerate().map(|(i, &size)| if ones >> i & 1 == 1 { 1 } else { size }).collect()
    }

    fn positive(tensor: Tensor) -> Value {
        (tensor.abs() + 0.5).into()
    }

    proptest! {
        #[test]
        fn two_tensors_agree_with_their_tape(
            name in prop::sample::select(vec!["aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"]),
            shape in any::shape(),
            (dropped, ones) in (0..=4usize, any::<u8>()),
            small_first: bool,
            alpha in prop::sample::select(vec![Value::Int(1), Value::Float(-2.5), Value::Int(3)]),
            (first_kind, second_kind) in (any::kind(), any::kind()),
            (first_layout, second_layout, grad_output) in (any::layout(), any::layout(), any::layout()),
            wanted in prop::sample::select(vec![vec![0], vec![1], vec![0, 1]]),
        ) {
            let small = broadcast(&shape, dropped, ones);
            let (a, b) = if small_first { (&small, &shape) } else { (&shape, &small) };
            let mut named = vec![
                ("self", first_layout.random(a, first_kind).into()),
                ("other", positive(second_layout.random(b, second_kind))),
            ];
            if !matches!(name, "aten::mul" | "aten::div") {
                named.push(("alpha", alpha));
            }
            let wanted: Vec<Slot> = wanted.into_iter().map(slot).collect();
            TestNode::new(name, "Tensor", named).agrees(true, &wanted, grad_output, Within::Equal);
        }

        #[test]
        fn a_tensor_and_a_number_agree_with_their_tape(
            name in prop::sample::select(vec!["aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"]),
            overload in prop::sample::select(vec!["Tensor", "Scalar"]),
            number in prop::sample::select(vec![Value::Int(3), Value::Float(-0.7), Value::Float(1e-3)]),
            shape in any::shape(),
            kind in any::kind(),
            grad_output in any::layout(),
        ) {
            let named = vec![("self", Layout::Contiguous.random(&shape, kind).into()), ("other", number)];
            TestNode::new(name, overload, named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_number_divided_by_a_tensor_agrees_with_its_tape(
            numerator in -3.0..3.0f64,
            shape in any::shape(),
            grad_output in any::layout(),
        ) {
            let divisor = positive(Layout::Contiguous.random(&shape, Kind::Float));
            let named = vec![("self", Value::Float(numerator)), ("other", divisor)];
            TestNode::new("aten::div", "Tensor", named).agrees(true, &[slot(1)], grad_output, Within::Equal);
        }
    }

    #[test]
    fn a_factor_is_saved_only_for_the_gradient_that_needs_it() {
        use crate::plan::rule::Gradient;
        let mut gate = Layout::Contiguous.random(&[2, 3], Kind::Float);
        let mut x = Layout::Contiguous.random(&[2, 3], Kind::Float);
        let named = vec![("self", x.shallow_clone().into()), ("other", gate.shallow_clone().into())];
        let test = TestNode::new("aten::mul", "Tensor", named);
        let (_, saved) = test.explicit(true).forward(&test.values, &[slot(0)]).unwrap();
        let saved = saved.unwrap();
        let grad_output = [Some(Layout::Contiguous.random(&[2, 3], Kind::Float))];
        let of = || saved.reverse(&grad_output, Gradient::Plain).unwrap().remove(0).unwrap();
        let before = of();
        let _ = x.fill_(f64::NAN);
        assert!(of().equal(&before));
        let _ = gate.fill_(f64::NAN);
        assert!(!of().equal(&before));
    }
}
