//! Pooling, and means and sums over axes: the reverse needs only the input's shape.

use tch::{Device, Kind, Tensor};

use crate::torch::{
    ConvolutionParameters, Operator, OperatorError, Value, global_average_pool, max_pool, max_pool_gradient,
};

use super::arguments::{axis, first, integers, is_true};
use super::explicit::{Single, with_reverse};
use super::meta::MetaTensor;

/// The most taps of a window that [`max_pool`] takes.
const MAX_TAPS: i64 = 255;

/// `max_pool2d(self, kernel_size, stride, padding, dilation, ceil_mode)`.
pub(super) fn max_pool2d(exact: bool) -> Result<Single, OperatorError> {
    let forward = Operator::find("aten::max_pool2d_with_indices", "")?;
    let backward = Operator::find("aten::max_pool2d_with_indices_backward", "")?;
    Ok(Box::new(move |arguments| {
        if let Some((kernel, parameters)) = if exact { None } else { windows(arguments)? } {
            let input = first(arguments)?;
            let [rows, channels, height, width] = *input.size().as_slice() else { return Ok(None) };
            let (result, indices) = max_pool(input, kernel, &parameters)?;
            let size = [rows, channels, height, width];
            return with_reverse(result, move |grad_output| {
                max_pool_gradient(grad_output, &indices, kernel, size, &parameters)
            });
        }
        let mut results = forward.call(arguments)?.into_iter();
        let (Some(Value::Tensor(result)), Some(indices)) = (results.next(), results.next()) else {
            return Err(OperatorError::Unsupported { operator: forward.to_string() });
        };
        let (backward, meta, literals) =
            (backward.clone(), MetaTensor::of(first(arguments)?)?, arguments[1..].to_vec());
        with_reverse(result, move |grad_output| {
            let mut arguments = vec![Value::Tensor(grad_output.shallow_clone()), Value::Tensor(meta.tensor()?)];
            arguments.extend(literals.iter().cloned());
            arguments.push(indices.clone());
            backward.call_tensor(&arguments)
        })
    }))
}

/// The window and parameters of a `max_pool2d` that camlens's own kernel covers.
fn windows(arguments: &[Value]) -> Result<Option<([i64; 2], ConvolutionParameters)>, OperatorError> {
    let input = first(arguments)?;
    let pair = |at, default: [i64; 2]| -> Result<Option<[i64; 2]>, OperatorError> {
        Ok(match integers(arguments, at)?.as_slice() {
            [] => Some(default),
            &[both] => Some([both; 2]),
            &[down, across] => Some([down, across]),
            _ => None,
        })
    };
    let Some(kernel) = pair(1, [0; 2])? else { return Ok(None) };
    let (Some(stride), Some(padding), Some(dilation)) = (pair(2, kernel)?, pair(3, [0; 2])?, pair(4, [1; 2])?) else {
        return Ok(None);
    };
    let suits = is_channels_last(input)?
        && !is_true(arguments, 5)
        && dilation == [1, 1]
        && kernel.iter().all(|&edge| edge > 0)
        && kernel.iter().product::<i64>() <= MAX_TAPS
        && (0..2).all(|axis| {
            2 * padding[axis] <= kernel[axis] && input.size()[axis + 2] + 2 * padding[axis] >= kernel[axis]
        });
    Ok(suits.then_some((kernel, ConvolutionParameters { stride, padding, dilation })))
}

/// Whether camlens's own kernels take the input: float32 or bfloat16 on the CPU, channels-last.
fn is_channels_last(input: &Tensor) -> Result<bool, OperatorError> {
    let is_known = matches!(input.f_kind()?, Kind::Float | Kind::BFloat16) && input.device() == Device::Cpu;
    let [_, channels, height, width] = *input.size().as_slice() else { return Ok(false) };
    let strides = input.stride();
    Ok(is_known && input.numel() > 0 && strides == [channels * height * width, 1, width * channels, channels])
}

/// `avg_pool2d(self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override?)`.
pub(super) fn avg_pool2d(operator: Operator) -> Result<Single, OperatorError> {
    let backward = Operator::find("aten::avg_pool2d_backward", "")?;
    Ok(Box::new(move |arguments| {
        let result = operator.call_tensor(arguments)?;
        let (backward, meta, literals) =
            (backward.clone(), MetaTensor::of(first(arguments)?)?, arguments[1..].to_vec());
        with_reverse(result, move |grad_output| {
            let mut arguments = vec![Value::Tensor(grad_output.shallow_clone()), Value::Tensor(meta.tensor()?)];
            arguments.extend(literals.iter().cloned());
            backward.call_tensor(&arguments)
        })
    }))
}

/// `adaptive_avg_pool2d(self, output_size)`; to an output of 1 × 1 it is a mean.
///
/// A mean's gradient is the same at every pixel and is not materialised. ATen's tape does materialise it, and kernels
/// that read it (`silu_backward`) round differently by layout, so exact mode does not use this rule.
pub(super) fn adaptive_avg_pool2d(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let meta = MetaTensor::of(first(arguments)?)?;
        let (input, is_mean) = (first(arguments)?, integers(arguments, 1)? == [1, 1]);
        let own = is_mean && is_channels_last(input)?;
        let result = if own { global_average_pool(input)? } else { operator.call_tensor(arguments)? };
        if is_mean {
            let [.., height, width] = meta.shape()[..] else { return Ok(None) };
            let count = height * width;
            return with_reverse(result, move |grad_output| {
                Ok(grad_output.f_div_scalar(count)?.f_expand(meta.shape(), false)?)
            });
        }
        with_reverse(result, move |grad_output| {
            Ok(meta.tensor()?.f_internal_adaptive_avg_pool2d_backward(grad_output)?)
        })
    })
}

