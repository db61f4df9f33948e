//! What moves elements, or chooses some of them.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::{Lowered, one};
use crate::model::ModelError;
use crate::model::import::onnx::builder::{Arg, Builder};
use crate::model::import::onnx::numbers;
use crate::model::import::onnx::operands::{Operands, axis, ints, only};
use crate::model::import::onnx::value::{Known, Number, Scalar, Val};
use crate::model::operation::Symbolic;

pub fn shape(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    if let Val::Numbers(numbers) = operands.value(0) {
        let size = if numbers.is_list { vec![Number::int(numbers.items.len() as i64)] } else { Vec::new() };
        return Ok(vec![numbers::value(builder, size, true, Kind::Int64)?]);
    }
    let x = operands.tensor(builder, 0)?;
    let start = operands.int("start", 0);
    let end = operands.take("end").map(|attribute| attribute.i());
    Ok(vec![numbers::shape(builder, &x, start, end)?])
}

pub fn size(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let mut count = Number::int(1);
    for size in builder.sizes(&x)? {
        count = builder.compute(Symbolic::Mul, &[size, count])?;
    }
    Ok(vec![numbers::value(builder, vec![count], false, Kind::Int64)?])
}

pub fn reshape(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let keeps_zero = operands.flag("allowzero", false);
    let target = match operands.ints("shape") {
        Some(ints) => ints.into_iter().map(Number::int).collect(),
        None => operands.numbers(builder, 1)?.ok_or_else(|| builder.refused("it has no shape"))?,
    };
    let mut sizes = Vec::new();
    for (at, size) in target.into_iter().enumerate() {
        let copies = !keeps_zero && size.fixed_int() == Some(0) && at < x.rank();
        sizes.push(if copies { builder.size(&x, at)? } else { size });
    }
    one(reshaped(builder, &x, sizes)?)
}

/// `x` with other sizes: its rows as they are, where that is what they say.
fn reshaped(builder: &mut Builder, x: &Rc<Known>, sizes: Vec<Number>) -> Result<Rc<Known>, ModelError> {
    let is = |wanted: fn(&[i64], usize) -> i64| {
        (0..x.runs.len()).all(|run| {
            let own = x.runs[run].size();
            let count: i64 = own.iter().product();
            let known = sizes.iter().map(|size| int(size, run)).filter(|&size| size != -1);
            let known = known.fold(1, i64::saturating_mul);
            sizes.iter().enumerate().all(|(at, size)| {
                let size = match int(size, run) {
                    -1 if known != 0 => count / known,
                    size => size,
                };
                size == wanted(&own, at)
            })
        })
    };
    if sizes.len() == x.rank() && is(|own, at| own[at]) {
        return Ok(Rc::clone(x));
    }
    let is_rows = |own: &[i64], at: usize| if at == 0 { own[0] } else { own[1..].iter().product() };
    if sizes.len() == 2 && x.rank() > 2 && !x.is_constant && is(is_rows) {
        return builder.call("flatten.using_ints", vec![x.into(), 1.into(), (-1).into()]);
    }
    builder.call("reshape", vec![x.into(), sizes.into()])
}

fn int(number: &Number, run: usize) -> i64 {
    match number.run(run) {
        Scalar::Int(number) => number,
        Scalar::Float(number) => number as i64,
    }
}

pub fn flatten(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let given = operands.int("axis", 1);
    let at = if given == x.rank() as i64 { x.rank() } else { axis(builder, given, x.rank().max(1))? };
    match (at, x.rank()) {
        (1, 2) => one(x),
        (1, 3..) => one(builder.call("flatten.using_ints", vec![(&x).into(), 1.into(), (-1).into()])?),
        _ => {
            let mut rows = Number::int(1);
            for axis in 0..at {
                let size = builder.size(&x, axis)?;
                rows = builder.compute(Symbolic::Mul, &[size, rows])?;
            }
            // Not -1 for what is behind: with no rows it could be anything.
            let mut columns = Number::int(1);
            for axis in at..x.rank() {
                let size = builder.size(&x, axis)?;
                columns = builder.compute(Symbolic::Mul, &[size, columns])?;
            }
            one(builder.call("reshape", vec![(&x).into(), vec![rows, columns].into()])?)
        }
    }
}

