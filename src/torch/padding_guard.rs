//! A guard around ATen's convolutions on the CPU.
//!
//! If a window of the kernel lies entirely in the padding, oneDNN (PyTorch 2.11, AVX-512) sometimes reads memory
//! outside its tensors. The padding is then written out first, so that every window lies within the input. The result
//! is the same.

use tch::{Device, Tensor};

use super::error::OperatorError;
use super::value::Value;

/// The positions of a convolution's arguments.
struct Positions {
    padding: usize,
    dilation: usize,
}

fn positions(operator: &str, arguments: &[Value]) -> Option<Positions> {
    match operator {
        "aten::conv1d" | "aten::conv2d" | "aten::conv3d" => Some(Positions { padding: 4, dilation: 5 }),
        "aten::convolution" | "aten::_convolution" if matches!(arguments.get(6), Some(Value::Bool(false))) => {
            Some(Positions { padding: 4, dilation: 5 })
        }
        _ => None,
    }
}

/// Whether a window of a convolution (not a transposed one) may lie entirely in the padding. `input` and `kernel` are
/// the sizes along the spatial axes; `padding` and `dilation` have one number for all axes or one per axis.
#[must_use]
pub fn window_may_miss(input: &[i64], kernel: &[i64], padding: &[i64], dilation: &[i64]) -> bool {
    let of = |list: &[i64], axis: usize, default| list.get(axis).or(list.first()).copied().unwrap_or(default);
    input.iter().zip(kernel).enumerate().any(|(axis, (&size, &kernel))| {
        let (padding, dilation) = (of(padding, axis, 0), of(dilation, axis, 1));
        let reach = dilation.saturating_mul(kernel.saturating_sub(1));
        // Beyond an edge, or with the whole input between two taps.
        padding > reach || (kernel > 1 && padding > 0 && size < dilation)
    })
}

/// The arguments to call `operator` (`aten::conv2d`) with instead, if a window may miss the input.
pub(super) fn with_written_padding(
    operator: &str,
    arguments: &[Value],
    record: bool,
) -> Result<Option<Vec<Value>>, OperatorError> {
    let Some(at) = positions(operator, arguments) else { return Ok(None) };
    let (Value::Tensor(input), Value::Tensor(weight)) = (&arguments[0], &arguments[1]) else { return Ok(None) };
    let (size, kernel) = (input.size(), weight.size());
    let axes = kernel.len().saturating_sub(2);
    if input.device() != Device::Cpu || axes == 0 || size.len() <= axes {
        return Ok(None);
    }
    let (size, kernel) = (&size[size.len() - axes..], &kernel[2..]);
    let Some(dilation) = ints(&arguments[at.dilation]) else { return Ok(None) };
    // The padding before and after the input, per axis.
    let sides: Vec<(i64, i64)> = match &arguments[at.padding] {
        Value::String(words) if words == "same" => (0..axes)
            .map(|axis| {
                let reach = dilation.get(axis).or(dilation.first()).map_or(1, |d| *d).saturating_mul(kernel[axis] - 1);
                (reach / 2, reach - reach / 2)
            })
            .collect(),
        numbers => {
            let Some(padding) = ints(numbers) else { return Ok(None) };
            let each = (0..axes).map(|axis| padding.get(axis).or(padding.first()).copied().unwrap_or(0));
            each.map(|padding| (padding, padding)).collect()
        }
    };
    let most: Vec<i64> = sides.iter().map(|&(before, after)| before.max(after)).collect();
    if !window_may_miss(size, kernel, &most, dilation) || sides.iter().any(|&(before, after)| before < 0 || after < 0) {
        return Ok(None);
    }
    // `constant_pad_nd` counts from the last axis.
    let pad: Vec<i64> = sides.iter().rev().flat_map(|&(before, after)| [before, after]).collect();
    let mut arguments = arguments.to_vec();
    arguments[0] = Value::Tensor(padded(input, &pad, record)?);
    arguments[at.padding] = match &arguments[at.padding] {
        Value::String(_) => Value::String("valid".into()),
        _ => Value::Ints(vec![0; axes]),
    };
    Ok(Some(arguments))
}

fn padded(input: &Tensor, pad: &[i64], record: bool) -> Result<Tensor, OperatorError> {
    let pad = || input.f_constant_pad_nd(pad);
    Ok(if record { tch::with_grad(pad) } else { tch::no_grad(pad) }?)
}

