//! Batch normalisation in evaluation mode, and layer normalisation.

use tch::Kind;

use crate::torch::{Operator, OperatorError, Value};

use super::arguments::{first, is_true, number};
use super::explicit::{Single, with_reverse};

/// `batch_norm(input, weight?, bias?, running_mean?, running_var?, training, momentum, eps, cudnn_enabled)` with
/// running statistics: the gradient is multiplied by `weight / sqrt(running_var + eps)` for each channel.
///
/// ATen multiplies twice, so the last bit may differ, and exact mode does not use this rule.
pub(super) fn batch_norm(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let input = first(arguments)?;
        let (Some(Value::Tensor(variance)), false) = (arguments.get(4), is_true(arguments, 5)) else {
            return Ok(None);
        };
        if input.dim() < 2 {
            return Ok(None);
        }
        // In at least float32, whatever the model's dtype: it is one number for each channel.
        let full = if variance.f_kind()? == Kind::Double { Kind::Double } else { Kind::Float };
        let scale = variance.f_to_kind(full)?.f_add_scalar(number(arguments, 7)?)?.f_rsqrt()?;
        let scale = match &arguments[1] {
            Value::Tensor(weight) => scale.f_mul(weight)?,
            _ => scale,
        };
        let mut per_channel = vec![1; input.dim()];
        per_channel[1] = -1;
        let (scale, kind) = (scale.f_reshape(&per_channel)?, input.f_kind()?);
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| {
            let gradient = grad_output.f_mul(&scale)?;
            Ok(if gradient.f_kind()? == kind { gradient } else { gradient.f_to_kind(kind)? })
        })
    })
}

/// `layer_norm(input, normalized_shape, weight?, bias?, eps, cudnn_enable)`.
pub(super) fn layer_norm() -> Result<Single, OperatorError> {
    let forward = Operator::find("aten::native_layer_norm", "")?;
    let backward = Operator::find("aten::native_layer_norm_backward", "")?;
    Ok(Box::new(move |arguments| {
        let mut results = forward.call(&arguments[..5])?.into_iter();
        let (Some(Value::Tensor(result)), Some(mean), Some(rstd)) = (results.next(), results.next(), results.next())
        else {
            return Err(OperatorError::Unsupported { operator: forward.to_string() });
        };
        let backward = backward.clone();
        let [input, shape, weight, bias] = [0, 1, 2, 3].map(|i| arguments[i].clone());
        with_reverse(result, move |grad_output| {
            backward.call_tensor(&[
                Value::Tensor(grad_output.shallow_clone()),
                input.clone(),
                shape.clone(),
                mean.clone(),
                rstd.clone(),
                weight.clone(),
                bias.clone(),
                Value::Bools(vec![true, false, false]),
            ])
        })
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Tensor;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    fn batch_norm(x: Tensor, affine: bool, parameters: Kind) -> TestNode {
        let channels = [x.size()[1]];
        let parameter = || Layout::Contiguous.random(&channels, parameters);
        let optional = || if affine { parameter().into() } else { Value::None };
        TestNode::new(
            "aten::batch_norm",
            "",
            vec![
                ("input", x.into()),
                ("weight", optional()),
                ("bias", optional()),
                ("running_mean", parameter().into()),
                ("running_var", (parameter().abs() + 0.3).into()),
                ("training", Value::Bool(false)),
                ("momentum", Value::Float(0.1)),
                ("eps", Value::Float(1e-3)),
                ("cudnn_enabled", Value::Bool(true)),
            ],
        )
    }

    proptest! {
        #[test]
        fn batch_norm_agrees_with_its_tape(
            shape in any::picture(),
            affine: bool,
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let test = batch_norm(input.random(&shape, kind), affine, kind);
            test.agrees(false, &[slot(0)], grad_output, Within::Relative(1e-6));
        }

        #[test]
        fn batch_norm_in_half_precision_is_as_close_as_its_dtype_allows(
            shape in any::picture(),
            full_parameters: bool,
            grad_output in any::layout(),
        ) {
            let kind = Kind::BFloat16;
            let parameters = if full_parameters { Kind::Float } else { kind };
            let x = Layout::Contiguous.random(&shape, kind);
            batch_norm(x, true, parameters).agrees(false, &[slot(0)], grad_output, Within::Relative(1e-2));
        }

        #[test]
        fn layer_norm_agrees_with_its_tape(
            shape in any::shape(),
            inner in 1..=2usize,
            affine: bool,
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let normalized = shape[shape.len().saturating_sub(inner)..].to_vec();
            let optional = || if affine { Layout::Contiguous.random(&normalized, kind).into() } else { Value::None };
            let named = vec![
                ("input", input.random(&shape, kind).into()),
                ("normalized_shape", Value::Ints(normalized.clone())),
                ("weight", optional()),
                ("bias", optional()),
            ];
            TestNode::new("aten::layer_norm", "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }

    #[test]
    fn one_row_with_an_oddly_strided_gradient_is_read_rightly() {
        use crate::plan::rule::{Gradient, Rule};
        let test = batch_norm(Layout::Contiguous.random(&[1, 12, 8, 8], Kind::Float), true, Kind::Float);
        let odd = Layout::Contiguous.random(&[1, 64, 12], Kind::Float).transpose(1, 2).view([1, 12, 8, 8]);
        let of = |rule: Box<dyn Rule>, grad_output: Tensor| {
            let (_, saved) = rule.forward(&test.values, &[slot(0)]).unwrap();
            saved.unwrap().reverse(&[Some(grad_output)], Gradient::Plain).unwrap().remove(0).unwrap()
        };
        let explicit = of(test.explicit(false), odd.shallow_clone());
        let expected = of(Box::new(test.tape()), odd.contiguous());
        let error = crate::plan::rules::against_tape::relative_error(&explicit, &expected);
        assert!(error < 1e-6, "relative error {error}");
    }
}
