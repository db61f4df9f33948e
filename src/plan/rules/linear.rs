//! `linear(input, weight, bias?)`.

use crate::torch::Operator;

use super::arguments::{first, tensor};
use super::explicit::{Single, with_reverse};

/// The gradient is `gradient · weight`. For some strides autograd multiplies in another order, so exact mode does not
/// use this rule.
pub(super) fn linear(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let weight = tensor(arguments, 1)?;
        if weight.dim() != 2 || first(arguments)?.dim() == 0 {
            return Ok(None);
        }
        let result = operator.call_tensor(arguments)?;
        let weight = weight.shallow_clone();
        with_reverse(result, move |grad_output| Ok(grad_output.f_matmul(&weight)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::plan::rules::against_tape::{TestNode, Within, any, slot};
    use crate::torch::Value;

    proptest! {
        #[test]
        fn linear_agrees_with_its_tape(
            shape in any::shape(),
            classes in 1..=9i64,
            with_bias: bool,
            kind in any::float(),
            input in any::layout(),
            weight in any::layout(),
            grad_output in any::layout(),
        ) {
            let features = shape[shape.len() - 1];
            let bias = if with_bias { weight.random(&[classes], kind).into() } else { Value::None };
            let named = vec![
                ("input", input.random(&shape, kind).into()),
                ("weight", weight.random(&[classes, features], kind).into()),
                ("bias", bias),
            ];
            TestNode::new("aten::linear", "", named).agrees(false, &[slot(0)], grad_output, Within::OfTerms(1e-6));
        }
    }
}
