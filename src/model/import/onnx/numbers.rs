//! Operators on numbers that are computed from sizes: what exporters write between a Shape and a Reshape.

use std::rc::Rc;

use tch::Kind;

use super::builder::{Arg, Builder};
use super::operands::{Operands, ints, numbers_of};
use super::tensors;
use super::value::{Known, Number, Scalar, Val};
use crate::model::ModelError;
use crate::model::operation::Symbolic;

/// A list of numbers as a value: a constant, if it does not depend on the input.
pub fn value(builder: &mut Builder, items: Vec<Number>, is_list: bool, kind: Kind) -> Result<Val, ModelError> {
    if items.iter().any(|item| item.name.is_some()) {
        return Ok(Val::numbers(items, is_list, kind));
    }
    let floats: Vec<f64> = items.iter().map(|item| item.runs[0].float()).collect();
    let whole: Vec<i64> = items
        .iter()
        .map(|item| match item.runs[0] {
            Scalar::Int(number) => number,
            Scalar::Float(number) => number as i64,
        })
        .collect();
    let is_floating = crate::model::dtype::is_floating_point(kind);
    let flat = if is_floating { tch::Tensor::f_from_slice(&floats)? } else { tch::Tensor::f_from_slice(&whole)? };
    let tensor = if is_list { flat } else { flat.f_reshape(Vec::<i64>::new())? };
    Ok(Val::Tensor(builder.constant(tensor.f_to_kind(kind)?, None)))
}