pub fn squeeze(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let Some(axes) = operands.ints_by(builder, "axes", 1)? else {
        let axes: Vec<i64> = (0..x.rank()).filter(|&axis| x.fixed_size(axis) == Some(1)).map(|a| a as i64).collect();
        return one(builder.call("squeeze.dims", vec![(&x).into(), axes.into()])?);
    };
    let name = if axes.len() == 1 { "squeeze.dim" } else { "squeeze.dims" };
    for &given in &axes {
        let at = axis(builder, given, x.rank())?;
        if x.runs.iter().any(|run| run.size()[at] != 1) {
            return Err(builder.refused(format!("axis {at} of {:?} is not of size 1", x.size())));
        }
    }
    let axes: Arg = if axes.len() == 1 { axes[0].into() } else { axes.into() };
    one(builder.call(name, vec![(&x).into(), axes])?)
}

pub fn unsqueeze(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let mut x = operands.tensor(builder, 0)?;
    let given = operands.ints_by(builder, "axes", 1)?.unwrap_or_default();
    let rank = x.rank() + given.len();
    let mut axes = Vec::new();
    for given in given {
        axes.push(axis(builder, given, rank)? as i64);
    }
    axes.sort_unstable();
    for axis in axes {
        x = builder.call("unsqueeze", vec![(&x).into(), axis.into()])?;
    }
    one(x)
}

pub fn transpose(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let order = operands.ints("perm").unwrap_or_else(|| (0..x.rank() as i64).rev().collect());
    if order.iter().copied().eq(0..x.rank() as i64) {
        return one(x);
    }
    one(builder.call("permute", vec![(&x).into(), order.into()])?)
}

pub fn expand(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let target = operands.numbers(builder, 1)?.unwrap_or_default();
    let rank = target.len().max(x.rank());
    let mut sizes = Vec::new();
    for at in 0..rank {
        let wanted = (at + target.len()).checked_sub(rank).map(|at| target[at].clone());
        let own = (at + x.rank()).checked_sub(rank);
        // A size of 1 leaves an axis as it is.
        let stays = own.is_some_and(|own| {
            wanted.as_ref().is_none_or(|wanted| {
                (0..builder.runs()).all(|run| {
                    let wanted = int(wanted, run);
                    wanted == 1 || wanted == x.run(run).size()[own]
                })
            })
        });
        sizes.push(if stays { Number::int(-1) } else { wanted.unwrap_or_else(|| Number::int(-1)) });
    }
    if rank == x.rank() && sizes.iter().all(|size| size.fixed_int() == Some(-1)) {
        return one(x);
    }
    one(builder.call("expand", vec![(&x).into(), sizes.into()])?)
}

pub fn tile(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let repeats = operands.numbers(builder, 1)?.unwrap_or_default();
    one(builder.call("repeat", vec![(&x).into(), repeats.into()])?)
}

pub fn concat(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let mut all = Vec::new();
    for index in 0..operands.inputs.len() {
        all.push(operands.tensor(builder, index)?);
    }
    let rank = all.first().map_or(0, |first| first.rank());
    let axis = axis(builder, operands.int("axis", 1), rank)? as i64;
    if all.len() == 1 {
        return one(all.swap_remove(0));
    }
    one(builder.call("cat", vec![Arg::Tensors(all), axis.into()])?)
}

pub fn split(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let at = axis(builder, operands.int("axis", 0), x.rank())?;
    let count = operands.int("num_outputs", operands.outputs.len() as i64);
    let sizes = match operands.ints("split") {
        Some(ints) => Some(ints.into_iter().map(Number::int).collect()),
        None => operands.numbers(builder, 1)?,
    };
    let results = match sizes {
        Some(sizes) => builder.call_many("split_with_sizes", vec![(&x).into(), sizes.into(), (at as i64).into()])?,
        None => builder.call_many("chunk", vec![(&x).into(), count.into(), (at as i64).into()])?,
    };
    if results.len() < operands.outputs.len() {
        return Err(builder.refused(format!("{} parts of {:?} for {} outputs", results.len(), x.size(), count)));
    }
    Ok(results.into_iter().map(Val::Tensor).collect())
}