/// `mean(self, dim?, keepdim, dtype?)`, `sum(…)`. Exact mode does not use the rule of a mean, see
/// [`adaptive_avg_pool2d`].
pub(super) fn over_axes(operator: Operator, is_mean: bool) -> Single {
    Box::new(move |arguments| reduced(&operator, arguments, &integers(arguments, 1)?, is_true(arguments, 2), is_mean))
}

/// `mean(self, dtype?)`, `sum(self, dtype?)`.
pub(super) fn over_all(operator: Operator, is_mean: bool) -> Single {
    Box::new(move |arguments| reduced(&operator, arguments, &[], false, is_mean))
}

fn reduced(
    operator: &Operator,
    arguments: &[Value],
    axes: &[i64],
    keep: bool,
    is_mean: bool,
) -> Result<Option<(Tensor, super::explicit::Reverse)>, OperatorError> {
    let input = first(arguments)?;
    let (shape, kind) = (input.size(), input.f_kind()?);
    let gone: Option<Vec<usize>> = match axes {
        [] => Some((0..shape.len()).collect()),
        axes => axes.iter().map(|&a| axis(a, shape.len())).collect(),
    };
    let Some(gone) = gone else { return Ok(None) };
    let mut kept_shape = shape.clone();
    for &axis in &gone {
        kept_shape[axis] = 1;
    }
    let count: i64 = gone.iter().map(|&axis| shape[axis]).product();
    let result = operator.call_tensor(arguments)?;
    with_reverse(result, move |grad_output| {
        let grad_output = if keep { grad_output.shallow_clone() } else { grad_output.f_reshape(&kept_shape)? };
        let grad_output = if is_mean { grad_output.f_div_scalar(count)? } else { grad_output };
        let grad_output = if grad_output.f_kind()? == kind { grad_output } else { grad_output.f_to_kind(kind)? };
        Ok(grad_output.f_expand(&shape, false)?)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    fn pair(a: i64, b: i64) -> Value {
        Value::Ints(vec![a, b])
    }

    proptest! {
        #[test]
        fn max_pooling_agrees_with_its_tape(
            (n, c, h, w) in (1..=3i64, 1..=6i64, 5..=9i64, 5..=9i64),
            (kernel, stride, dilation) in (1..=3i64, 1..=3i64, 1..=2i64),
            padded: bool,
            ceil_mode: bool,
            (batched, exact) in any::<(bool, bool)>(),
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let shape = if batched { vec![n, c, h, w] } else { vec![c, h, w] };
            let named = vec![
                ("self", input.random(&shape, kind).into()),
                ("kernel_size", pair(kernel, kernel.min(2))),
                ("stride", pair(stride, stride)),
                ("padding", pair(if padded { kernel / 2 } else { 0 }, 0)),
                ("dilation", pair(dilation, 1)),
                ("ceil_mode", Value::Bool(ceil_mode)),
            ];
            TestNode::new("aten::max_pool2d", "", named).agrees(exact, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn average_pooling_agrees_with_its_tape(
            (n, c, h, w) in (1..=3i64, 1..=6i64, 5..=9i64, 5..=9i64),
            (kernel, stride) in (1..=3i64, 1..=3i64),
            (padded, ceil_mode, count_include_pad) in any::<(bool, bool, bool)>(),
            divisor in prop::option::of(1..=5i64),
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let named = vec![
                ("self", input.random(&[n, c, h, w], kind).into()),
                ("kernel_size", pair(kernel, kernel)),
                ("stride", pair(stride, stride)),
                ("padding", pair(if padded { kernel / 2 } else { 0 }, 0)),
                ("ceil_mode", Value::Bool(ceil_mode)),
                ("count_include_pad", Value::Bool(count_include_pad)),
                ("divisor_override", divisor.map_or(Value::None, Value::Int)),
            ];
            TestNode::new("aten::avg_pool2d", "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn adaptive_average_pooling_agrees_with_its_tape(
            shape in any::picture(),
            (height, width) in (1..=4i64, 1..=4i64),
            batched: bool,
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let shape = if batched { shape } else { shape[1..].to_vec() };
            let named = vec![("self", input.random(&shape, kind).into()), ("output_size", pair(height, width))];
            let within = if kind == Kind::Float { Within::OfTerms(1e-6) } else { Within::Equal };
            TestNode::new("aten::adaptive_avg_pool2d", "", named).agrees(false, &[slot(0)], grad_output, within);
        }

        #[test]
        fn means_and_sums_agree_with_their_tapes(
            shape in any::shape(),
            axes in prop::collection::btree_set(0..4i64, 0..=3),
            from_the_back: bool,
            (is_mean, keep, widen) in any::<(bool, bool, bool)>(),
            kind in any::float(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let rank = shape.len() as i64;
            let axes = axes.into_iter().filter(|a| *a < rank).map(|a| if from_the_back { a - rank } else { a });
            let named = vec![
                ("self", input.random(&shape, kind).into()),
                ("dim", Value::Ints(axes.collect())),
                ("keepdim", Value::Bool(keep)),
                ("dtype", if widen { Value::Int(7) } else { Value::None }),
            ];
            let (name, overload) = if is_mean { ("aten::mean", "dim") } else { ("aten::sum", "dim_IntList") };
            TestNode::new(name, overload, named).agrees(false, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn means_and_sums_of_everything_agree_with_their_tapes(
            shape in any::shape(),
            is_mean: bool,
            input in any::layout(),
        ) {
            let name = if is_mean { "aten::mean" } else { "aten::sum" };
            let test = TestNode::new(name, "", vec![("self", input.random(&shape, Kind::Float).into())]);
            test.agrees(false, &[slot(0)], Layout::Contiguous, Within::Equal);
        }
    }
}