/// Lowers an operator one of whose inputs is [`Val::Numbers`]. None when it must run on tensors.
pub fn lower(builder: &mut Builder, operands: &mut Operands) -> Result<Option<Vec<Val>>, ModelError> {
    let operator = operands.operator.clone();
    let all: Option<Vec<_>> = operands.inputs.iter().map(numbers_of).collect();
    let one = |value: Val| Ok(Some(vec![value]));
    match operator.as_str() {
        "Gather" => gather(builder, operands),
        "Slice" => slice(builder, operands),
        "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" => reshaped(builder, operands),
        "Cast" => {
            let Some((items, is_list, _)) = numbers_of(operands.value(0)) else { return Ok(None) };
            let to = operands.int("to", 0);
            operands.ignore(&["saturate", "round_mode"]);
            let kind = tensors::dtype(i32::try_from(to).unwrap_or(-1))?.kind;
            let is_floating = crate::model::dtype::is_floating_point(kind);
            let symbolic = if is_floating { Symbolic::ToFloat } else { Symbolic::ToInt };
            let mut cast = Vec::new();
            for item in items {
                let is_there = matches!(item.runs[0], Scalar::Float(_)) == is_floating;
                cast.push(if is_there { item } else { builder.compute(symbolic, &[item])? });
            }
            one(value(builder, cast, is_list, kind)?)
        }
        "Concat" => {
            let Some(all) = all else { return Ok(None) };
            operands.ignore(&["axis"]);
            let kind = all.first().map_or(Kind::Int64, |(_, _, kind)| *kind);
            let items = all.into_iter().flat_map(|(items, ..)| items).collect();
            one(value(builder, items, true, kind)?)
        }
        "Split" => split(builder, operands),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Min" | "Max" | "Pow" | "Equal" | "Less" | "LessOrEqual"
        | "Greater" | "GreaterOrEqual" => {
            let Some(all) = all else { return Ok(None) };
            if operands.flag("fmod", false) {
                return Err(builder.refused("fmod of sizes"));
            }
            one(binary(builder, &operator, all)?)
        }
        "Where" => {
            let Some(all) = all else { return Ok(None) };
            let [condition, yes, no] = all.as_slice() else { return Ok(None) };
            let length = condition.0.len().max(yes.0.len()).max(no.0.len());
            let mut items = Vec::new();
            for at in 0..length {
                let parts = [condition, yes, no].map(|(items, ..)| broadcast(items, at, length));
                let [Some(condition), Some(yes), Some(no)] = parts else { return Ok(None) };
                items.push(match condition.fixed_int() {
                    Some(0) => no,
                    Some(_) => yes,
                    None => builder.compute(Symbolic::IfElse, &[condition, yes, no])?,
                });
            }
            one(value(builder, items, condition.1 || yes.1 || no.1, yes.2)?)
        }
        "Floor" | "Ceil" | "Neg" | "Sqrt" => {
            let Some((items, is_list, kind)) = numbers_of(operands.value(0)) else { return Ok(None) };
            let mut done = Vec::new();
            for item in items {
                done.push(rounded(builder, &operator, item)?);
            }
            one(value(builder, done, is_list, kind)?)
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => {
            let Some((items, true, kind)) = numbers_of(operands.value(0)) else { return Ok(None) };
            let keeps = operands.flag("keepdims", true);
            operands.ignore(&["axes", "noop_with_empty_axes"]);
            let symbolic = match operator.as_str() {
                "ReduceProd" => Symbolic::Mul,
                "ReduceSum" => Symbolic::Add,
                "ReduceMax" => Symbolic::Max,
                _ => Symbolic::Min,
            };
            let mut items = items.into_iter();
            let Some(mut result) = items.next() else { return Ok(None) };
            for item in items {
                result = builder.compute(symbolic, &[result, item])?;
            }
            one(value(builder, vec![result], keeps, kind)?)
        }
        "ConstantOfShape" => {
            let Some((items, ..)) = numbers_of(operands.value(0)) else { return Ok(None) };
            let (fill, kind) = super::lower::fill_of(operands)?;
            let fill = match fill {
                Scalar::Int(number) => Arg::from(number),
                Scalar::Float(number) => Arg::from(number),
            };
            one(Val::Tensor(builder.call("full", vec![items.into(), fill, kind.into()])?))
        }
        "Range" => {
            let Some(all) = all else { return Ok(None) };
            let [start, limit, step] = all.as_slice() else { return Ok(None) };
            let arguments = [start, limit, step].map(|(items, ..)| items.first().cloned());
            let [Some(from), Some(to), Some(step)] = arguments else { return Ok(None) };
            let arguments = vec![from.into(), to.into(), step.into(), start.2.into()];
            one(Val::Tensor(builder.call("arange.start_step", arguments)?))
        }
        _ => Ok(None),
    }
}

fn broadcast(items: &[Number], at: usize, length: usize) -> Option<Number> {
    match items.len() {
        1 => items.first().cloned(),
        own if own == length => items.get(at).cloned(),
        _ => None,
    }
}

fn binary(builder: &mut Builder, operator: &str, all: Vec<(Vec<Number>, bool, Kind)>) -> Result<Val, ModelError> {
    let length = all.iter().map(|(items, ..)| items.len()).max().unwrap_or(0);
    let is_list = all.iter().any(|(_, is_list, _)| *is_list);
    let kind = all.first().map_or(Kind::Int64, |(_, _, kind)| *kind);
    let is_floating = crate::model::dtype::is_floating_point(kind);
    let symbolic = match operator {
        "Add" => Symbolic::Add,
        "Sub" => Symbolic::Sub,
        "Mul" => Symbolic::Mul,
        "Div" if is_floating => Symbolic::TrueDiv,
        // Sizes are not negative.
        "Div" => Symbolic::FloorDiv,
        "Mod" => Symbolic::Mod,
        "Min" => Symbolic::Min,
        "Max" => Symbolic::Max,
        "Pow" => Symbolic::Pow,
        "Equal" => Symbolic::Eq,
        "Less" => Symbolic::Lt,
        "LessOrEqual" => Symbolic::Le,
        "Greater" => Symbolic::Gt,
        _ => Symbolic::Ge,
    };
    let is_comparison = matches!(operator, "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual");
    let mut items = Vec::new();
    for at in 0..length {
        let mut result: Option<Number> = None;
        for (own, ..) in &all {
            let own = broadcast(own, at, length).ok_or_else(|| builder.refused("lists of different lengths"))?;
            // The size of an axis is never negative: `size == -1` is known.
            if operator == "Equal"
                && [result.as_ref(), Some(&own)].iter().any(|n| n.and_then(|n| n.fixed_int()) == Some(-1))
                && let Some(before) = &result
                && (before.name.is_some() || own.name.is_some())
            {
                result = Some(Number::int(0));
                continue;
            }
            result = Some(match result {
                Some(before) => builder.compute(symbolic, &[before, own])?,
                None => own,
            });
        }
        items.extend(result);
    }
    value(builder, items, is_list, if is_comparison { Kind::Bool } else { kind })
}

fn rounded(builder: &mut Builder, operator: &str, item: Number) -> Result<Number, ModelError> {
    let is_whole = matches!(item.runs[0], Scalar::Int(_));
    match operator {
        "Floor" | "Ceil" if is_whole => Ok(item),
        // Python's `//` rounds down.
        "Floor" => builder.compute(Symbolic::FloorDiv, &[item, Number::float(1.0)]),
        "Ceil" => {
            let negative = builder.compute(Symbolic::Neg, &[item])?;
            let down = builder.compute(Symbolic::FloorDiv, &[negative, Number::float(1.0)])?;
            builder.compute(Symbolic::Neg, &[down])
        }
        "Sqrt" => builder.compute(Symbolic::Sqrt, &[item]),
        _ => builder.compute(Symbolic::Neg, &[item]),
    }
}

fn constant_ints(value: &Val) -> Option<(Vec<i64>, usize)> {
    match value {
        Val::Tensor(known) if known.is_constant => Some((ints(&known.runs[0])?, known.rank())),
        _ => None,
    }
}

fn gather(builder: &mut Builder, operands: &mut Operands) -> Result<Option<Vec<Val>>, ModelError> {
    let Val::Numbers(numbers) = operands.value(0).clone() else { return Ok(None) };
    let Some((indices, rank)) = constant_ints(operands.value(1)) else { return Ok(None) };
    if rank > 1 || !numbers.is_list {
        return Ok(None);
    }
    operands.ignore(&["axis"]);
    let length = numbers.items.len() as i64;
    let mut items = Vec::new();
    for index in indices {
        let at = usize::try_from(if index < 0 { index.saturating_add(length) } else { index }).ok();
        match at.and_then(|at| numbers.items.get(at)) {
            Some(item) => items.push(item.clone()),
            None => return Err(builder.refused(format!("there is no size number {index} of {length}"))),
        }
    }
    Ok(Some(vec![value(builder, items, rank == 1, numbers.kind)?]))
}

fn slice(builder: &mut Builder, operands: &mut Operands) -> Result<Option<Vec<Val>>, ModelError> {
    let Val::Numbers(numbers) = operands.value(0).clone() else { return Ok(None) };
    let bounds = |operands: &mut Operands, name: &str, index: usize| match operands.ints(name) {
        Some(ints) => Some(ints),
        None => constant_ints(operands.value(index)).map(|(ints, _)| ints),
    };
    let starts = bounds(operands, "starts", 1);
    let ends = bounds(operands, "ends", 2);
    let steps = if operands.is_given(4) { bounds(operands, "", 4) } else { Some(vec![1]) };
    operands.ignore(&["axes"]);
    let (Some([start]), Some([end]), Some([1])) = (starts.as_deref(), ends.as_deref(), steps.as_deref()) else {
        return Ok(None);
    };
    let length = numbers.items.len() as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length) as usize;
    let (start, end) = (clamp(*start), clamp(*end));
    let items = numbers.items.get(start..end.max(start)).unwrap_or_default().to_vec();
    Ok(Some(vec![value(builder, items, true, numbers.kind)?]))
}

