//! Convolutions and pooling.

use std::rc::Rc;

use super::{Lowered, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::{Arg, Builder};
use crate::model::import::onnx::operands::Operands;
use crate::model::import::onnx::value::{Known, Number};
use crate::model::operation::Symbolic;

/// The window of a convolution or a pooling.
struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    /// Before and after each axis.
    pads: Vec<[Number; 2]>,
}

/// Largest number in an attribute of a window: what ATen is given at most.
const MAX_NUMBER: i64 = 1 << 31;

fn axes_of(builder: &Builder, x: &Known) -> Result<usize, ModelError> {
    let axes = x.rank().saturating_sub(2);
    if (1..=3).contains(&axes) {
        Ok(axes)
    } else {
        Err(builder.refused(format!("a window over a tensor of {} axes: 3 to 5 are read", x.rank())))
    }
}

fn list(builder: &Builder, operands: &mut Operands, name: &str, length: usize) -> Result<Vec<i64>, ModelError> {
    let list = operands.ints(name).filter(|list| !list.is_empty()).unwrap_or_else(|| vec![1; length]);
    if list.len() == length && list.iter().all(|number| (1..=MAX_NUMBER).contains(number)) {
        return Ok(list);
    }
    Err(builder.refused(format!("{name} = {list:?} for {length} axes")))
}

impl Window {
    fn read(
        builder: &mut Builder,
        operands: &mut Operands,
        x: &Rc<Known>,
        kernel: Vec<i64>,
    ) -> Result<Self, ModelError> {
        let axes = axes_of(builder, x)?;
        if kernel.len() != axes || kernel.iter().any(|&size| size < 1) {
            return Err(builder.refused(format!("a kernel of {kernel:?} for {axes} axes")));
        }
        let strides = list(builder, operands, "strides", axes)?;
        let dilations = list(builder, operands, "dilations", axes)?;
        let given = operands.ints("pads").filter(|pads| !pads.is_empty()).unwrap_or_else(|| vec![0; 2 * axes]);
        let auto = operands.text("auto_pad", "NOTSET");
        let pads = match auto.as_str() {
            "NOTSET" | "" if given.len() == 2 * axes => {
                (0..axes).map(|axis| [Number::int(given[axis]), Number::int(given[axis + axes])]).collect()
            }
            "VALID" => vec![[Number::int(0), Number::int(0)]; axes],
            "SAME_UPPER" | "SAME_LOWER" => {
                let mut pads = Vec::new();
                for axis in 0..axes {
                    let covered = (kernel[axis] - 1).saturating_mul(dilations[axis]).saturating_add(1);
                    let [less, more] = same(builder, x, axis + 2, covered, strides[axis])?;
                    pads.push(if auto == "SAME_UPPER" { [less, more] } else { [more, less] });
                }
                pads
            }
            _ => return Err(builder.refused(format!("auto_pad = {auto:?} with pads = {given:?}"))),
        };
        Ok(Window { kernel, strides, dilations, pads })
    }

    /// The padding, if it is fixed, the same on both sides, and at most `most` on each axis.
    fn symmetric(&self, most: impl Fn(usize) -> i64) -> Option<Vec<i64>> {
        let mut all = Vec::new();
        for (axis, [before, after]) in self.pads.iter().enumerate() {
            let (before, after) = (before.fixed_int()?, after.fixed_int()?);
            if before != after || before < 0 || before > most(axis) {
                return None;
            }
            all.push(before);
        }
        Some(all)
    }

    /// The tensor with the padding around it.
    fn padded(&self, builder: &mut Builder, x: &Rc<Known>, value: f64) -> Result<Rc<Known>, ModelError> {
        // ATen starts with the last axis.
        let pads: Vec<Number> = self.pads.iter().rev().flatten().cloned().collect();
        if pads.iter().all(|pad| pad.fixed_int() == Some(0)) {
            return Ok(Rc::clone(x));
        }
        builder.call("constant_pad_nd", vec![x.into(), pads.into(), value.into()])
    }
}

/// The smaller and the larger part of the padding with which `ceil(size / stride)` windows fit.
fn same(
    builder: &mut Builder,
    x: &Rc<Known>,
    axis: usize,
    covered: i64,
    stride: i64,
) -> Result<[Number; 2], ModelError> {
    let total = if stride == 1 {
        Number::int(covered - 1)
    } else {
        let size = builder.size(x, axis)?;
        let windows = builder.compute(Symbolic::Add, &[size.clone(), Number::int(stride - 1)])?;
        let windows = builder.compute(Symbolic::FloorDiv, &[windows, Number::int(stride)])?;
        let last = builder.compute(Symbolic::Sub, &[windows, Number::int(1)])?;
        let start = builder.compute(Symbolic::Mul, &[last, Number::int(stride)])?;
        let end = builder.compute(Symbolic::Add, &[start, Number::int(covered)])?;
        let total = builder.compute(Symbolic::Sub, &[end, size])?;
        builder.compute(Symbolic::Max, &[total, Number::int(0)])?
    };
    let less = builder.compute(Symbolic::FloorDiv, &[total.clone(), Number::int(2)])?;
    let more = builder.compute(Symbolic::Sub, &[total, less.clone()])?;
    Ok([less, more])
}