/// An end of a slice, within what ATen takes.
fn bound(number: Number) -> Number {
    match number.fixed_int() {
        Some(at) if at > 1 << 31 => Number::int(i64::MAX),
        Some(at) if at < -(1 << 31) => Number::int(-(1 << 31)),
        _ => number,
    }
}

pub fn slice(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let mut x = operands.tensor(builder, 0)?;
    let mut list = |builder: &Builder, name: &str, index: usize| -> Result<Option<Vec<Number>>, ModelError> {
        match operands.ints(name) {
            Some(ints) => Ok(Some(ints.into_iter().map(Number::int).collect())),
            None => operands.numbers(builder, index),
        }
    };
    let starts = list(builder, "starts", 1)?.unwrap_or_default();
    let ends = list(builder, "ends", 2)?.unwrap_or_default();
    let axes = list(builder, "axes", 3)?;
    let steps = list(builder, "", 4)?;
    let axes: Option<Vec<i64>> = match axes {
        Some(axes) => axes.iter().map(Number::fixed_int).collect(),
        None => Some((0..starts.len() as i64).collect()),
    };
    let steps: Option<Vec<i64>> = match steps {
        Some(steps) => steps.iter().map(Number::fixed_int).collect(),
        None => Some(vec![1; starts.len()]),
    };
    let (Some(axes), Some(steps)) = (axes, steps) else {
        return Err(builder.refused("its axes or steps depend on the size of the picture"));
    };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(builder.refused("starts, ends, axes and steps differ in number"));
    }
    for (index, (start, end)) in starts.into_iter().zip(ends).enumerate() {
        let at = axis(builder, axes[index], x.rank())?;
        x = match steps[index] {
            1.. => sliced(builder, &x, at, bound(start), bound(end), steps[index])?,
            _ => backwards(builder, &x, at, [start, end], steps[index])?,
        };
    }
    one(x)
}

fn sliced(
    builder: &mut Builder,
    x: &Rc<Known>,
    at: usize,
    start: Number,
    end: Number,
    step: i64,
) -> Result<Rc<Known>, ModelError> {
    let is_whole = step == 1
        && start.fixed_int() == Some(0)
        && (0..x.runs.len()).all(|run| int(&end, run) >= x.run(run).size()[at])
        && end.name.is_none();
    if is_whole {
        return Ok(Rc::clone(x));
    }
    builder.call("slice.Tensor", vec![x.into(), (at as i64).into(), start.into(), end.into(), step.into()])
}

/// A slice whose step is negative: of the axis in reverse.
fn backwards(
    builder: &mut Builder,
    x: &Rc<Known>,
    at: usize,
    [start, end]: [Number; 2],
    step: i64,
) -> Result<Rc<Known>, ModelError> {
    let (Some(start), Some(end), true) = (start.fixed_int(), end.fixed_int(), step > -(1 << 31) && step < 0) else {
        return Err(builder.refused("a slice backwards that depends on the size of the picture"));
    };
    let flipped = builder.call("flip", vec![x.into(), vec![at as i64].into()])?;
    let [start, end] = match x.fixed_size(at) {
        Some(size) => {
            let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
            [size - 1 - from_end(start).clamp(-1, size - 1), size - 1 - from_end(end).clamp(-1, size - 1)]
        }
        // From the last element to the first.
        None if (start == -1 || start >= 1 << 30) && end <= -(1 << 30) => [0, i64::MAX],
        None => return Err(builder.refused("a slice backwards that depends on the size of the picture")),
    };
    sliced(builder, &flipped, at, Number::int(start), Number::int(end), -step)
}