fn split(builder: &mut Builder, operands: &mut Operands) -> Result<Option<Vec<Val>>, ModelError> {
    let Val::Numbers(numbers) = operands.value(0).clone() else { return Ok(None) };
    operands.ignore(&["axis", "num_outputs"]);
    let count = operands.outputs.len().max(1);
    let sizes = operands.ints_by(builder, "split", 1)?;
    let sizes = sizes.unwrap_or_else(|| vec![numbers.items.len().div_ceil(count) as i64; count]);
    let mut rest = numbers.items.as_slice();
    let mut parts = Vec::new();
    for size in sizes {
        let (part, after) = rest.split_at(usize::try_from(size).unwrap_or(0).min(rest.len()));
        parts.push(value(builder, part.to_vec(), true, numbers.kind)?);
        rest = after;
    }
    Ok(Some(parts))
}

/// A number becomes a list of one, or a list of one a number. A list stays one.
fn reshaped(builder: &mut Builder, operands: &mut Operands) -> Result<Option<Vec<Val>>, ModelError> {
    let Val::Numbers(numbers) = operands.value(0).clone() else { return Ok(None) };
    let is_list = match operands.operator.as_str() {
        "Unsqueeze" if !numbers.is_list => true,
        "Squeeze" if numbers.is_list && numbers.items.len() == 1 => false,
        "Reshape" => match constant_ints(operands.value(1)).as_ref().map(|(shape, _)| shape.as_slice()) {
            Some([]) if numbers.items.len() == 1 => false,
            Some([size]) if *size == -1 || *size == numbers.items.len() as i64 => true,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    operands.ignore(&["axes", "axis", "allowzero"]);
    Ok(Some(vec![value(builder, numbers.items.clone(), is_list, numbers.kind)?]))
}

/// The sizes of a tensor's axes from `start` to `end`.
pub fn shape(builder: &mut Builder, known: &Rc<Known>, start: i64, end: Option<i64>) -> Result<Val, ModelError> {
    let rank = known.rank() as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (clamp(start), end.map_or(rank as usize, clamp));
    let mut items = Vec::new();
    for axis in start..end.max(start) {
        items.push(builder.size(known, axis)?);
    }
    value(builder, items, true, Kind::Int64)
}
