//! Convolutions: the gradient to the input needs the weight and the input's shape, not the input's values.

use tch::Tensor;

use crate::torch::{Operator, OperatorError, Value, window_may_miss};

use super::arguments::{first, integer, integers, is_true, tensor};
use super::explicit::{Single, with_reverse};
use super::meta::MetaTensor;

/// The arguments of `aten::convolution_backward` besides its tensors.
struct Geometry {
    stride: Vec<i64>,
    padding: Vec<i64>,
    dilation: Vec<i64>,
    transposed: bool,
    output_padding: Vec<i64>,
    groups: i64,
}

impl Geometry {
    fn may_miss(&self, input: &Tensor, weight: &Tensor) -> bool {
        let (input, weight) = (input.size(), weight.size());
        let axes = |size: &[i64]| size.get(2..).unwrap_or_default().to_vec();
        window_may_miss(&axes(&input), &axes(&weight), &self.padding, &self.dilation)
    }
}

/// Reads an operator's geometry from its arguments; `None` for a form that the rule does not cover.
type ReadGeometry = fn(&[Value]) -> Result<Option<Geometry>, OperatorError>;

/// `conv{1,2,3}d(input, weight, bias?, stride, padding, dilation, groups)`.
pub(super) fn plain(operator: Operator) -> Result<Single, OperatorError> {
    rule(operator, |arguments| forward(arguments, integers(arguments, 4)?))
}

/// The same with `padding` as `valid` or `same`.
pub(super) fn padded_in_words(operator: Operator) -> Result<Single, OperatorError> {
    rule(operator, |arguments| {
        let weight = tensor(arguments, 1)?.size();
        let kernel = weight.get(2..).unwrap_or_default();
        let padding = match &arguments[4] {
            Value::String(padding) if padding == "valid" => vec![0; kernel.len()],
            Value::String(padding) if padding == "same" => {
                let dilation = integers(arguments, 5)?;
                let total =
                    |(i, k): (usize, &i64)| dilation.get(i).or(dilation.first()).copied().unwrap_or(1) * (k - 1);
                let totals: Vec<i64> = kernel.iter().enumerate().map(total).collect();
                if totals.iter().any(|total| total % 2 != 0) {
                    // ATen pads one side more, in a separate step.
                    return Ok(None);
                }
                totals.iter().map(|total| total / 2).collect()
            }
            _ => return Ok(None),
        };
        forward(arguments, padding)
    })
}

/// `conv_transpose{1,2,3}d(input, weight, bias?, stride, padding, output_padding, groups, dilation)`.
pub(super) fn transposed(operator: Operator) -> Result<Single, OperatorError> {
    rule(operator, |arguments| {
        Ok(Some(Geometry {
            stride: integers(arguments, 3)?,
            padding: integers(arguments, 4)?,
            dilation: integers(arguments, 7)?,
            transposed: true,
            output_padding: integers(arguments, 5)?,
            groups: integer(arguments, 6)?,
        }))
    })
}

/// `convolution(input, weight, bias?, stride, padding, dilation, transposed, output_padding, groups)`.
pub(super) fn general(operator: Operator) -> Result<Single, OperatorError> {
    rule(operator, |arguments| {
        Ok(Some(Geometry {
            stride: integers(arguments, 3)?,
            padding: integers(arguments, 4)?,
            dilation: integers(arguments, 5)?,
            transposed: is_true(arguments, 6),
            output_padding: integers(arguments, 7)?,
            groups: integer(arguments, 8)?,
        }))
    })
}

fn forward(arguments: &[Value], padding: Vec<i64>) -> Result<Option<Geometry>, OperatorError> {
    Ok(Some(Geometry {
        stride: integers(arguments, 3)?,
        padding,
        dilation: integers(arguments, 5)?,
        transposed: false,
        output_padding: vec![0],
        groups: integer(arguments, 6)?,
    }))
}