pub fn gather(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let indices = operands.tensor(builder, 1)?;
    let at = axis(builder, operands.int("axis", 0), x.rank())?;
    if indices.rank() == 0
        && !x.is_constant
        && let Some(Scalar::Int(index)) = only(&indices)
    {
        return one(builder.call("select.int", vec![(&x).into(), (at as i64).into(), index.into()])?);
    }
    let indices = counted_from_start(builder, &x, at, &indices)?;
    if indices.rank() == 1 {
        return one(builder.call("index_select", vec![(&x).into(), (at as i64).into(), (&indices).into()])?);
    }
    let mut sizes = builder.sizes(&x)?;
    let own = builder.sizes(&indices)?;
    sizes.splice(at..=at, own);
    let flat = builder.call("reshape", vec![(&indices).into(), vec![-1i64].into()])?;
    let chosen = builder.call("index_select", vec![(&x).into(), (at as i64).into(), (&flat).into()])?;
    one(builder.call("reshape", vec![(&chosen).into(), sizes.into()])?)
}

/// Indices that may count from the end, as ones that count from the start.
fn counted_from_start(
    builder: &mut Builder,
    x: &Rc<Known>,
    at: usize,
    indices: &Rc<Known>,
) -> Result<Rc<Known>, ModelError> {
    let whole = super::elementwise::cast_to(builder, indices, Kind::Int64)?;
    let is_positive = whole.is_constant && ints(&whole.runs[0]).is_some_and(|all| all.iter().all(|&index| index >= 0));
    if is_positive {
        return Ok(whole);
    }
    let size = builder.size(x, at)?;
    builder.call("remainder.Scalar", vec![(&whole).into(), size.into()])
}

pub fn gather_elements(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let indices = operands.tensor(builder, 1)?;
    let at = axis(builder, operands.int("axis", 0), x.rank())?;
    let indices = counted_from_start(builder, &x, at, &indices)?;
    one(builder.call("gather", vec![(&x).into(), (at as i64).into(), (&indices).into()])?)
}

/// The parts of indices whose last axis counts axes.
fn per_axis(builder: &mut Builder, indices: &Rc<Known>) -> Result<Vec<Rc<Known>>, ModelError> {
    let last = indices.rank().checked_sub(1).ok_or_else(|| builder.refused("indices of no axis"))?;
    let indices = super::elementwise::cast_to(builder, indices, Kind::Int64)?;
    builder.call_many("unbind.int", vec![(&indices).into(), (last as i64).into()])
}

pub fn gather_nd(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    if operands.int("batch_dims", 0) != 0 {
        return Err(builder.refused("batch_dims other than 0"));
    }
    let x = operands.tensor(builder, 0)?;
    let indices = operands.tensor(builder, 1)?;
    let indices = per_axis(builder, &indices)?;
    one(builder.call("index.Tensor", vec![(&x).into(), Arg::Tensors(indices)])?)
}

pub fn scatter_nd(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let indices = operands.tensor(builder, 1)?;
    let updates = operands.tensor(builder, 2)?;
    let reduction = operands.text("reduction", "none");
    let accumulates = match reduction.as_str() {
        "none" => false,
        "add" => true,
        other => return Err(builder.refused(format!("reduction = {other:?}"))),
    };
    let indices = per_axis(builder, &indices)?;
    let arguments = vec![(&x).into(), Arg::Tensors(indices), (&updates).into(), accumulates.into()];
    one(builder.call("index_put", arguments)?)
}

pub fn scatter_elements(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let indices = operands.tensor(builder, 1)?;
    let updates = operands.tensor(builder, 2)?;
    let at = axis(builder, operands.int("axis", 0), x.rank())?;
    let name = match operands.text("reduction", "none").as_str() {
        "none" => "scatter.src",
        "add" => "scatter_add",
        other => return Err(builder.refused(format!("reduction = {other:?}"))),
    };
    let indices = counted_from_start(builder, &x, at, &indices)?;
    one(builder.call(name, vec![(&x).into(), (at as i64).into(), (&indices).into(), (&updates).into()])?)
}