pub fn conv(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let weight = operands.tensor(builder, 1)?;
    let bias = operands.optional(builder, 2)?;
    let groups = operands.int("group", 1);
    let kernel: Vec<i64> = weight.size().into_iter().skip(2).collect();
    if let Some(named) = operands.ints("kernel_shape")
        && named != kernel
    {
        return Err(builder.refused(format!("kernel_shape = {named:?}, and the weight has {kernel:?}")));
    }
    let window = Window::read(builder, operands, &x, kernel)?;
    let (x, padding) = match window.symmetric(|_| i64::MAX) {
        Some(padding) => (x, padding),
        None => (window.padded(builder, &x, 0.0)?, vec![0; window.kernel.len()]),
    };
    let name = ["conv1d", "conv2d", "conv3d"][window.kernel.len() - 1];
    one(builder.call(
        name,
        vec![
            (&x).into(),
            (&weight).into(),
            bias.as_ref().into(),
            window.strides.into(),
            padding.into(),
            window.dilations.into(),
            groups.into(),
        ],
    )?)
}

pub fn conv_transpose(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let weight = operands.tensor(builder, 1)?;
    let bias = operands.optional(builder, 2)?;
    let groups = operands.int("group", 1);
    let axes = axes_of(builder, &x)?;
    operands.ignore(&["kernel_shape"]);
    let kernel: Vec<i64> = weight.size().into_iter().skip(2).collect();
    if kernel.len() != axes {
        return Err(builder.refused(format!("a kernel of {kernel:?} for {axes} axes")));
    }
    let strides = list(builder, operands, "strides", axes)?;
    let dilations = list(builder, operands, "dilations", axes)?;
    let extra = operands.ints("output_padding").filter(|list| list.len() == axes).unwrap_or_else(|| vec![0; axes]);
    let wanted = operands.ints("output_shape");
    let auto = operands.text("auto_pad", "NOTSET");
    let given = operands.ints("pads").filter(|pads| pads.len() == 2 * axes).unwrap_or_else(|| vec![0; 2 * axes]);
    let all = given.iter().chain(&extra).chain(wanted.iter().flatten());
    if all.copied().any(|number| !(-MAX_NUMBER..=MAX_NUMBER).contains(&number)) {
        return Err(builder.refused(format!("pads, output_padding or output_shape beyond {MAX_NUMBER}")));
    }
    let mut pads: Vec<[i64; 2]> = (0..axes).map(|axis| [given[axis], given[axis + axes]]).collect();
    let is_same = auto == "SAME_UPPER" || auto == "SAME_LOWER";
    if wanted.is_some() || is_same {
        for axis in 0..axes {
            let Some(size) = x.fixed_size(axis + 2) else {
                return Err(builder.refused("its padding depends on the size of the picture"));
            };
            let target = match &wanted {
                Some(wanted) => {
                    wanted.get((wanted.len() + axis).saturating_sub(axes)).copied().unwrap_or(size * strides[axis])
                }
                None => size * strides[axis],
            };
            let full = strides[axis] * (size - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1;
            let total = full - target;
            let (less, more) = (total.div_euclid(2), total - total.div_euclid(2));
            pads[axis] = if auto == "SAME_UPPER" { [less, more] } else { [more, less] };
        }
    } else if !matches!(auto.as_str(), "NOTSET" | "VALID") {
        return Err(builder.refused(format!("auto_pad = {auto:?}")));
    }
    let name = ["conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"][axes - 1];
    let run = |builder: &mut Builder, padding: Vec<i64>, extra: Vec<i64>| {
        builder.call(
            name,
            vec![
                (&x).into(),
                (&weight).into(),
                bias.as_ref().into(),
                strides.clone().into(),
                padding.into(),
                extra.into(),
                groups.into(),
                dilations.clone().into(),
            ],
        )
    };
    let is_symmetric = pads.iter().all(|[before, after]| before == after && *before >= 0)
        && (0..axes).all(|axis| extra[axis] < strides[axis].max(dilations[axis]));
    if is_symmetric {
        return one(run(builder, pads.iter().map(|[before, _]| *before).collect(), extra)?);
    }
    // The whole result, of which the padding is cut off; what is added beyond it is the bias alone.
    let whole = run(builder, vec![0; axes], vec![0; axes])?;
    let mut cut = Vec::new();
    for axis in (0..axes).rev() {
        cut.extend([-pads[axis][0], extra[axis] - pads[axis][1]]);
    }
    if bias.is_some() && (0..axes).any(|axis| extra[axis] > pads[axis][1]) {
        return Err(builder.refused("output_padding beyond the padding, with a bias"));
    }
    one(builder.call("constant_pad_nd", vec![(&whole).into(), cut.into(), 0.0.into()])?)
}

pub fn max_pool(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    if operands.outputs.get(1) == Some(&true) {
        return Err(builder.refused("its indices are used, which have no gradient"));
    }
    operands.ignore(&["storage_order"]);
    let x = operands.tensor(builder, 0)?;
    let kernel = operands.ints("kernel_shape").unwrap_or_default();
    let rounds_up = operands.flag("ceil_mode", false);
    let window = Window::read(builder, operands, &x, kernel)?;
    // ATen pads by half a kernel at most.
    let (x, padding) = match window.symmetric(|axis| window.kernel[axis] / 2) {
        Some(padding) => (x, padding),
        None => (window.padded(builder, &x, f64::NEG_INFINITY)?, vec![0; window.kernel.len()]),
    };
    let name = ["max_pool1d", "max_pool2d", "max_pool3d"][window.kernel.len() - 1];
    one(builder.call(
        name,
        vec![
            (&x).into(),
            window.kernel.into(),
            window.strides.into(),
            padding.into(),
            window.dilations.into(),
            rounds_up.into(),
        ],
    )?)
}

pub fn average_pool(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let kernel = operands.ints("kernel_shape").unwrap_or_default();
    let rounds_up = operands.flag("ceil_mode", false);
    let counts_padding = operands.flag("count_include_pad", false);
    let window = Window::read(builder, operands, &x, kernel)?;
    if window.dilations.iter().any(|&dilation| dilation != 1) {
        return Err(builder.refused(format!("an average with dilations = {:?}", window.dilations)));
    }
    let name = ["avg_pool1d", "avg_pool2d", "avg_pool3d"][window.kernel.len() - 1];
    let pool = |builder: &mut Builder, x: &Rc<Known>, padding: Vec<i64>, counts: bool| {
        let kernel = window.kernel.clone();
        let (strides, rounds_up, counts) = (window.strides.clone().into(), rounds_up.into(), counts.into());
        builder.call(name, vec![x.into(), kernel.into(), strides, padding.into(), rounds_up, counts])
    };
    if let Some(padding) = window.symmetric(|axis| window.kernel[axis] / 2) {
        return one(pool(builder, &x, padding, counts_padding)?);
    }
    if rounds_up {
        return Err(builder.refused("ceil_mode with a padding that differs between the sides"));
    }
    let none = vec![0; window.kernel.len()];
    let padded = window.padded(builder, &x, 0.0)?;
    let sums = pool(builder, &padded, none.clone(), true)?;
    if counts_padding {
        return one(sums);
    }
    // How much of each window is picture.
    let mut sizes = builder.sizes(&x)?;
    sizes.splice(0..2, [Number::int(1), Number::int(1)]);
    let ones = builder.call("ones", vec![sizes.into(), x.kind().into()])?;
    let ones = window.padded(builder, &ones, 0.0)?;
    let share = pool(builder, &ones, none, true)?;
    one(builder.call("div.Tensor", vec![(&sums).into(), (&share).into()])?)
}

/// GlobalAveragePool, GlobalMaxPool and GlobalLpPool.
pub fn global_pool(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    axes_of(builder, &x)?;
    let axes: Vec<i64> = (2..x.rank() as i64).collect();
    match operands.operator.as_str() {
        "GlobalAveragePool" if axes.len() == 2 => {
            one(builder.call("adaptive_avg_pool2d", vec![(&x).into(), vec![1i64, 1].into()])?)
        }
        "GlobalAveragePool" => one(builder.call("mean.dim", vec![(&x).into(), axes.into(), true.into()])?),
        "GlobalMaxPool" => one(builder.call("amax", vec![(&x).into(), axes.into(), true.into()])?),
        _ => {
            let p = operands.int("p", 2) as f64;
            one(builder.call("linalg_vector_norm", vec![(&x).into(), p.into(), axes.into(), true.into()])?)
        }
    }
}

pub fn lrn(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let size = operands.int("size", 0);
    let (alpha, beta) = (operands.float("alpha", 1e-4), operands.float("beta", 0.75));
    let bias = operands.float("bias", 1.0);
    if x.rank() != 4 || size < 1 {
        return Err(builder.refused(format!("size = {size} over a tensor of {} axes", x.rank())));
    }
    let squares = builder.call("mul.Tensor", vec![(&x).into(), (&x).into()])?;
    let (before, after) = ((size - 1) / 2, size / 2);
    let pads: Vec<i64> = vec![0, 0, 0, 0, before, after];
    let padded = builder.call("constant_pad_nd", vec![(&squares).into(), pads.into(), 0.0.into()])?;
    let stacked = builder.call("unsqueeze", vec![(&padded).into(), 1.into()])?;
    let ones: Arg = vec![1i64, 1, 1].into();
    let means = builder.call("avg_pool3d", vec![(&stacked).into(), vec![size, 1, 1].into(), ones])?;
    let means = builder.call("squeeze.dim", vec![(&means).into(), 1.into()])?;
    let scaled = builder.call("mul.Scalar", vec![(&means).into(), alpha.into()])?;
    let base = builder.call("add.Scalar", vec![(&scaled).into(), bias.into()])?;
    let below = builder.call("pow.Tensor_Scalar", vec![(&base).into(), beta.into()])?;
    one(builder.call("div.Tensor", vec![(&x).into(), (&below).into()])?)
}