fn rule(operator: Operator, geometry: ReadGeometry) -> Result<Single, OperatorError> {
    let backward = Operator::find("aten::convolution_backward", "")?;
    Ok(Box::new(move |arguments| {
        let (input, weight) = (first(arguments)?, tensor(arguments, 1)?);
        let Some(geometry) = geometry(arguments)? else { return Ok(None) };
        if input.dim() != weight.dim() {
            // A single image without a batch axis.
            return Ok(None);
        }
        if !geometry.transposed && geometry.may_miss(input, weight) {
            // The operator runs with the padding written out, so its gradient must be computed the same way.
            return Ok(None);
        }
        let bias = match arguments.get(2) {
            Some(Value::Tensor(bias)) => Value::Ints(bias.size()),
            _ => Value::None,
        };
        let result = operator.call_tensor(arguments)?;
        let (backward, weight, meta) = (backward.clone(), weight.shallow_clone(), MetaTensor::of(input)?);
        with_reverse(result, move |grad_output| {
            input_gradient(&backward, grad_output, meta.tensor()?, &weight, &bias, &geometry)
        })
    }))
}

fn input_gradient(
    backward: &Operator,
    grad_output: &Tensor,
    input: Tensor,
    weight: &Tensor,
    bias_shape: &Value,
    geometry: &Geometry,
) -> Result<Tensor, OperatorError> {
    backward.call_tensor(&[
        Value::Tensor(grad_output.shallow_clone()),
        Value::Tensor(input),
        Value::Tensor(weight.shallow_clone()),
        bias_shape.clone(),
        Value::Ints(geometry.stride.clone()),
        Value::Ints(geometry.padding.clone()),
        Value::Ints(geometry.dilation.clone()),
        Value::Bool(geometry.transposed),
        Value::Ints(geometry.output_padding.clone()),
        Value::Int(geometry.groups),
        Value::Bools(vec![true, false, false]),
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;
    use crate::plan::rule::Gradient;
    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};

    /// One axis of a convolution.
    #[derive(Debug, Clone, Copy)]
    struct Axis {
        size: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
        dilation: i64,
    }

    fn axis() -> impl Strategy<Value = Axis> {
        (1..=3i64, 1..=3i64, 0..=2i64, 1..=2i64, 0..=6i64).prop_map(|(kernel, stride, padding, dilation, more)| {
            let least = (dilation * (kernel - 1) + 1 - 2 * padding).max(1);
            Axis { size: least + more, kernel, stride, padding, dilation }
        })
    }

    /// Groups, and input and output channels of each.
    fn groups() -> impl Strategy<Value = [i64; 3]> {
        prop_oneof![
            (1..=5i64, 1..=5i64).prop_map(|(i, o)| [1, i, o]),
            (2..=3i64, 1..=3i64, 1..=3i64).prop_map(|(g, i, o)| [g, i, o]),
            (2..=6i64).prop_map(|g| [g, 1, 1]),
        ]
    }

    fn ints(values: impl IntoIterator<Item = i64>) -> Value {
        Value::Ints(values.into_iter().collect())
    }

    fn bias(with: bool, channels: i64, kind: Kind) -> Value {
        if with { Layout::Contiguous.random(&[channels], kind).into() } else { Value::None }
    }

    fn shape(rows: i64, channels: i64, sizes: impl IntoIterator<Item = i64>) -> Vec<i64> {
        [rows, channels].into_iter().chain(sizes).collect()
    }

    proptest! {
        #[test]
        fn a_convolution_agrees_with_its_tape(
            axes in prop::collection::vec(axis(), 1..=2),
            [groups, inward, outward] in groups(),
            rows in 1..=3i64,
            with_bias: bool,
            kind in any::float(),
            input in any::layout(),
            weight in any::layout(),
            grad_output in any::layout(),
        ) {
            let x = input.random(&shape(rows, groups * inward, axes.iter().map(|a| a.size)), kind);
            let w = weight.random(&shape(groups * outward, inward, axes.iter().map(|a| a.kernel)), kind);
            let named = vec![
                ("input", x.into()),
                ("weight", w.into()),
                ("bias", bias(with_bias, groups * outward, kind)),
                ("stride", ints(axes.iter().map(|a| a.stride))),
                ("padding", ints(axes.iter().map(|a| a.padding))),
                ("dilation", ints(axes.iter().map(|a| a.dilation))),
                ("groups", Value::Int(groups)),
            ];
            let name = if axes.len() == 1 { "aten::conv1d" } else { "aten::conv2d" };
            TestNode::new(name, "", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_convolution_padded_in_words_agrees_with_its_tape(
            axes in prop::collection::vec(axis(), 2..=2),
            same: bool,
            channels in 1..=4i64,
            grad_output in any::layout(),
        ) {
            let x = Layout::Contiguous.random(&shape(2, channels, axes.iter().map(|a| a.size + 4)), Kind::Float);
            let w = Layout::Contiguous.random(&shape(3, channels, axes.iter().map(|a| a.kernel)), Kind::Float);
            let named = vec![
                ("input", x.into()),
                ("weight", w.into()),
                ("padding", Value::String(if same { "same" } else { "valid" }.into())),
                ("dilation", ints(axes.iter().map(|a| a.dilation))),
            ];
            TestNode::new("aten::conv2d", "padding", named).agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_transposed_convolution_agrees_with_its_tape(
            axes in prop::collection::vec(axis(), 2..=2),
            [groups, inward, outward] in groups(),
            with_bias: bool,
            general: bool,
            grad_output in any::layout(),
        ) {
            let x = Layout::Contiguous.random(&shape(2, groups * inward, axes.iter().map(|a| a.size + 3)), Kind::Float);
            let kernel = shape(groups * inward, outward, axes.iter().map(|a| a.kernel));
            let w = Layout::Contiguous.random(&kernel, Kind::Float);
            let mut named = vec![
                ("input", x.into()),
                ("weight", w.into()),
                ("bias", bias(with_bias, groups * outward, Kind::Float)),
                ("stride", ints(axes.iter().map(|a| a.stride))),
                ("padding", ints(axes.iter().map(|a| a.padding.min(1)))),
                ("dilation", ints(axes.iter().map(|a| a.dilation))),
                ("output_padding", ints(axes.iter().map(|a| i64::from(a.stride > 1)))),
                ("groups", Value::Int(groups)),
            ];
            let test = if general {
                named.push(("transposed", Value::Bool(true)));
                TestNode::new("aten::convolution", "", named)
            } else {
                TestNode::new("aten::conv_transpose2d", "input", named)
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }

    #[test]
    fn an_image_without_a_batch_axis_runs_on_the_tape() {
        let x = Layout::Contiguous.random(&[3, 6, 6], Kind::Float);
        let w = Layout::Contiguous.random(&[4, 3, 3, 3], Kind::Float);
        TestNode::new("aten::conv2d", "", vec![("input", x.into()), ("weight", w.into())]).agrees(
            true,
            &[slot(0)],
            Layout::Contiguous,
            Within::Equal,
        );
    }

    #[test]
    fn weights_that_depend_on_the_input_run_on_the_tape() {
        let x = Layout::Contiguous.random(&[2, 3, 6, 6], Kind::Float);
        let w = Layout::Contiguous.random(&[4, 3, 3, 3], Kind::Float);
        TestNode::new("aten::conv2d", "", vec![("input", x.into()), ("weight", w.into())]).agrees(
            true,
            &[slot(0), slot(1)],
            Layout::Contiguous,
            Within::Equal,
        );
    }

    /// The input's values are not saved.
    #[test]
    fn the_input_may_be_overwritten_between_forward_and_reverse() {
        let mut x = Tensor::randn([1, 3, 8, 8], (Kind::Float, Device::Cpu));
        let w = Layout::Contiguous.random(&[4, 3, 3, 3], Kind::Float);
        let named = vec![("input", x.shallow_clone().into()), ("weight", w.into())];
        let test = TestNode::new("aten::conv2d", "", named);
        let (_, saved) = test.explicit(true).forward(&test.values, &[slot(0)]).unwrap();
        let grad_output = [Some(Layout::Contiguous.random(&[1, 4, 6, 6], Kind::Float))];
        let before = saved.as_ref().unwrap().reverse(&grad_output, Gradient::Plain).unwrap().remove(0).unwrap();
        let _ = x.fill_(f64::NAN);
        let after = saved.unwrap().reverse(&grad_output, Gradient::Plain).unwrap().remove(0).unwrap();
        assert!(before.equal(&after));
    }
}