pub fn pad(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let mode = operands.text("mode", "constant");
    let pads = match operands.ints("pads") {
        Some(ints) => ints.into_iter().map(Number::int).collect(),
        None => operands.numbers(builder, 1)?.unwrap_or_default(),
    };
    let mut value = operands.float("value", 0.0);
    if operands.is_given(2) {
        let given = operands.tensor(builder, 2)?;
        value = only(&given).ok_or_else(|| builder.refused("its value depends on the picture"))?.float();
    }
    let axes = operands.fixed_ints(builder, 3)?.unwrap_or_else(|| (0..x.rank() as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(builder.refused(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let mut sides: Vec<[Number; 2]> = vec![[Number::int(0), Number::int(0)]; x.rank()];
    for (index, &given) in axes.iter().enumerate() {
        sides[axis(builder, given, x.rank())?] = [pads[index].clone(), pads[index + axes.len()].clone()];
    }
    let is_zero = |pair: &[Number; 2]| pair.iter().all(|pad| pad.fixed_int() == Some(0));
    if sides.iter().all(is_zero) {
        return one(x);
    }
    if mode == "constant" {
        // ATen starts with the last axis, and needs none before the first that is padded.
        let first = sides.iter().position(|pair| !is_zero(pair)).unwrap_or(0);
        let pads: Vec<Number> = sides[first..].iter().rev().flatten().cloned().collect();
        let value: Arg = if x.is_floating() { value.into() } else { (value as i64).into() };
        return one(builder.call("constant_pad_nd", vec![(&x).into(), pads.into(), value])?);
    }
    let name = match mode.as_str() {
        "reflect" => "reflect",
        "edge" => "replicate",
        "wrap" => "circular",
        other => return Err(builder.refused(format!("mode = {other:?}"))),
    };
    let fixed: Option<Vec<[i64; 2]>> =
        sides.iter().map(|[before, after]| Some([before.fixed_int()?, after.fixed_int()?])).collect();
    let Some(fixed) = fixed else { return Err(builder.refused("pads that depend on the size of the picture")) };
    let is_picture = x.rank() == 4 && fixed[..2] == [[0, 0]; 2] && fixed.iter().flatten().all(|&pad| pad >= 0);
    if is_picture && name != "circular" {
        let pads: Vec<i64> = fixed[2..].iter().rev().flatten().copied().collect();
        return one(builder.call("pad", vec![(&x).into(), pads.into(), name.into()])?);
    }
    one(padded_by_index(builder, x, &fixed, name)?)
}

/// Pads each axis by choosing its elements again.
fn padded_by_index(
    builder: &mut Builder,
    mut x: Rc<Known>,
    sides: &[[i64; 2]],
    mode: &str,
) -> Result<Rc<Known>, ModelError> {
    for (at, &[before, after]) in sides.iter().enumerate() {
        if before == 0 && after == 0 {
            continue;
        }
        let Some(size) = x.fixed_size(at).filter(|&size| size > 0) else {
            return Err(builder.refused(format!("mode {mode} on an axis whose size depends on the picture's")));
        };
        if before.checked_abs().is_none_or(|pad| pad > 1 << 24) || after.checked_abs().is_none_or(|pad| pad > 1 << 24) {
            return Err(builder.refused(format!("pads of {before} and {after}")));
        }
        let index = |position: i64| match mode {
            "replicate" => position.clamp(0, size - 1),
            "circular" => position.rem_euclid(size),
            _ if size == 1 => 0,
            _ => {
                let folded = position.rem_euclid(2 * (size - 1));
                folded.min(2 * (size - 1) - folded)
            }
        };
        let indices: Vec<i64> = (-before..size + after).map(index).collect();
        let indices = builder.constant(Tensor::f_from_slice(&indices)?, None);
        x = builder.call("index_select", vec![(&x).into(), (at as i64).into(), (&indices).into()])?;
    }
    Ok(x)
}

pub fn depth_to_space(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let block = operands.int("blocksize", 0);
    let mode = operands.text("mode", "DCR");
    let sizes = picture(builder, &x, block)?;
    if mode == "CRD" {
        return one(builder.call("pixel_shuffle", vec![(&x).into(), block.into()])?);
    }
    let [batch, channels, height, width] = sizes;
    let part = builder.compute(Symbolic::FloorDiv, &[channels, Number::int(block * block)])?;
    let blocks = [Number::int(block), Number::int(block)];
    let apart = [&[batch.clone()][..], &blocks, &[part.clone(), height.clone(), width.clone()]].concat();
    let apart = builder.call("reshape", vec![(&x).into(), apart.into()])?;
    let turned = builder.call("permute", vec![(&apart).into(), vec![0i64, 3, 4, 1, 5, 2].into()])?;
    let height = builder.compute(Symbolic::Mul, &[height, Number::int(block)])?;
    let width = builder.compute(Symbolic::Mul, &[width, Number::int(block)])?;
    one(builder.call("reshape", vec![(&turned).into(), vec![batch, part, height, width].into()])?)
}

pub fn space_to_depth(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let block = operands.int("blocksize", 0);
    let [batch, channels, height, width] = picture(builder, &x, block)?;
    let height = builder.compute(Symbolic::FloorDiv, &[height, Number::int(block)])?;
    let width = builder.compute(Symbolic::FloorDiv, &[width, Number::int(block)])?;
    let side = Number::int(block);
    let apart = vec![batch.clone(), channels.clone(), height.clone(), side.clone(), width.clone(), side];
    let apart = builder.call("reshape", vec![(&x).into(), apart.into()])?;
    let turned = builder.call("permute", vec![(&apart).into(), vec![0i64, 3, 5, 1, 2, 4].into()])?;
    let channels = builder.compute(Symbolic::Mul, &[channels, Number::int(block * block)])?;
    one(builder.call("reshape", vec![(&turned).into(), vec![batch, channels, height, width].into()])?)
}

/// The sizes of a tensor of four axes, that is taken apart into blocks.
fn picture(builder: &mut Builder, x: &Rc<Known>, block: i64) -> Result<[Number; 4], ModelError> {
    let sizes = builder.sizes(x)?;
    match <[Number; 4]>::try_from(sizes) {
        Ok(sizes) if (1..=1 << 12).contains(&block) => Ok(sizes),
        _ => Err(builder.refused(format!("blocks of {block} in a tensor of {} axes", x.rank()))),
    }
}

pub fn range(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let start = operands.tensor(builder, 0)?;
    let mut bounds = Vec::new();
    for index in 0..3 {
        let given = operands.tensor(builder, index)?;
        bounds.push(only(&given).ok_or_else(|| builder.refused("its bounds depend on the picture"))?);
    }
    let count = ((bounds[1].float() - bounds[0].float()) / bounds[2].float()).ceil();
    if !count.is_finite() || count > f64::from(1 << 26) {
        return Err(builder.refused(format!("a range of {count} numbers")));
    }
    let arguments = bounds.into_iter().map(|bound| Arg::Literal(bound.value()));
    one(builder.call("arange.start_step", arguments.chain([start.kind().into()]).collect())?)
}

pub fn constant_of_shape(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let sizes = operands.numbers(builder, 0)?.unwrap_or_default();
    let (fill, kind) = super::fill_of(operands)?;
    one(builder.call("full", vec![sizes.into(), Arg::Literal(fill.value()), kind.into()])?)
}

pub fn eye_like(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let kind = match operands.take("dtype") {
        Some(attribute) => crate::model::import::onnx::tensors::dtype(i32::try_from(attribute.i()).unwrap_or(-1))?.kind,
        None => x.kind(),
    };
    if operands.int("k", 0) != 0 || x.rank() != 2 {
        return Err(builder.refused("a diagonal other than the main one"));
    }
    let sizes = builder.sizes(&x)?;
    let [rows, columns] = [sizes[0].clone(), sizes[1].clone()];
    one(builder.call("eye.m", vec![rows.into(), columns.into(), kind.into()])?)
}

pub fn trilu(builder: &mut Builder, operands: &mut Operands) -> Lowered {
    let x = operands.tensor(builder, 0)?;
    let name = if operands.flag("upper", true) { "triu" } else { "tril" };
    let diagonal = match operands.optional(builder, 1)? {
        Some(given) => only(&given).ok_or_else(|| builder.refused("its diagonal depends on the picture"))?,
        None => Scalar::Int(0),
    };
    one(builder.call(name, vec![(&x).into(), Arg::Literal(diagonal.value())])?)
}