fn ints(value: &Value) -> Option<&[i64]> {
    match value {
        Value::Ints(list) => Some(list),
        Value::Int(one) => Some(std::slice::from_ref(one)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::torch::{Operator, Tape, relative_error};

    /// Whether some window lies entirely in the padding, by trying every tap of every window.
    fn misses(size: i64, kernel: i64, stride: i64, padding: i64, dilation: i64) -> bool {
        let windows = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
        (0..windows).any(|w| (0..kernel).all(|tap| !(0..size).contains(&(w * stride - padding + tap * dilation))))
    }

    #[test]
    fn every_window_that_misses_is_predicted() {
        for size in 1..=7 {
            for kernel in 1..=4 {
                for padding in 0..=4 {
                    for dilation in 1..=4 {
                        for stride in 1..=3 {
                            if size + 2 * padding < dilation * (kernel - 1) + 1 {
                                continue;
                            }
                            let may = window_may_miss(&[size], &[kernel], &[padding], &[dilation]);
                            let does = misses(size, kernel, stride, padding, dilation);
                            assert!(may || !does, "{size} {kernel} {padding} {dilation} {stride}");
                        }
                    }
                }
            }
        }
    }

    /// A convolution by its definition, in float64 sums over taps, `[1, 1, n]`.
    fn by_definition(x: &[f64], w: &[f64], stride: usize, padding: i64, dilation: i64) -> Vec<f64> {
        let size = x.len() as i64;
        let last = size + 2 * padding - dilation * (w.len() as i64 - 1) - 1;
        let tap = |start: i64, k: usize| usize::try_from(start + k as i64 * dilation).ok().and_then(|i| x.get(i));
        (0..=last)
            .step_by(stride)
            .map(|start| w.iter().enumerate().filter_map(|(k, w)| Some(tap(start - padding, k)? * w)).sum())
            .collect()
    }

    #[test]
    fn a_padding_beyond_the_kernel_gives_the_convolution_by_definition() {
        let operator = Operator::find("aten::conv1d", "").unwrap();
        for (w, stride, padding, dilation) in [
            (vec![2.0], 1, 2, 1),
            (vec![1.0, -3.0], 2, 3, 2),
            (vec![1.0, 2.0], 1, 3, 6),
            (vec![0.5, 1.0, 2.0], 3, 4, 1),
        ] {
            let x = [1.0, -2.0, 3.0, 5.0];
            let row = |values: &[f64]| Tensor::from_slice(values).view([1, 1, -1]).to_kind(Kind::Float);
            let named = |(name, value): (&str, Value)| (name.to_owned(), value);
            let arguments = operator
                .arrange(
                    [
                        ("input", Value::Tensor(row(&x))),
                        ("weight", Value::Tensor(row(&w))),
                        ("stride", Value::Ints(vec![stride])),
                        ("padding", Value::Ints(vec![padding])),
                        ("dilation", Value::Ints(vec![dilation])),
                    ]
                    .map(named)
                    .into(),
                )
                .unwrap();
            assert!(with_written_padding(operator.name(), &arguments, false).unwrap().is_some());
            let got = Vec::<f64>::try_from(operator.call_tensor(&arguments).unwrap().view(-1).to_kind(Kind::Double));
            assert_eq!(got.unwrap(), by_definition(&x, &w, stride as usize, padding, dilation));
        }
    }

    #[test]
    fn the_gradient_passes_through_the_written_padding() {
        let operator = Operator::find("aten::conv2d", "").unwrap();
        let x = Tensor::randn([2, 3, 5, 4], (Kind::Float, Device::Cpu));
        let w = Tensor::randn([4, 3, 1, 1], (Kind::Float, Device::Cpu));
        let (results, tape) = Tape::record(&[x], |leaves| {
            let named = [
                ("input".to_owned(), Value::Tensor(leaves[0].shallow_clone())),
                ("weight".to_owned(), Value::Tensor(w.shallow_clone())),
                ("padding".to_owned(), Value::Ints(vec![2, 1])),
            ];
            operator.call_recording(&operator.arrange(named.into())?)
        })
        .unwrap();
        let Value::Tensor(result) = &results[0] else { panic!("no tensor") };
        assert_eq!(result.size(), [2, 4, 9, 6]);
        let gradient = tape.gradients(&[Some(&Tensor::ones_like(result))]).unwrap().remove(0).unwrap();
        let wanted = w.sum_dim_intlist([0i64].as_slice(), true, Kind::Float).expand([2, 3, 5, 4], false);
        assert!(relative_error(&gradient, &wanted) < 1e-6);
    }

    #[test]
    fn an_ordinary_convolution_is_called_unchanged() {
        let operator = Operator::find("aten::conv2d", "").unwrap();
        let named = [
            ("input".to_owned(), Value::Tensor(Tensor::zeros([1, 1, 5, 5], (Kind::Float, Device::Cpu)))),
            ("weight".to_owned(), Value::Tensor(Tensor::zeros([1, 1, 3, 3], (Kind::Float, Device::Cpu)))),
            ("padding".to_owned(), Value::Ints(vec![1])),
        ];
        let arguments = operator.arrange(named.into()).unwrap();
        assert!(with_written_padding(operator.name(), &arguments, false).unwrap().is_none());
    }
}
